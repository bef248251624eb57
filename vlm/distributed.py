"""Distributed helpers: rank, sharding of indices, ordered gather."""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from vlm.plain import escaped

Result = TypeVar("Result")


def rank() -> int:
    """Get the rank of this process, as `accelerate launch` and `torchrun` set it."""
    return int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Check whether this is rank 0, which writes and logs."""
    return rank() == 0


def world_size() -> int:
    """Get the number of processes launched together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def log_rank0(*lines: str) -> None:
    """Print lines to stderr, above a progress bar, escaped, on rank 0 only."""
    if is_main():
        from tqdm import tqdm  # its import takes as long as some commands

        for line in lines:
            tqdm.write("\n".join(map(escaped, line.split("\n"))), file=sys.stderr)
        sys.stderr.flush()


def shard_indices(count: int, replicate: bool = False) -> range:
    """Indices of this process among `count` cases, every n-th of them; all of them with `replicate`."""
    if world_size() == 1 or replicate:
        return range(count)
    from accelerate import PartialState

    state = PartialState()
    return range(state.process_index, count, state.num_processes)


def gather_ordered(own: Sequence[Result], count: int, replicate: bool = False) -> list[Result]:
    """Gather results of all processes in the order of the cases; `own` are those of `shard_indices`."""
    if world_size() == 1 or replicate:
        return list(own)
    from accelerate import PartialState
    from accelerate.utils import gather_object

    shares: list[Any] = gather_object([list(own)])
    joined: list[Any] = [None] * count
    for number, share in enumerate(shares):
        joined[number :: PartialState().num_processes] = share
    return joined


def part_processes() -> None:
    """End the exchange between processes, at the last that they do together.

    The others need not wait for rank 0, whose metrics may outlast the timeout; gloo hangs if it ends after they left.
    """
    if world_size() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
        time.sleep(1)  # torch 2.6 hung in the next line now and then, where gloo's threads were still at work
        PartialState().destroy_process_group()
