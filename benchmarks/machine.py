"""What the machine itself can do, measured in the same run as what is compared with it; and how times are taken."""

import statistics
import time
from collections.abc import Callable

from vlm.plan.measured import Timing, copy_rate, matmul_rate, timed

__all__ = ["Timing", "copy_rate", "in_turn", "matmul_rate", "timed"]


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
