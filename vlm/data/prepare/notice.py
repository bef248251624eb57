"""Define a notice about a table and helpers to word it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Notice:
    """A notice about the data; never contains the text of a cell about a patient."""

    level: Level
    check: str
    """Stable name of the check, for machines."""
    message: str
    rows: tuple[int, ...] = ()
    """Spreadsheet numbers of the first rows concerned."""


def first_rows(mask: np.ndarray, most: int = 5) -> tuple[int, ...]:
    """Return the spreadsheet numbers of the first rows of an N-long mask."""
    return tuple(int(row) + 2 for row in np.flatnonzero(mask)[:most])


def counted(count: int, singular: str, plural: str = "") -> str:
    """Format a count with its noun: `1 value`, `12 values`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def listed(names: Sequence[object], most: int = 3) -> str:
    """Format the first `most` names and the number of the others."""
    shown = ", ".join(map(str, names[:most]))
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
