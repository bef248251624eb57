"""The machine at hand as a `Machine`: rates measured in seconds, on shapes like those of the work."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from vlm.plan.cost import CONV_PASSES, CONV_PASSES_BACK
from vlm.plan.gpus import CPU, Machine
from vlm.plan.shapes import Base

LAYERS = 4
"""Layers whose weights are read in turn, so that they come from memory as in a model."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one repeat: median, and the spread between the quickest and the slowest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} s ({self.low:.3f} to {self.high:.3f})"


Clock = Callable[[], float]
"""Seconds: `time.perf_counter`, or `time.process_time` on one thread, which other work on the machine disturbs less."""


def timed(work: Callable[[], object], repeats: int = 3, warm_up: int = 1, clock: Clock = time.perf_counter) -> Timing:
    """Run `work` a few times after a warm-up."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(repeats):
        start = clock()
        work()
        seconds.append(clock() - start)
    return Timing(statistics.median(seconds), min(seconds), max(seconds))


def matmul_rate(rows: int, inner: int, columns: int) -> float:
    """fp32 matrix product rate, floating-point operations a second, at the shape of a layer."""
    a, b = torch.randn(rows, inner), torch.randn(columns, inner)
    return 2 * rows * inner * columns * 20 / timed(lambda: [F.linear(a, b) for _ in range(20)]).median


def copy_rate(mebibytes: int = 256, clock: Clock = time.perf_counter) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.randn(mebibytes << 18)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / timed(lambda: target.copy_(source), clock=clock).median


def layer_rate(base: Base, rows: int, clock: Clock) -> float:
    """Operations a second of all products of a layer in fp32, forwards and backwards to the inputs."""
    weights = [[torch.randn(outputs, inputs) for inputs, outputs in base.products.values()] for _ in range(LAYERS)]
    given = {size: torch.randn(rows, size) for shape in base.products.values() for size in shape}

    def run() -> None:
        for layer in weights:
            for weight in layer:
                outputs, inputs = weight.shape
                F.linear(given[inputs], weight)
                given[outputs] @ weight

    return 4 * LAYERS * rows * base.linear / base.layers / timed(run, repeats=5, clock=clock).median


def passing_rate(values: int, clock: Clock) -> float:
    """Bytes a second that a product element by element reads and writes, on tensors of so many values."""
    a, b = torch.randn(values), torch.randn(values)
    count = min(200, max(1, (1 << 26) // values))
    return 3 * 4 * values * count / timed(lambda: [a * b for _ in range(count)], repeats=5, clock=clock).median


def large_rate(image_size: int, images: int, flops: float, clock: Clock) -> float:
    """Bytes a second that two blocks as in an EfficientNet read and write, an early and a late one.

    Forwards and backwards, without the time that their products take.
    """
    early, late = image_size // 2, max(image_size // 16, 1)
    blocks = ((_block(16, 24, 3), torch.randn(images, 16, early, early)),
              (_block(80, 112, 5), torch.randn(images, 80, late, late)))  # fmt: skip
    products = 6 * images * sum(_products(block, given.shape[-1]) for block, given in blocks)
    outputs = images * sum(_outputs(block, given.shape[-1]) for block, given in blocks)
    shown = [(block, given.contiguous(memory_format=torch.channels_last)) for block, given in blocks]

    def run() -> None:
        for block, given in shown:
            block(given.requires_grad_(True)).sum().backward()

    seconds = timed(run, repeats=5, clock=clock).median
    return 4 * (CONV_PASSES + CONV_PASSES_BACK) * outputs / max(seconds - products / flops, 0.1 * seconds)


def attention_rate(base: Base, cases: int, length: int, clock: Clock) -> float:
    """Operations a second of attention over rows of so many tokens, forwards and backwards."""
    shape = (cases, base.heads, length, base.head_size)
    query, key, value = (torch.randn(shape, requires_grad=True) for _ in range(3))
    mask = torch.full((length, length), float("-inf")).triu(1).expand(cases, 1, length, length)

    def run() -> None:
        for _ in range(LAYERS):
            F.scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()

    return 12 * LAYERS * cases * base.attention * length**2 / timed(run, repeats=5, clock=clock).median


def _block(inputs: int, outputs: int, side: int) -> nn.Module:
    """Expand six times, convolve each channel by itself, project (Sandler et al., 2018)."""
    inner = 6 * inputs
    layers = (nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(inplace=True),
              nn.Conv2d(inner, inner, side, padding=side // 2, groups=inner, bias=False), nn.BatchNorm2d(inner),
              nn.ReLU6(inplace=True), nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))  # fmt: skip
    return nn.Sequential(*layers).eval().to(memory_format=torch.channels_last)


def _products(block: nn.Module, side: int) -> int:
    return side**2 * sum(layer.weight.numel() for layer in block.modules() if isinstance(layer, nn.Conv2d))


def _outputs(block: nn.Module, side: int) -> int:
    return side**2 * sum(layer.out_channels for layer in block.modules() if isinstance(layer, nn.Conv2d))


def call_seconds(clock: Clock) -> float:
    """Seconds that an operation takes beside its work, of a module and of a bare one in turn."""
    a, layer = torch.randn(1, 16), nn.Linear(16, 16)
    return timed(lambda: [layer(a) + a for _ in range(1000)], repeats=5, clock=clock).median / 2000


def measure_cpu(
    base: Base, rows: int, cases: int, length: int, image_size: int, clock: Clock = time.perf_counter
) -> Machine:
    """This CPU for a micro batch of so many tokens in all and in a case: nothing is assumed, all is measured."""
    flops, pages = layer_rate(base, rows, clock), os.sysconf("SC_PHYS_PAGES")
    return Machine(
        name=CPU, flops=flops, memory=float(os.sysconf("SC_PAGE_SIZE") * pages), bandwidth=copy_rate(clock=clock),
        link=1e9, passing=passing_rate(rows * base.hidden, clock),
        large=large_rate(image_size, cases, flops, clock), value_bytes=4, mfu=1.0, mbu=1.0,
        attention=attention_rate(base, cases, length, clock) / flops,
        call_s=call_seconds(clock), packed=False, overlaps=False,
    )  # fmt: skip
