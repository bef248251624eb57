"""Export the LoRA as a GGUF file, with the tensor names and the row order of llama.cpp for a Llama."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vlm.adapter.hub import open_adapter
from vlm.adapter.validate import AdapterFolder, check_sources
from vlm.atomic import replaced
from vlm.config import LLMConfig
from vlm.errors import UserError, one_line
from vlm.locks import locked
from vlm.model.bases.lora_settings import layer_of, rank_of, scale_of
from vlm.weights import language_model_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def write_lora(adapter: str, file: Path, base: str | None = None, revision: str | None = None) -> int:
    """Write an adapter's LoRA to a GGUF file, in full precision; returns the number of its layers.

    llama.cpp applies it to any GGUF file of the same base. Only the base's config is read, none of its weights.
    The file has one alpha, so the scales of rsLoRA and of patterns are put into B. Raises `UserError` as
    `open_adapter` does, for a base that is no Llama, for DoRA, and for an existing file.
    """
    import gguf
    from safetensors.torch import load_file

    if file.exists():
        raise UserError(f"{file}: is there already; name a new file")
    opened = open_adapter(adapter, revision)
    if opened.config.model.llm.use_dora:
        raise UserError("gguf: llama.cpp has no DoRA; write the merged model with `clinical-vlm merge`")
    config = _base_config(opened, base)
    tensors = load_file(opened.path / "adapter_model.safetensors")
    with locked(file), replaced(file) as partial:
        writer = gguf.GGUFWriter(partial, "llama")
        writer.add_type("adapter")
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        alpha = float(opened.config.model.llm.lora_alpha)
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)  # its scale is alpha / rank
        for name, value in sorted(tensors.items()):
            layer, side, value = layer_of(name), name.removesuffix(".weight")[-6:], value.float()
            if side == "lora_B":  # out × r; lora_A is r × in
                value = in_pairs(value * _scale_left(opened.config.model.llm, layer), layer, config)
            writer.add_tensor(f"{gguf_name(layer, config)}.weight.{side.lower()}", value.numpy())
        finish(writer)
    return len(tensors) // 2


def finish(writer: Any) -> None:
    """Write what a `GGUFWriter` was given to its file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _scale_left(llm: LLMConfig, layer: str) -> float:
    """Compute what a layer's scale is over the one that llama.cpp gives it, the file's alpha / the layer's rank."""
    return scale_of(llm, layer) * rank_of(llm, layer) / llm.lora_alpha


def _base_config(opened: AdapterFolder, base: str | None) -> "PreTrainedConfig":
    from transformers import AutoConfig

    model = opened.config.model
    check_sources(opened.path, model, given_base=base is not None)
    llm = model.llm
    source = base or language_model_folder(llm.base, llm.sha256)
    revision = llm.revision if base is None else None
    with one_line(f"{llm.base}: cannot read the base's config"):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    if config.model_type != "llama":
        raise UserError(f"gguf: knows the layers of bases of type llama, not of {config.model_type}")
    return config  # type: ignore[no-any-return]


def gguf_name(layer: str, config: Any) -> str:
    """Translate a layer's name: `model.layers.0.self_attn.q_proj` → `blk.0.attn_q`."""
    import gguf

    name = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers).get_name(layer)
    if name is None:
        raise UserError(f"gguf: llama.cpp has no layer for {layer}")
    return str(name)


def in_pairs(weight: torch.Tensor, layer: str, config: Any) -> torch.Tensor:
    """Permute the rows (out × …) of a query or key projection from halves to pairs; other layers stay as they are.

    llama.cpp's rotary embedding expects the rows of a head in this order.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(layer.rpartition(".")[2])
    if heads is None:
        return weight
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()
