"""Start LoRA from a decomposition of the frozen weights: PiSSA (Meng et al., 2024) and OLoRA (Büyükakyüz, 2024).

Both papers take the first B₀ A₀ out of the base. Here the base stays as it is, whatever its quantisation, and the
second half of A and B holds A₀ and -B₀, which never learn. In exact arithmetic that is the same model, and the adapter
is a plain LoRA of the untouched base at every step.
"""

from collections.abc import Callable

import torch
from torch import nn

from vlm.errors import UserError

EXACT = 1024
"""Longest smaller side of a matrix that is decomposed exactly; larger ones by a randomised SVD."""
OVERSAMPLED, POWER_STEPS = 8, 16
"""Further directions and power iterations of that (Halko et al., 2011); 16 as in the paper of PiSSA."""


def start_from_weights(llm: nn.Module, method: str, key: str = "model.llm.init_lora_weights") -> None:
    """Set the LoRA of all layers to [B₀, -B₀] [A₀; A₀] = 0, and keep the second halves at that.

    Raises `UserError` for a rank larger than a layer, and for a quantised layer whose values cannot be had.
    """
    from peft.utils.integrations import dequantize_module_weight

    for path, layer in llm.named_modules():
        if not hasattr(layer, "lora_A"):
            continue
        a, b = (getattr(layer, f"lora_{side}")["default"].weight for side in "AB")  # 2r × in, out × 2r
        rank, smallest = len(a) // 2, min(a.shape[1], len(b))
        if rank > smallest:
            raise UserError(f"{key}: {method} has at most rank {smallest} on {path}, not {rank}")
        try:
            weight = dequantize_module_weight(layer.get_base_layer()).detach().float()
        except (AttributeError, NotImplementedError, TypeError):
            base = type(layer.get_base_layer()).__name__
            raise UserError(f"{key}: {method} cannot read the weights of {path}, a {base}; write default") from None
        if layer.fan_in_fan_out if hasattr(layer, "fan_in_fan_out") else False:  # GPT-2's weights lie in × out
            weight = weight.T
        first_a, first_b = DECOMPOSITIONS[method](weight, rank, layer.scaling["default"])  # r × in, out × r
        with torch.no_grad():
            a.copy_(torch.cat([first_a, first_a]))
            b.copy_(torch.cat([first_b, -first_b], dim=1))
        _train_first_half(a, 0)
        _train_first_half(b, 1)


def pissa(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Decompose out × in weights by singular values: A₀ (r × in) and B₀ (out × r), scale · B₀ A₀ the largest part."""
    if min(weight.shape) <= EXACT:
        u, values, vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        u, values, v = torch.svd_lowrank(weight, min(rank + OVERSAMPLED, *weight.shape), niter=POWER_STEPS)
        vh = v.T
    root = (values[:rank] / scale).sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def olora(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Decompose out × in weights as Q R: A₀ the first r rows of R, B₀ the first r columns of Q."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


DECOMPOSITIONS: dict[str, Callable[[torch.Tensor, int, float], tuple[torch.Tensor, torch.Tensor]]] = {
    "pissa": pissa,
    "olora": olora,
}


def _train_first_half(parameter: torch.Tensor, dim: int) -> None:
    """Make the gradient of the second half along a dimension 0; AdamW without weight decay then leaves it alone."""
    rank = parameter.shape[dim] // 2

    def masked(gradient: torch.Tensor) -> torch.Tensor:
        first = gradient.narrow(dim, 0, rank)
        return torch.cat([first, torch.zeros_like(first)], dim)

    parameter.register_hook(masked)
