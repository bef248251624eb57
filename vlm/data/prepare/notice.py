"""Define a notice about a table and helpers to word it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlm.data.ingest.column_names import listed

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


def row_pairs(pairs: Iterable[tuple[int, int]]) -> str:
    """Format the spreadsheet numbers of the first pairs of rows (from 0), and the number of the other pairs."""
    return listed((f"{first + 2} and {second + 2}" for first, second in pairs), 3)
