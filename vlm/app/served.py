"""Choose among the adapters that one process serves, each with a queue of its own."""

from collections.abc import Sequence
from typing import NamedTuple

from fastapi import HTTPException

from vlm.app.about import Adapter
from vlm.app.service import Busy, Service


class Served(NamedTuple):
    """An adapter and what drafts with it."""

    adapter: Adapter
    service: Service


class ServedAdapters:
    """The adapters of a server by name; the first answers requests that name none."""

    def __init__(self, first: Served, others: Sequence[Served] = ()) -> None:
        self.first = first
        self.by_name = {each.adapter.name: each for each in (first, *others)}

    def of(self, name: str, key: str) -> Served:
        """Return the named adapter, the first without a name; raises `HTTPException` for one that is not served."""
        found = self.by_name.get(name) if name else self.first
        if found is None:
            raise HTTPException(404, f"{key}: no {name[:80]!r} here; GET /v1/models names {', '.join(self.by_name)}")
        return found

    def check_room(self) -> None:
        """Raise `Busy` if every queue is full; called before anything of a case is read."""
        busy: Busy | None = None
        for each in self.by_name.values():
            try:
                return each.service.check_room()
            except Busy as error:
                busy = error
        raise busy or Busy("no adapter is served")

    @property
    def alive(self) -> bool:
        """True if the workers of all run."""
        return all(each.service.alive for each in self.by_name.values())

    @property
    def waiting(self) -> int:
        """Number of drafts not yet done, of all."""
        return sum(each.service.waiting for each in self.by_name.values())

    @property
    def batch_seconds(self) -> float:
        """Seconds of the longest last batch: how long a client should wait before it retries."""
        return max(each.service.batch_seconds for each in self.by_name.values())
