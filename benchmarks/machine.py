"""What the machine itself can do, measured in the same run as what is compared with it; and how times are taken."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from vlm.config import TrainConfig


@dataclass(frozen=True)
class Timing:
    """Seconds of one repeat: median, and the spread between the quickest and the slowest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} s ({self.low:.3f} to {self.high:.3f})"


def timed(work: Callable[[], object], repeats: int = 3, warm_up: int = 1) -> Timing:
    """Run `work` a few times after a warm-up."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return Timing(statistics.median(seconds), min(seconds), max(seconds))


def finished(work: Callable[[], object]) -> Callable[[], None]:
    """Wrap work so that it returns when a GPU, if there is one, has done it."""

    def run() -> None:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def matmul_rate(
    rows: int, inner: int, columns: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> float:
    """Measure the rate of matrix products, operations a second, at the shape of a layer."""
    a, b = (torch.randn(size, inner, device=device, dtype=dtype) for size in (rows, columns))
    return 2 * rows * inner * columns * 20 / timed(finished(lambda: [F.linear(a, b) for _ in range(20)])).median


def copy_rate(mebibytes: int = 256) -> float:
    """Measure the bytes a second that a copy reads and writes."""
    source = torch.randn(mebibytes << 18)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / timed(lambda: target.copy_(source)).median


def in_turn(works: dict[str, Callable[[], object]], repeats: int = 3) -> dict[str, Timing]:
    """Time several works by turns, so that a slow phase of the machine meets them all alike."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}


def micro_batch(train: TrainConfig) -> int:
    """Return the cases of a forward pass; all of the batch where the run would measure how many fit."""
    return train.batch_size if train.micro_batch_size == "auto" else train.micro_batch_size
