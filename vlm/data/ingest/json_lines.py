"""Read JSON Lines, or a JSON array, as tables: one object a row, its keys the columns."""

import io
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from vlm.data.ingest.column_names import tidy, unique_header
from vlm.data.ingest.conversations import flat_row
from vlm.data.ingest.frames import Record, frames
from vlm.data.size_limits import LONGEST_ROW, TOO_LONG, Lines, open_bytes
from vlm.errors import UserError

MOST_KEYS = 100_000
MOST_NAMES = 1000
"""Most names of images in one cell."""
SPARSEST = 200
"""Most table cells for each stated cell, in very large tables."""
PIECE = 1 << 20
"""Characters of an array read at a time."""
_SPACE = re.compile(r"[ \t\r\n]*")


def read_json_lines(path: Path, rows: int) -> Iterator[pd.DataFrame]:
    """Yield frames of at most `rows` rows, with a column for each key of any row, None where a row lacks it.

    A conversation becomes columns (`flat_row`). Raises `UserError` that names the row of what is no object of plain
    values, and for keys that cannot be columns.
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
    """Yield (row number, object, characters); the first is row 1, for there is no header."""
    number, values = 0, _items if path.name.lower().endswith((".json", ".json.gz")) else _lines
    try:
        for number, row, size in values(path):
            if not isinstance(row, dict):
                raise UserError(f"{path}: row {number} is no JSON object")
            yield number, flat_row(row, f"{path}: row {number}"), size
    except UnicodeDecodeError:
        raise UserError(f"{path}: row {number + 1} or later is not UTF-8, as JSON must be") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read the table: {str(error).splitlines()[0]}") from None


def _lines(path: Path) -> Iterator[tuple[int, Any, int]]:
    """Yield (line number, value, characters) of each line that is not blank."""
    with Lines(path, "utf-8-sig") as lines:
        for line in lines:
            lines.row_ends()
            if line.strip():
                with _one_line(path, lines.number):
                    row = json.loads(line, object_pairs_hook=_unique)
                    _refuse_half(row, "\\u" in line)
                yield lines.number, row, len(line)


def _items(path: Path) -> Iterator[tuple[int, Any, int]]:
    """Yield (number, object, characters) of the objects of an array; a file that begins with one is JSON Lines."""
    with io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="") as file:
        array, number, mark = _Array(file), 0, ","
        if array.peek() == "{":
            yield from _lines(path)
            return
        if array.take() != "[":
            raise UserError(f"{path}: neither an array of objects, [{{…}}, {{…}}], nor one object a line")
        if array.peek() == "]":
            mark = array.take()
        while mark == ",":
            number += 1
            with _one_line(path, number):
                row, size = array.item(f"{path}: row {number}")
            yield number, row, size
            mark = array.take()
        if mark != "]" or array.peek():
            raise UserError(f"{path}: after row {number} stands no comma and no ], or more than ]; is the file whole?")


class _Array:
    """Read the items of a JSON array in pieces, so that memory holds no more than the longest."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, "", 0

    def peek(self) -> str:
        """Return the next character that is no space; empty at the end of the file."""
        while (end := _SPACE.match(self._text, self._at).end()) == len(self._text):  # type: ignore[union-attr]
            self._at = end
            if not self._more():
                return ""
        self._at = end
        return self._text[end]

    def take(self) -> str:
        """Read the next character that is no space."""
        mark = self.peek()
        self._at += len(mark)
        return mark

    def item(self, where: str) -> tuple[Any, int]:
        """Read the next object and its characters; raises `ValueError` if there is none, `UserError` if it is long."""
        if self.peek() != "{":
            raise ValueError
        while True:
            try:
                row, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if len(self._text) - self._at <= LONGEST_ROW and self._more():
                    continue
                end = len(self._text)
                if end - self._at <= LONGEST_ROW:
                    raise
            if end - self._at > LONGEST_ROW:
                raise UserError(f"{where} {TOO_LONG}")
            _refuse_half(row, self._text.find("\\u", self._at, end) >= 0)
            size, self._at = end - self._at, end
            return row, size

    def _more(self) -> bool:
        rest = self._text[self._at :]
        piece = self._file.read(max(PIECE, len(rest)))  # doubled, so that a long item takes linear time
        self._text, self._at = rest + piece, 0
        return bool(piece)


@contextmanager
def _one_line(path: Path, number: int) -> Iterator[None]:
    """Turn a fault of a row into one line that names it."""
    try:
        yield
    except UnicodeDecodeError:
        raise
    except RecursionError:
        raise UserError(f"{path}: row {number} is no JSON object: nested too deep") from None
    except _Twice as twice:
        raise UserError(f"{path}: row {number}: the key {twice} stands there twice") from None
    except UnicodeEncodeError:
        raise UserError(f"{path}: row {number} holds half of a character (\\ud800 to \\udfff alone)") from None
    except ValueError:
        raise UserError(f"{path}: row {number} is no JSON object") from None


def _refuse_half(row: Any, escaped: bool) -> None:
    """Raise `UnicodeEncodeError` for a lone surrogate, which only an escape can write."""
    if escaped:
        json.dumps(row, ensure_ascii=False).encode()


class _Twice(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [tidy(name) for name, _ in pairs]
        raise _Twice(ascii(next(name for name in names if names.count(name) > 1))[:60])
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
