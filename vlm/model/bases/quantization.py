"""Quantise the frozen weights of a base model, accept those that come quantised, and measure their share."""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from vlm.config import LLMConfig
from vlm.device import Choice
from vlm.errors import UserError

LEAST_SHARE = 0.5
"""Least share of the linear weights that is quantised where the config asks for it."""
FOUR_BITS, EIGHT_BITS = "Linear4bit", "Linear8bitLt"
"""bitsandbytes' layers, by name: the import takes a second."""


def choose_dequantization(config: LLMConfig, device: torch.device) -> Choice[bool]:
    """Choose whether the quantised weights are dequantised once, at load."""
    if config.quantization == "none":
        return Choice(False, "not quantised")
    if config.dequantize != "auto":
        return Choice(config.dequantize == "always", "set by model.llm.dequantize")
    if device.type == "cpu":
        values = config.quantization.upper()
        return Choice(True, f"on a CPU the dequantised {values} values give the same numbers in faster steps")
    return Choice(False, f"{bits(config)}-bit weights save GPU memory")


def bits(config: LLMConfig) -> int:
    """Get the bits of a quantised value; raises `KeyError` where nothing is quantised."""
    return {"nf4": 4, "fp4": 4, "int8": 8}[config.quantization]


def quantization_config(config: LLMConfig, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Configure bitsandbytes: QLoRA's 4-bit NormalFloat or 4-bit floats, with products in `dtype`, or LLM.int8()."""
    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantization,
        bnb_4bit_use_double_quant=config.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,  # floating point, so FSDP can shard it
    )


def quantised_name(config: LLMConfig) -> str:
    """Name the quantisation for a folder of dequantised weights: `nf4-double`."""
    double = config.double_quantization and config.quantization != "int8"
    return f"{config.quantization}{'-double' * double}"


def keep_packed_layout(llm: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Forbid bitsandbytes to repack its layers for inference on a CPU; returns whether there are any.

    Their first no-grad pass would repack them, and later gradients would be wrong. Products are in `dtype`, whatever
    the config of a base that comes quantised says. Layers of 8-bit integers keep their scales (`packed_int8`).
    """
    packed = [module for module in llm.modules() if is_packed(module)]
    for module in filter(is_packed_int8, packed):
        from vlm.model.bases.packed_int8 import mend_int8  # imports bitsandbytes, which takes a second

        mend_int8(module)
    for module in packed:
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = dtype  # type: ignore[assignment]
    return bool(packed)


def unpack_bypassed(llm: PreTrainedModel, dtype: torch.dtype) -> None:
    """Dequantise the packed layers whose weights Transformers reads without calling them: Mamba's `dt_proj`."""
    from peft.utils.integrations import dequantize_module_weight

    paths = [path for path, m in llm.named_modules() if is_packed(m) and path.endswith(".dt_proj")]
    for path in paths if llm.config.model_type == "mamba" else ():
        layer: Any = llm.get_submodule(path)
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(dequantize_module_weight(layer).to(dtype), requires_grad=False)
        plain.bias = layer.bias
        llm.set_submodule(path, plain)


def wrongly_dequantised(llm: PreTrainedModel, quantization: str) -> list[str]:
    """List the frozen linear layers whose 4-bit values bitsandbytes computes wrongly on this CPU.

    bitsandbytes 0.50 does so for rows that are no multiple of its blocks of 64 values, such as Mamba's `dt_proj`. Each
    length of a row is tried on random values: the same values in rows of 64 must give the same.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    layers = [(path, m) for path, m in llm.named_modules() if type(m) is nn.Linear or type(m).__name__ == FOUR_BITS]
    wrong: dict[int, bool] = {}
    for length in {int(layer.in_features) for _, layer in layers}:
        values = torch.randn(64, length, generator=torch.Generator().manual_seed(0))
        rows, blocks = (
            dequantize_4bit(*quantize_4bit(shaped, quant_type=quantization)).flatten()
            for shaped in (values, values.view(-1, 64))
        )
        wrong[length] = not torch.allclose(rows, blocks, atol=1e-3)
    head = llm.get_output_embeddings()
    return [path for path, m in layers if wrong[int(m.in_features)] and not m.weight.requires_grad and m is not head]


class QuantisedShare(NamedTuple):
    """Hold the share of the linear weights that is quantised."""

    share: float
    left: str
    """Name of the largest parameter not quantised; empty if all are."""


def quantised_share(llm: PreTrainedModel) -> QuantisedShare:
    """Compute the share of frozen matrix values that are or were quantised, without embeddings and output layer."""
    packed = any(is_packed(module) for module in llm.modules())
    tables = {id(layer.weight) for layer in (llm.get_input_embeddings(), llm.get_output_embeddings()) if layer}
    inside, left = 0, {"": 0}
    for path, module in llm.named_modules():
        for name, value in module.named_parameters(recurse=False):
            if value.ndim < 2 or value.requires_grad or isinstance(module, nn.Embedding) or id(value) in tables:
                continue
            if is_packed(module) if packed else type(module) is nn.Linear:  # a dequantised layer is a plain one
                inside += values_of(value)
            else:
                left[f"{path}.{name}"] = values_of(value)
    total = inside + sum(left.values())
    return QuantisedShare(inside / total if total else 0.0, max(left, key=lambda name: left[name]))


def is_packed(module: nn.Module) -> bool:
    """Check whether a layer is one of bitsandbytes."""
    return type(module).__name__ in (FOUR_BITS, EIGHT_BITS)


def is_packed_int8(module: nn.Module) -> bool:
    """Check whether a layer is bitsandbytes' of 8-bit integers."""
    return type(module).__name__ == EIGHT_BITS


def values_of(parameter: torch.Tensor) -> int:
    """Count the values of a tensor; a packed 4-bit tensor holds two in each byte of its storage."""
    packed = type(parameter).__name__ == "Params4bit"
    return parameter.numel() * parameter.element_size() * 2 if packed else parameter.numel()


def is_packed_value(parameter: torch.Tensor) -> bool:
    """Check whether a tensor holds quantised values of bitsandbytes or torchao."""
    kind = type(parameter)
    return kind.__name__ in ("Params4bit", "Int8Params") or kind.__module__.startswith("torchao.")


def refuse_unquantised(llm: PreTrainedModel, config: LLMConfig) -> None:
    """Raise `UserError` if the config asks for quantised weights and most of the linear ones cannot be."""
    if config.quantization == "none" or comes_quantised(llm):
        return
    share, left = quantised_share(llm)
    if share < LEAST_SHARE:
        raise UserError(
            f"model.llm.quantization: {share:.0%} of the linear weights of {config.base} can be put in {bits(config)} "
            f"bits, {left} among others cannot; write model.llm.quantization: none, or take another base"
        )


def advise_bf16(llm: PreTrainedModel, config: LLMConfig, memory: int) -> list[str]:
    """Advise LoRA beside bf16 weights where they take at most half of a GPU's memory in bytes; 0 for a CPU."""
    size = sum(2 * values_of(parameter) for parameter in llm.parameters() if not parameter.requires_grad)
    if config.quantization == "none" or comes_quantised(llm) or size > memory / 2:
        return []
    return [
        f"advice: in bf16 the base takes {size / 2**30:.1f} of this GPU's {memory / 2**30:.0f} GiB; "
        "model.llm.quantization: none trains LoRA beside its exact weights, in faster steps"
    ]


def comes_quantised(llm: Any) -> str:
    """Get the method by which a base came quantised, as `note_method` found it; empty if it did not."""
    return str(getattr(llm, "came_quantised", ""))
