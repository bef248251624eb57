"""Several processes at one work: which cases are whose, and how their results become one list again."""

import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

from vlm.plain import escaped

Result = TypeVar("Result")


def rank() -> int:
    """The number of this process among those launched together, as `accelerate launch` and `torchrun` say it."""
    return int(os.environ.get("RANK", 0))


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def world_size() -> int:
    """How many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def say(*lines: str) -> None:
    """Print to stderr, escaped, once whatever the number of processes."""
    if is_main():
        for line in lines:
            print(*map(escaped, line.split("\n")), sep="\n", file=sys.stderr, flush=True)


def own_share(count: int, all_alike: bool = False) -> range:
    """Places of this process among `count` cases, every n-th of them; all of them where all must do the same."""
    if world_size() == 1 or all_alike:
        return range(count)
    from accelerate import PartialState

    state = PartialState()
    return range(state.process_index, count, state.num_processes)


def joined_shares(own: Sequence[Result], count: int, all_alike: bool = False) -> list[Result]:
    """The results of all processes in the order of the cases, each given for those of `own_share`; on every process."""
    if world_size() == 1 or all_alike:
        return list(own)
    from accelerate import PartialState
    from accelerate.utils import gather_object

    shares: list[Any] = gather_object([list(own)])
    joined: list[Any] = [None] * count
    for number, share in enumerate(shares):
        joined[number :: PartialState().num_processes] = share
    return joined
