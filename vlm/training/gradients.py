"""Synchronize trainable weights and gradients across processes: a few MB, sent as one message."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn


def broadcast_weights(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Broadcast the weights of the first process to all."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            broadcast(parameter.data)


def sum_gradients(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """All-reduce the gradients by sum, in place; one that no process has stays None."""
    if accelerator.num_processes == 1:
        return
    has = torch.tensor([parameter.grad is not None for parameter in parameters], device=accelerator.device)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    message = torch.cat([*(part.float().flatten() for part in parts), has.float()])
    total = accelerator.reduce(message, "sum")
    *sums, count = total.split([*(parameter.numel() for parameter in parameters), len(parameters)])
    for parameter, gradient, holders in zip(parameters, sums, count.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if holders else None
