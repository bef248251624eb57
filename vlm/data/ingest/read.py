"""Read tables as hospitals export them, row by row: cells stay as written, errors name row and column."""

import csv
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vlm.data.ingest.column_names import tidy, unique_header
from vlm.data.ingest.delimited import TableFormat, seems_to_be, table_format
from vlm.data.ingest.excel import read_workbook, workbook_notes
from vlm.data.ingest.frames import Record, frames
from vlm.data.ingest.json_lines import read_json_lines
from vlm.data.ingest.parquet import read_parquet
from vlm.data.size_limits import LONGEST_ROW, TOO_LONG, Lines
from vlm.errors import UserError

_TEXT = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
_JSON = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
_WORKBOOK = (".xlsx", ".xlsm")
KINDS = "a table is .csv, .tsv or .parquet (or .xlsx, .jsonl, .json, .txt, .csv.gz, or a folder of .parquet files)"


@dataclass(frozen=True)
class TableOptions:
    """User options for reading a table."""

    encoding: str | None = None
    """Encoding of a text table; None detects it."""
    sheet: str | None = None
    """Sheet of a workbook; None takes the only one that is not empty."""


def read_table(path: Path, options: TableOptions = TableOptions()) -> pd.DataFrame:
    """Read a whole table into one frame; raises `UserError` as `read_chunks` does."""
    chunks = list(read_chunks(path, options=options))
    return pd.concat(chunks) if len(chunks) > 1 else chunks[0]


def read_chunks(path: Path, rows: int = 50_000, options: TableOptions = TableOptions()) -> Iterator[pd.DataFrame]:
    """Yield frames of up to `rows` rows, fewer if rows are long; at least one frame, even of an empty table.

    Cells of a text table are strings as written; cells of other formats are objects, None for empty. The index is the
    row's position in the whole file: `index + 2` is its spreadsheet number (the header is row 1). Blank rows are
    dropped but counted. Raises `UserError` that names the file and, where it applies, row and column, for a file that
    is not a supported table, a faulty row, and a header that is not unique.
    """
    path = Path(path)
    if path.is_dir():
        shards = sorted(path.glob("*.parquet"), key=lambda shard: shard.name)
        if not shards:
            raise UserError(f"{path}: a folder without .parquet files; {KINDS}")
        return read_parquet(shards, rows)
    if not path.is_file():
        raise UserError(f"{path}: no such table; set data.root and data.table.file")
    name = path.name.lower()
    if name.endswith(".parquet"):
        return read_parquet([path], rows)
    for endings, read in _READERS.items():
        if name.endswith(endings):
            return read(path, rows, options)
    raise UserError(f"{path}: {_looks_like(path)}{KINDS}")


def reading_notes(path: Path, options: TableOptions = TableOptions()) -> tuple[str, ...]:
    """Return notes on the choices made in reading a table, each with its reason."""
    if not path.is_file():
        return ()
    if path.name.lower().endswith(_WORKBOOK):
        return workbook_notes(path, options.sheet)
    return table_format(path, options.encoding).notes if path.name.lower().endswith(_TEXT) else ()


def _looks_like(path: Path) -> str:
    try:
        with path.open("rb") as file:
            kind = seems_to_be(file.read(1 << 16))
    except OSError:
        return ""
    return f"it seems to be {kind}; " if kind else ""


# ------------------------------------------------------------------------------------------- text


def _read_text(path: Path, rows: int, options: TableOptions) -> Iterator[pd.DataFrame]:
    form = table_format(path, options.encoding)
    records = _records(path, form)
    _, header = next(records, (0, []))
    if not header:
        raise UserError(f"{path}: the file is empty")
    blank = [place for place, name in enumerate(header) if not tidy(name)]
    names = unique_header(header, _filled(path, form, blank), str(path))
    yield from frames(_checked(records, len(header), path), names, rows)


def _records(path: Path, form: TableFormat) -> Iterator[tuple[int, list[str]]]:
    """Yield (row number, cells) of every record that is not blank; a record quoted over several lines is one row."""
    csv.field_size_limit(LONGEST_ROW)
    number = 0
    try:
        with Lines(path, form.encoding) as lines:
            text = iter(lines)
            for _ in range(form.skip):
                next(text, None)
            for number, record in enumerate(csv.reader(text, delimiter=form.separator, strict=True), start=1):
                lines.row_ends()
                if lines.has_nul and any("\0" in cell for cell in record):
                    column = next(place for place, cell in enumerate(record, start=1) if "\0" in cell)
                    where = f"{path}: row {number}: column {column}"
                    raise UserError(f"{where} holds a NUL character; is the file damaged?")
                if any(cell and not cell.isspace() for cell in record):
                    yield number, record
    except csv.Error as error:
        raise UserError(f"{path}: row {number + 1}: {_fault(str(error))}") from None
    except UnicodeDecodeError as error:
        way_out = "set data.table.encoding (--encoding), or save it as UTF-8"
        raise UserError(f"{path}: row {number + 1} or later is not in {error.encoding}; {way_out}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read the table: {str(error).splitlines()[0]}") from None


def _fault(message: str) -> str:
    if "end of data" in message:
        return "a quote is opened and never closed"
    if "limit" in message:
        return f"a cell {TOO_LONG}"
    return 'a quote inside a quoted cell must be doubled ("")'


def _checked(records: Iterator[tuple[int, list[str]]], width: int, path: Path) -> Iterator[Record]:
    for number, cells in records:
        if len(cells) != width:
            raise UserError(f"{path}: row {number} has {len(cells)} cells, the header has {width}")
        yield Record(number, cells, sum(map(len, cells)))


def _filled(path: Path, form: TableFormat, blank: list[int]) -> set[int]:
    """Return the unnamed columns that are not empty; stops reading once every one is known to be filled."""
    empty = set(blank)
    if empty:
        records = _records(path, form)
        next(records)
        for _, record in records:
            empty -= {place for place in empty if place < len(record) and record[place].strip()}
            if not empty:
                break
    return set(blank) - empty


_READERS: dict[tuple[str, ...], Callable[[Path, int, TableOptions], Iterator[pd.DataFrame]]] = {
    _TEXT: _read_text,
    _JSON: lambda path, rows, _: read_json_lines(path, rows),
    _WORKBOOK: lambda path, rows, options: read_workbook(path, rows, options.sheet),
}
