"""Measure throughput, data wait and memory of each process, as flat values for the log and the trackers.

The numbers cover the steps since the last row, without evaluations and checkpoints between them. Rates are summed over
all processes, the wait is the mean share, the memory is the largest process's. With several processes, each one's
values are added as `memory_mib_rank0`, `memory_mib_rank1` and so on: trackers need flat names.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch

from vlm.data.collate import IGNORED

MIB = 2**20
COUNTED = ("samples", "tokens", "supervised_tokens", "images")


class Throughput:
    """Throughput counts of one process, kept on its device until a row is due, so that no step syncs with the GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clear()

    def _clear(self) -> None:
        self._counts = torch.zeros(len(COUNTED), dtype=torch.int64, device=self.device)
        self._seconds = self._waited = 0.0
        self._steps, self._began = 0, 0.0

    def read(self, batches: Iterator[Any], count: int) -> list[Any]:
        """Start a step and read at most `count` batches; measures the seconds waited for them."""
        self._began = time.perf_counter()
        step = list(islice(batches, count))
        self._waited += time.perf_counter() - self._began
        return step

    def count(self, batch: Mapping[str, torch.Tensor], text: bool) -> None:
        """Count a micro batch; without `text` the language model reads none of it."""
        supervised = batch["labels"][:, 1:] != IGNORED  # B × (T - 1)
        read = batch["attention_mask"].sum(dim=1) * supervised.any(dim=1)  # B: cases without a report are not read
        samples = torch.full((), len(supervised), device=supervised.device)
        images = batch["has_image"][batch["image_roles"][:, 0].long()].sum()
        counts = [samples, read.sum() * text, supervised.sum() * text, images]
        self._counts += torch.stack(counts).to(self._counts.device)

    def end_step(self) -> None:
        """Add the seconds since the step began."""
        self._seconds += time.perf_counter() - self._began
        self._steps += 1

    def row(self) -> torch.Tensor:
        """Return counts, seconds, seconds waited, steps and peak memory (MiB) since the last row, and reset; 8."""
        times = [self._seconds, self._waited, self._steps, peak_memory(self.device) / MIB]
        row = torch.cat([self._counts.double(), torch.tensor(times, dtype=torch.float64, device=self.device)])
        self._clear()
        return row


def peak_memory(device: torch.device) -> int:
    """Return this process's peak bytes so far: allocated tensors on a GPU, resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def speeds(rows: torch.Tensor) -> dict[str, float]:
    """Aggregate each process's `Throughput.row` (P × 8) into the values of a log row."""
    counts, (seconds, waited, steps, memory) = rows[:, :4].T.tolist(), rows[:, 4:].T.tolist()
    slowest = max(*seconds, 1e-9)
    each = {
        f"{name}_per_s": [n / max(s, 1e-9) for n, s in zip(count, seconds, strict=True)]
        for name, count in zip(COUNTED, counts, strict=True)
    }
    each["data_wait"] = [wait / max(s, 1e-9) for wait, s in zip(waited, seconds, strict=True)]
    each["memory_mib"] = memory
    named = {f"{name}_per_s": sum(count) / slowest for name, count in zip(COUNTED, counts, strict=True)}
    named["step_s"] = slowest / max(*steps, 1)
    named["data_wait"] = sum(waited) / max(sum(seconds), 1e-9)
    named["memory_mib"] = max(memory)
    return named | by_process(each)


def by_process(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Name each process's values `name_rank0`, `name_rank1` and so on; empty for one process alone."""
    return {
        f"{name}_rank{rank}": value for name, each in values.items() for rank, value in enumerate(each) if len(each) > 1
    }
