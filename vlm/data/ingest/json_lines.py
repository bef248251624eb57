"""Read JSON Lines as tables: one object a row, its keys the columns."""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from vlm.data.ingest.column_names import tidy, unique_header
from vlm.data.ingest.frames import Record, frames
from vlm.data.size_limits import Lines
from vlm.errors import UserError

MOST_KEYS = 100_000
MOST_NAMES = 1000
"""Most names of images in one cell."""
SPARSEST = 200
"""Most table cells for each stated cell, in very large tables."""


def read_json_lines(path: Path, rows: int) -> Iterator[pd.DataFrame]:
    """Yield frames of at most `rows` rows, with a column for each key of any row, None where a row lacks it.

    Raises `UserError` that names the row of what is no object of plain values, and for keys that cannot be columns.
    """
    columns = _columns(path)
    keys = list(columns)
    names = unique_header(keys, range(len(keys)), str(path))
    records = (Record(number, [_cell(row.get(key)) for key in keys], size) for number, row, size in _rows(path))
    yield from frames(records, names, rows)


def _cell(value: Any) -> Any:
    """Keep a list of names and a series, a list of pairs; replace another list or an object by an empty object."""
    if isinstance(value, list):
        names = len(value) <= MOST_NAMES and all(isinstance(name, str | None) for name in value)
        pairs = all(isinstance(pair, list) and len(pair) == 2 for pair in value)
        return value if names or pairs else [{}]
    return {} if isinstance(value, dict) else value


def _columns(path: Path) -> dict[str, None]:
    """Collect the keys of all rows, in order of first appearance."""
    keys: dict[str, None] = {}
    rows = stated = 0
    for _, row, _ in _rows(path):
        keys |= dict.fromkeys(row)
        rows, stated = rows + 1, stated + len(row)
        if len(keys) > MOST_KEYS or rows * len(keys) > max(50_000_000, SPARSEST * stated):
            raise UserError(f"{path}: {len(keys):,} different keys in {rows:,} rows; that is no table")
    if not rows:
        raise UserError(f"{path}: the file is empty")
    return keys


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any], int]]:
    """Yield (row number, object, characters); the first line is row 1, for there is no header."""
    try:
        with Lines(path, "utf-8-sig") as lines:
            for line in lines:
                lines.row_ends()
                if line.strip():
                    yield lines.number, _object(line, path, lines.number), len(line)
    except UnicodeDecodeError:
        raise UserError(f"{path}: row {lines.number + 1} or later is not UTF-8, as JSON must be") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read the table: {str(error).splitlines()[0]}") from None


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_unique)
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # raises on a lone surrogate
    except RecursionError:
        raise UserError(f"{path}: row {number} is no JSON object: nested too deep") from None
    except _Twice as twice:
        raise UserError(f"{path}: row {number}: the key {twice} stands there twice") from None
    except UnicodeEncodeError:
        raise UserError(f"{path}: row {number} holds half of a character (\\ud800 to \\udfff alone)") from None
    except ValueError:
        raise UserError(f"{path}: row {number} is no JSON object") from None
    if not isinstance(row, dict):
        raise UserError(f"{path}: row {number} is no JSON object")
    return row


class _Twice(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [tidy(name) for name, _ in pairs]
        raise _Twice(ascii(next(name for name in names if names.count(name) > 1))[:60])
    return row
