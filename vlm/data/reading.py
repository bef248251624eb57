"""Tables as hospitals export them, row by row: every cell as it is written, every fault with its row and column."""

import contextlib
import csv
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vlm.data.table_format import LONGEST_CELL, TableFormat, open_bytes, seems_to_be, table_format
from vlm.errors import UserError

_TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
KINDS = "a table is .csv, .tsv or .parquet (or .txt, .csv.gz, or a folder of .parquet files)"


def read_table(path: Path) -> pd.DataFrame:
    """All of `read_chunks` in one frame; raises `UserError` as it does."""
    chunks = list(read_chunks(path))
    return pd.concat(chunks) if len(chunks) > 1 else chunks[0]


def read_chunks(path: Path, rows: int = 50_000) -> Iterator[pd.DataFrame]:
    """Up to `rows` rows at a time, at least one frame even where there are none.

    Cells of a text table are strings as written; those of Parquet are objects, with None for nothing. The index is
    the row's position in the whole file, so that `index + 2` is the row as a spreadsheet counts it (the header is
    row 1); wholly blank rows are left out and still counted. Raises `UserError` that names the file and, where it
    applies, row and column, for a file that is no such table, a faulty row, and a header that is not unique.
    """
    path = Path(path)
    if path.is_dir():
        shards = sorted(path.glob("*.parquet"), key=lambda shard: shard.name)
        if not shards:
            raise UserError(f"{path}: a folder without .parquet files; {KINDS}")
        return _read_shards(shards, rows)
    if not path.is_file():
        raise UserError(f"{path}: no such table; set data.root and data.table.file")
    if path.suffix.lower() == ".parquet":
        return _read_shards([path], rows)
    if path.name.lower().endswith(_TEXT):
        return _read_text(path, rows)
    raise UserError(f"{path}: {_looks_like(path)}{KINDS}")


def reading_notes(path: Path) -> tuple[str, ...]:
    """What a reader should be told of choices made in reading a table, each with its reason."""
    return table_format(path).notes if path.is_file() and path.name.lower().endswith(_TEXT) else ()


def some_of(columns: Iterable[object], most: int = 20) -> str:
    """Column names for a message; of very many the first ones and their number."""
    names = [str(column) for column in columns]
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _looks_like(path: Path) -> str:
    try:
        with path.open("rb") as file:
            kind = seems_to_be(file.read(1 << 16))
    except OSError:
        return ""
    return f"it seems to be {kind}; " if kind else ""


# ------------------------------------------------------------------------------------------- text


def _read_text(path: Path, rows: int) -> Iterator[pd.DataFrame]:
    form = table_format(path)
    records = _records(path, form)
    _, header = next(records, (0, []))
    if not header:
        raise UserError(f"{path}: the file is empty")
    blank = [place for place, name in enumerate(header) if not _tidy(name)]
    names = _header(header, _filled(path, form, blank), str(path))
    yield from _frames(_checked(records, len(header), path), names, rows)


def _records(path: Path, form: TableFormat) -> Iterator[tuple[int, list[str]]]:
    """(row number, cells) of every record that is not blank; one quoted over several lines is one row."""
    csv.field_size_limit(LONGEST_CELL)
    number = 0
    try:
        with io.TextIOWrapper(open_bytes(path), encoding=form.encoding, newline="") as file:
            for _ in range(form.skip):
                file.readline()
            for number, record in enumerate(csv.reader(file, delimiter=form.separator, strict=True), start=1):
                if form.has_nul and any("\0" in cell for cell in record):
                    column = next(place for place, cell in enumerate(record, start=1) if "\0" in cell)
                    raise UserError(
                        f"{path}: row {number}: column {column} holds a NUL character; is the file damaged?"
                    )
                if any(cell and not cell.isspace() for cell in record):
                    yield number, record
    except csv.Error as error:
        raise UserError(f"{path}: row {number + 1}: {_fault(str(error))}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the table: {str(error).splitlines()[0]}") from None


