"""Collect the faults of a table into one line, so that a user mends them all at once."""

from collections.abc import Iterator
from contextlib import contextmanager

from vlm.errors import UserError

MOST_NAMED = 10


class Faults:
    """Collect the first ten faults of a table with their rows, and count all."""

    def __init__(self) -> None:
        self.count = 0
        self._named: list[str] = []

    def add(self, message: str) -> None:
        """Note a fault; its message begins with its file and row."""
        self.count += 1
        if len(self._named) < MOST_NAMED:
            self._named.append(message)

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Note a `UserError` of the block instead of raising it."""
        try:
            yield
        except UserError as error:
            self.add(str(error))

    def lines(self) -> list[str]:
        """List the named faults, and the number of further ones."""
        more = self.count - len(self._named)
        return [*self._named, *([f"and {more:,} more"] if more else [])]

    def raise_any(self) -> None:
        """Raise `UserError` if there is a fault."""
        if not self.count:
            return
        first, *others = self._named
        if not others:
            raise UserError(first)
        where = first.partition(": row ")[0] + ": "
        said = "; ".join(message.removeprefix(where) for message in self.lines())
        raise UserError(f"{where}{self.count:,} faults: {said}")
