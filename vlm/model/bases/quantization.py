"""Quantise the frozen weights of a base model, and measure what share of them is in 4 bits."""

from typing import NamedTuple

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from vlm.config import LLMConfig
from vlm.device import Choice
from vlm.errors import UserError

LEAST_SHARE = 0.5
"""Least share of the linear weights in 4 bits where the config asks for them."""


def choose_dequantization(config: LLMConfig, device: torch.device) -> Choice[bool]:
    """Choose whether the 4-bit weights are dequantised once, at load."""
    if config.quantization == "none":
        return Choice(False, "not quantised")
    if config.dequantize != "auto":
        return Choice(config.dequantize == "always", "set by model.llm.dequantize")
    if device.type == "cpu":
        return Choice(True, "on a CPU the dequantised NF4 values give the same numbers in faster steps")
    return Choice(False, "4-bit weights save GPU memory")


def nf4_config(config: LLMConfig, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Configure bitsandbytes for QLoRA's 4-bit NormalFloat, with products in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=config.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,  # floating point, so FSDP can shard it
    )


def keep_packed_layout(llm: PreTrainedModel) -> bool:
    """Forbid bitsandbytes to repack its layers for inference on a CPU; returns whether there are any.

    Their first no-grad pass would repack them, and later gradients would be wrong.
    """
    packed = [module for module in llm.modules() if is_packed(module)]
    for module in packed:
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return bool(packed)


class FourBitShare(NamedTuple):
    """Hold the share of the linear weights that is in 4 bits."""

    share: float
    left: str
    """Name of the largest parameter not in 4 bits; empty if all are."""


def four_bit_share(llm: PreTrainedModel) -> FourBitShare:
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
    return FourBitShare(inside / total if total else 0.0, max(left, key=lambda name: left[name]))


def is_packed(module: nn.Module) -> bool:
    """Check whether a layer is bitsandbytes' `Linear4bit`, by name: the import takes a second."""
    return type(module).__name__ == "Linear4bit"


def values_of(parameter: torch.Tensor) -> int:
    """Count the values of a tensor; a packed 4-bit tensor holds two in each byte of its storage."""
    packed = type(parameter).__name__ == "Params4bit"
    return parameter.numel() * parameter.element_size() * 2 if packed else parameter.numel()


def refuse_unquantised(llm: PreTrainedModel, config: LLMConfig) -> None:
    """Raise `UserError` if the config asks for 4 bits and most of the linear weights cannot be quantised."""
    share, left = four_bit_share(llm)
    if config.quantization == "nf4" and share < LEAST_SHARE:
        raise UserError(
            f"model.llm.quantization: {share:.0%} of the linear weights of {config.base} can be put in 4 bits, {left} "
            "among others cannot; write model.llm.quantization: none, or take another base"
        )
