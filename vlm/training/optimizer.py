"""Build AdamW with parameter groups by part of the model, and its learning-rate schedule."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from vlm.compat import needs_bitsandbytes
from vlm.config import TrainConfig
from vlm.errors import UserError, one_line
from vlm.model.bases.lora_settings import DECOMPOSED
from vlm.model.clinical_vlm import ClinicalVLM

LORA_B = "llm B"
"""Part of its own under LoRA+ (Hayou et al., 2024): LoRA's B, at a multiple of the learning rate of A."""


def make_optimizer(model: ClinicalVLM, train: TrainConfig) -> torch.optim.Optimizer:
    """Build AdamW of PyTorch, or the paged 8-bit AdamW of bitsandbytes.

    Raises `UserError` on a CPU for a bitsandbytes that has it on GPUs alone.
    """
    groups = parameter_groups(model, train)
    if train.optimizer == "adamw_torch":
        return torch.optim.AdamW(groups, lr=train.learning_rate)
    if model.device.type == "cpu" and (way_out := needs_bitsandbytes("0.50")):
        raise UserError(f"train.optimizer: {train.optimizer} on a CPU {way_out}")
    from bitsandbytes.optim import PagedAdamW8bit

    return PagedAdamW8bit(groups, lr=train.learning_rate)


def parameter_groups(model: ClinicalVLM, train: TrainConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters by part, with and without weight decay; the first group's rate is logged.

    A group is `text` if it gets gradients from the text loss only, so it does not learn in the head-only steps.
    """
    rates = {"head": train.learning_rate, "tokens": train.learning_rate, "llm": train.lora_learning_rate,
             LORA_B: train.lora_learning_rate * train.loraplus_lr_ratio, "cnn": train.vision_learning_rate}  # fmt: skip
    decomposed = model.model_config.llm.init_lora_weights in DECOMPOSED  # decay would shrink the base's own weights
    groups: dict[tuple[str, bool, float], list[nn.Parameter]] = {
        (part, decay, 1.0): [] for part in rates for decay in (True, False)
    }
    scales = layer_scales(model, train.vision_layer_decay)
    for name, parameter in model.trainable_parameters().items():
        part = part_of(name)
        if part == "llm" and train.loraplus_lr_ratio != 1 and ".lora_B." in name:
            part = LORA_B
        decays = parameter.ndim > 1 and not (decomposed and part in ("llm", LORA_B))
        key = part, decays, scales.get(name, 1.0)  # biases, norms and single vectors do not decay
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates[part] * scale,
            "weight_decay": train.weight_decay if decay else 0.0,
            "text": part in ("tokens", "llm", LORA_B),
        }
        for (part, decay, scale), parameters in groups.items()
        if parameters
    ]


def layer_scales(model: ClinicalVLM, decay: float) -> dict[str, float]:
    """Compute the factor on the rate of each parameter of the encoder: `decay` for each layer further from the end.

    Layer-wise decay as in BEiT (Bao et al., 2021). Raises `UserError` for an encoder without layers.
    """
    if decay == 1 or not model.vision.config.train:
        return {}
    with one_line(f"train.vision_layer_decay: {model.vision.config.name} has no layers"):
        layers = model.vision.encoder.layers(model.vision.cnn)
    return {
        f"vision.cnn.{name}": decay ** (len(layers) - 1 - number)
        for number, layer in enumerate(layers)
        for name in layer
    }


HEAD = (
    "joint.",
    "vision.missing",
    "vision.study.role_score",
    "vision.study.content_score",
    "vision.study.null",
    "vitals.values.",
    "signal.stem",
    "signal.blocks",
    "signal.cycles",
    "signal.missing_x",
)
"""Parameters that learn from the labels too."""


def part_of(name: str) -> str:
    """Name the part that a parameter belongs to: `llm`, `cnn`, `head` (and all that feeds it) or `tokens`."""
    if name.startswith("llm."):
        return "llm"
    if name.startswith("vision.cnn."):
        return "cnn"
    return "head" if name.startswith(HEAD) else "tokens"


def make_schedule(
    optimizer: torch.optim.Optimizer, train: TrainConfig, steps: int, head_only_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Build warm-up and decay for each group over the steps in which it learns; `text` groups start later."""
    starts = [head_only_steps if group["text"] else 0 for group in optimizer.param_groups]
    factors: list[Callable[[int], float]] = [partial(rate_factor, train=train, start=s, end=steps) for s in starts]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factors)


def rate_factor(step: int, train: TrainConfig, start: int, end: int) -> float:
    """Compute the learning-rate factor at a step, for a group that learns from `start` to `end`."""
    if step < start + train.warmup_steps:
        return max(step - start + 1, 0) / (train.warmup_steps + 1)
    done = min((step - start - train.warmup_steps) / max(end - start - train.warmup_steps, 1), 1.0)
    if train.schedule == "constant_with_warmup":
        return 1.0
    return 1 - done if train.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def set_rates(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR) -> None:
    """Recompute the learning rates at the current step for this run's length: a finished run left them at 0."""
    for group, rate, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = rate * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]  # the value of get_last_lr()