def _fault(message: str) -> str:
    if "end of data" in message:
        return "a quote is opened and never closed"
    if "limit" in message:
        return "a cell is longer than 16 million characters; is a quote opened and never closed?"
    return 'a quote inside a quoted cell must be doubled ("")'


def _checked(records: Iterator[tuple[int, list[str]]], width: int, path: Path) -> Iterator[tuple[int, list[str]]]:
    for number, record in records:
        if len(record) != width:
            raise UserError(f"{path}: row {number} has {len(record)} cells, the header has {width}")
        yield number, record


def _filled(path: Path, form: TableFormat, blank: list[int]) -> set[int]:
    """Which of the columns without a name hold anything; read until all are known to."""
    empty = set(blank)
    if empty:
        records = _records(path, form)
        next(records)
        for _, record in records:
            empty -= {place for place in empty if place < len(record) and record[place].strip()}
            if not empty:
                break
    return set(blank) - empty


def _tidy(name: object) -> str:
    """A header without byte order marks, line breaks and spaces around it."""
    return " ".join(re.sub("[\ufeff\u200b\u00ad]", "", str(name)).split())


def _header(header: Sequence[object], filled: set[int], where: str) -> list[str | None]:
    """Names of the columns, None for one to leave out; raises `UserError` for a name that stands twice."""
    names = [_tidy(name) or (f"column {place + 1}" if place in filled else None) for place, name in enumerate(header)]
    seen: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if name is not None and seen.setdefault(name, place) != place:
            raise UserError(f"{where}: row 1: column {name} stands twice, as columns {seen[name]} and {place}")
    return names


def _frames(records: Iterator[tuple[int, list[str]]], names: list[str | None], rows: int) -> Iterator[pd.DataFrame]:
    keep = [place for place, name in enumerate(names) if name is not None]
    columns = [names[place] for place in keep]
    index: list[int] = []
    cells: list[list[str]] = []
    made = False
    for number, record in records:
        index.append(number - 2)
        cells.append(record if len(keep) == len(names) else [record[place] for place in keep])
        if len(cells) == rows:
            yield _frame(cells, index, columns)
            made, index, cells = True, [], []
    if cells or not made:
        yield _frame(cells, index, columns)


def _frame(cells: list[list[str]], index: list[int], columns: list[str | None]) -> pd.DataFrame:
    block = np.array(cells, dtype=object).reshape(len(cells), len(columns))  # one block, also of very many columns
    return pd.DataFrame(block, index=pd.Index(index, dtype="int64"), columns=columns, dtype=object)


# ---------------------------------------------------------------------------------------- Parquet


def _read_shards(shards: list[Path], rows: int) -> Iterator[pd.DataFrame]:
    start, columns, empty = 0, None, None
    for path in shards:
        try:
            with pq.ParquetFile(path) as file:
                kept = [name for name in file.schema_arrow.names if not re.fullmatch(r"__index_level_\d+__", name)]
                names = _header(kept, set(range(len(kept))), str(path))
                if columns is not None and set(names) != set(columns):
                    odd = some_of(sorted(map(str, set(names) ^ set(columns))))
                    raise UserError(f"{path}: its columns differ from those of {shards[0].name}: {odd}")
                columns = columns or names
                for batch in file.iter_batches(batch_size=rows, columns=kept):
                    if not batch.num_rows:
                        continue
                    cells = {name: _objects(batch.column(i)) for i, name in enumerate(names)}
                    index = range(start, start + batch.num_rows)
                    yield pd.DataFrame(cells, index=index, dtype=object)[columns]
                    start += batch.num_rows
                empty = pd.DataFrame(columns=columns, dtype=object)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            kind = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(f"{path}: cannot read the table: {kind}") from None
    if start == 0 and empty is not None:
        yield empty


def _objects(column: pa.Array) -> list[object]:
    """Python objects, None for nothing: a whole number stays whole beside a missing one."""
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        with contextlib.suppress(pa.ArrowInvalid):  # text that an older program wrote as bytes
            column = column.cast(pa.large_string())
    return [None if value is None or value != value else value for value in column.to_pylist()]
