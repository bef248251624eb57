"""Collect table rows into frames of bounded size."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from vlm.data.size_limits import FRAME_TEXT, MOST_CELLS


class Record(NamedTuple):
    """One unparsed row."""

    number: int
    """Spreadsheet row number: the header is row 1."""
    cells: Sequence[Any]
    size: int
    """Characters of the row."""


def frames(records: Iterable[Record], names: Sequence[str | None], rows: int) -> Iterator[pd.DataFrame]:
    """Yield at least one frame of at most `rows` rows, fewer if rows are long; drop columns named None."""
    keep = [place for place, name in enumerate(names) if name is not None]
    columns = [names[place] for place in keep]
    most = max(1, min(rows, MOST_CELLS // max(len(columns), 1)))
    index: list[int] = []
    cells: list[Sequence[Any]] = []
    made, size = False, 0
    for record in records:
        index.append(record.number - 2)
        cells.append(record.cells if len(keep) == len(names) else [record.cells[place] for place in keep])
        size += record.size
        if len(cells) >= most or size > FRAME_TEXT:
            yield _frame(cells, index, columns)
            made, size, index, cells = True, 0, [], []
    if cells or not made:
        yield _frame(cells, index, columns)


def _frame(cells: list[Sequence[Any]], index: list[int], columns: list[str | None]) -> pd.DataFrame:
    block = np.empty((len(cells), len(columns)), dtype=object)  # one block, even for very many columns
    if cells and columns:
        block[:] = cells
    return pd.DataFrame(block, index=pd.Index(index, dtype="int64"), columns=columns, dtype=object)
