"""Read and write the adapter folder: the trained weights in safetensors and JSON, without the base model.

adapter_config.json, adapter_model.safetensors   a plain PEFT LoRA of the language model
vlm.safetensors                                  projectors, vitals encoder, joint vector, head, trained CNN
config.json                                      base, image and vitals preprocessing, labels, prompt
metrics.json, README.md                          measured results, and the model card
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.adapter.folder import check_base, load, load_evidence, load_state, save, split_state, starting_weights
    from vlm.adapter.hub import open_adapter, resolve
    from vlm.adapter.layout import FILES, FORMAT, REQUIRED, AdapterConfig, describe, digest, read_config
    from vlm.adapter.validate import AdapterFolder

__all__ = ["FILES", "FORMAT", "REQUIRED", "AdapterConfig", "AdapterFolder", "check_base", "describe", "digest", "load",
           "load_evidence", "load_state", "open_adapter", "read_config", "resolve", "save", "split_state",
           "starting_weights"]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use, so that `clinical-vlm push --help` does not wait for PyTorch."""
    if name in __all__:
        from vlm.adapter import folder, hub, layout, validate

        return next(getattr(part, name) for part in (layout, hub, folder, validate) if hasattr(part, name))
    raise AttributeError(f"module 'vlm.adapter' has no attribute {name!r}")
