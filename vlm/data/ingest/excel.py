"""Read Excel workbooks as tables, in a subprocess with bounded memory and time."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from vlm.data.ingest.column_names import unique_header
from vlm.data.ingest.frames import Record, frames
from vlm.data.size_limits import LONGEST_ROW
from vlm.errors import UserError, require

TOO_MUCH = "takes more than 640 MiB of memory or 5 minutes to read; save the sheet as CSV"


def read_workbook(path: Path, rows: int, sheet: str | None) -> Iterator[pd.DataFrame]:
    """Yield frames of at most `rows` rows of a sheet; the first row that is not blank is the header.

    Raises `UserError` as `read_chunks` does, if several sheets are not empty and none is named, and for a formula
    whose value was never stored.
    """
    with _lines(path, sheet) as lines:
        about = next(lines)
        header = next(lines, None)
        if header is None:
            raise UserError(f"{path}: sheet {about['sheet']}: the sheet is empty")
        filled = about["filled"]
        titles = _cells(header[1], range(1, filled[-1] + 1))
        names = unique_header(titles, [place - 1 for place in filled], str(path))
        records = (Record(number, _cells(cells, filled), sum(len(str(cell)) for _, cell in cells))
                   for number, cells in lines)  # fmt: skip
        yield from frames(records, [names[place - 1] for place in filled], rows)


def workbook_notes(path: Path, sheet: str | None) -> tuple[str, ...]:
    """Return notes on the choices made in reading a workbook."""
    with _lines(path, sheet) as lines:
        return tuple(f"{path}: {note}" for note in next(lines)["notes"])


def _cells(given: list[list[Any]], columns: Iterable[int]) -> list[Any]:
    """Return the values of the given columns of a row, None where empty."""
    values = dict(given)
    return [_value(values.get(column)) for column in columns]


def _value(value: Any) -> Any:
    """Decode a cell; a date is encoded as a list of one ISO string."""
    if not isinstance(value, list):
        return value
    moment = datetime.fromisoformat(value[0])
    return date(moment.year, moment.month, moment.day) if moment == datetime(*moment.timetuple()[:3]) else moment


@contextmanager
def _lines(path: Path, sheet: str | None) -> Iterator[Iterator[Any]]:
    """Stream the subprocess output: an object about the sheet, then [row, [[column, value] …]] of each row."""
    require("openpyxl", f"{path}: save it as CSV, or read it with openpyxl")
    script = Path(__file__).with_name("excel_cells.py")
    command = [sys.executable, "-I", str(script), str(path.resolve()), sheet or ""]
    quiet = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=quiet) as process:
        try:
            yield _parsed(process, path)
        finally:
            process.kill()


def _parsed(process: subprocess.Popen[bytes], path: Path) -> Iterator[Any]:
    assert process.stdout is not None
    ended = False
    while line := process.stdout.readline(8 * LONGEST_ROW):
        if not line.endswith(b"\n"):
            raise UserError(f"{path}: {TOO_MUCH}")
        said = json.loads(line)
        if said == "end":
            ended = True
            break
        if isinstance(said, dict) and "error" in said:
            raise UserError(f"{path}: {said['error']}")
        yield said
    if not ended:
        raise UserError(f"{path}: {TOO_MUCH}")
