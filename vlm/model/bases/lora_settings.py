"""Compute rank and scale of LoRA by layer, as PEFT does, and what an adapter says of them; without PEFT or PyTorch."""

from collections.abc import Mapping
from dataclasses import replace

from vlm.config import LLMConfig

DECOMPOSED = ("pissa", "olora")
"""Initialisations that start from a decomposition of the weights."""


def rank_of(config: LLMConfig, layer: str) -> int:
    """Get the rank of LoRA on a layer, by its path in the base such as `model.layers.0.self_attn.q_proj`."""
    return _of_pattern(config.rank_pattern, layer, config.lora_rank)


def scale_of(config: LLMConfig, layer: str) -> float:
    """Get the factor of B A on a layer: alpha / r, or alpha / √r for rsLoRA (Kalajdzievski, 2023)."""
    rank, alpha = rank_of(config, layer), _of_pattern(config.alpha_pattern, layer, config.lora_alpha)
    return float(alpha / (rank**0.5 if config.use_rslora else rank))


def layer_of(tensor: str) -> str:
    """Get a layer's path in the base from PEFT's name of its tensor: `base_model.model.LAYER.lora_A.weight`."""
    return tensor.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")[0]


def names_layer(name: str, layer: str) -> bool:
    """Check whether a name in `rank_pattern` or `alpha_pattern` is a layer's, or the end of its path.

    PEFT matches it as a regular expression, so a dot also as another character; a layer of that name would get another
    shape there than here, which loading refuses.
    """
    return layer == name or layer.endswith(f".{name}")


def saved_settings(config: LLMConfig) -> LLMConfig:
    """Get the settings of a plain LoRA on the untouched base, which an adapter holds.

    PiSSA and OLoRA train B A, and subtract its first value B₀ A₀ again, so that the model begins as the base:
    B A - B₀ A₀ = [B, -B₀] [A; A₀], a LoRA of twice the rank and the same scale. (For rsLoRA alpha is rounded.)
    """
    if config.init_lora_weights not in DECOMPOSED:
        return replace(config, init_lora_weights="default")
    factor = 2**0.5 if config.use_rslora else 2
    return replace(
        config,
        init_lora_weights="default",
        lora_rank=2 * config.lora_rank,
        lora_alpha=round(factor * config.lora_alpha),
        rank_pattern={name: 2 * rank for name, rank in config.rank_pattern.items()},
        alpha_pattern={name: round(factor * alpha) for name, alpha in config.alpha_pattern.items()},
    )


def _of_pattern(pattern: Mapping[str, int], layer: str, otherwise: int) -> int:
    return next((value for name, value in pattern.items() if names_layer(name, layer)), otherwise)
