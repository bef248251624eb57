"""What each process read and waited for, in numbers that a log row and every tracker can take.

All is of the steps since the last row; evaluations and checkpoints between them are not counted. Rates are of all
processes together, the wait is the mean share, the memory is that of the largest process. With several processes each
one's own stand beside them as `memory_mib_rank0`, `memory_mib_rank1` and so on: flat names are what trackers take.
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
    """Counts of one process. They stay on its device until a row asks for them: no step waits for its GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clear()

    def _clear(self) -> None:
        self._counts = torch.zeros(len(COUNTED), dtype=torch.int64, device=self.device)
        self._seconds = self._waited = 0.0
        self._steps, self._began = 0, 0.0

    def read(self, batches: Iterator[Any], count: int) -> list[Any]:
        """Begin a step and take its batches, at most `count`; measures the seconds until they are there."""
        self._began = time.perf_counter()
        step = list(islice(batches, count))
        self._waited += time.perf_counter() - self._began
        return step

    def count(self, batch: Mapping[str, torch.Tensor], text: bool) -> None:
        """Add a micro batch; without `text` the language model reads nothing of it."""
        supervised = batch["labels"][:, 1:] != IGNORED  # B × (T - 1)
        read = batch["attention_mask"].sum(dim=1) * supervised.any(dim=1)  # B: cases without a report are not read
        samples = torch.full((), len(supervised), device=supervised.device)
        counts = [samples, read.sum() * text, supervised.sum() * text, batch["has_image"].sum()]
        self._counts += torch.stack(counts).to(self._counts.device)

    def end_step(self) -> None:
        """Add the seconds since the step began."""
        self._seconds += time.perf_counter() - self._began
        self._steps += 1

    def row(self) -> torch.Tensor:
        """Counts, seconds, seconds waited, steps and peak memory (MiB) since the last row; 8."""
        times = [self._seconds, self._waited, self._steps, peak_memory(self.device) / MIB]
        row = torch.cat([self._counts.double(), torch.tensor(times, dtype=torch.float64, device=self.device)])
        self._clear()
        return row


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held so far: of tensors on a GPU, of all its resident memory on a CPU."""
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
    """`Throughput.row` of each process (P × 8) by the names of a log row."""
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
    """`name_rank0`, `name_rank1` and so on; nothing for one process alone, whose values are the row's own."""
    return {
        f"{name}_rank{rank}": value for name, each in values.items() for rank, value in enumerate(each) if len(each) > 1
    }
