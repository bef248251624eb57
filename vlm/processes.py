"""Several processes at one work: which cases are whose, and how their results become one list again."""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return int(os.environ.get("RANK", 0)) == 0


def world_size() -> int:
    """How many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def own_share(count: int, all_alike: bool = False) -> range:
    """Places of this process among `count` cases, every n-th of them; all of them where all must do the same."""
    from accelerate import PartialState

    state = PartialState() if world_size() > 1 else None
    if state is None or all_alike or state.num_processes == 1:
        return range(count)
    return range(state.process_index, count, state.num_processes)


def joined_shares(own: Sequence[Result], count: int, all_alike: bool = False) -> list[Result]:
    """The results of all processes in the order of the cases, each given for those of `own_share`; on every process."""
    if world_size() == 1 or all_alike:
        return list(own)
    from accelerate import PartialState
    from accelerate.utils import gather_object

    shares: list[Any] = gather_object([list(own)])
    joined: list[Any] = [None] * count
    for rank, share in enumerate(shares):
        joined[rank :: PartialState().num_processes] = share
    return joined
