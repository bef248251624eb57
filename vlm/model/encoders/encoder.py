"""Define the interface of an image encoder: a network, how its grid of features is read, and its layers in order."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

LORA = re.compile(r"\.lora_[AB]\.")
"""Pattern of the tensors of a LoRA, which PEFT puts beside the layer they change."""
MOST_CELLS = 16_384
"""Most cells of a grid."""


@dataclass(frozen=True)
class Pictures:
    """How an encoder's weights want their pictures."""

    mean: float = 0.5
    """Mean of the normalization, for values 0 to 1; that of the colours averaged, for grey pictures."""
    std: float = 0.5
    """Standard deviation of the normalization."""
    color_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean of red, green and blue, for pictures in colour."""
    color_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Their standard deviations."""
    size: int = 224
    """Side of the square, pixels."""
    interpolation: Literal["area", "bilinear", "bicubic"] = "area"
    """How pictures are resized: `area`, `bilinear` or `bicubic`."""
    channels: int = 3
    """Channels of the first layer."""

    @classmethod
    def of(cls, mean: Sequence[float], std: Sequence[float], **others: Any) -> "Pictures":
        """Average mean and standard deviation of the colours, and keep them; one value stands for all three."""
        scale = sum(std) / len(std)
        scale = round(scale, 6) if scale > 1e-3 else scale
        color_mean, color_std = (tuple(values) * (3 if len(values) == 1 else 1) for values in (mean, std))
        return cls(round(sum(mean) / len(mean), 6), scale, color_mean, color_std, **others)


class Encoder(ABC):
    """Read a grid of features from a network of one library.

    The network itself is given to each method, since it is part of `ImageEncoder` and of its state.
    """

    halves = False
    """True for a CNN whose stages halve the grid: heat is mapped on the stage before the last halving."""

    @abstractmethod
    def grid(self, network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the grid of features; B × channels × S × S → B × C × h × w."""

    @abstractmethod
    def stages(self, network: nn.Module) -> list[list[str]]:
        """List the parameters' names by stage, from the stem on: what `frozen_stages` counts."""

    @abstractmethod
    def layers(self, network: nn.Module) -> list[list[str]]:
        """List the parameters' names by layer, from the stem on: what the layer decay counts."""


def memory_format(network: nn.Module) -> torch.memory_format:
    """Choose the order of values in memory: channels last is faster for convolutions.

    PyTorch 2.14 writes beyond its memory in the backward pass of a strided 1 × 1 convolution of three channels so laid
    out, as MobileOne's stem has one.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.in_channels <= 3:
            return torch.contiguous_format
    return torch.channels_last


def plain_name(name: str) -> str:
    """Get the name that a parameter has without LoRA; the tensors of a LoRA get their layer's weight."""
    path = name.replace(".base_layer.", ".")
    return f"{LORA.split(path)[0]}.weight" if LORA.search(path) else path


def by_depth(names: Iterator[str]) -> list[list[str]]:
    """Group parameters' names by the numbers of their layers, in the order in which the network declares them.

    Parameters before the first number are the stem; others, such as a last norm, go with the last layer before them.
    """
    layers: list[list[str]] = [[]]
    before: tuple[str, ...] = ()
    for name in names:
        path = tuple(re.findall(r"(?:^|\.)(?:layers?|blocks?|stages?|h)\.(\d+)(?=\.)", name))
        if path and path != before:
            layers.append([])
            before = path
        layers[-1].append(name)
    return [layer for layer in layers if layer]


def reached(grid: torch.Tensor) -> set[int]:
    """List the ids of the parameters that a grid, computed with gradients, depends on."""
    found, seen, rest = set(), set(), [grid.grad_fn]
    while rest:
        node = rest.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        rest += [before for before, _ in node.next_functions]
    return found
