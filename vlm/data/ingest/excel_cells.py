"""Print the cells of one workbook sheet as JSON lines; run as a subprocess by `vlm.data.ingest.excel`.

A workbook is a ZIP archive of XML that may decompress without end, so memory and time are bounded here.
"""

import json
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from itertools import repeat
from typing import Any
from xml.parsers import expat

MEMORY, SECONDS = 640 << 20, 300
FREE_UNPACKED, MOST_RATIO = 1 << 25, 100
LARGEST_MERGED = 1_000_000
MOST_COLUMNS, MOST_ROWS = 1 << 14, 1 << 20
"""Excel's own limits."""
_UNIT = re.compile(r'(?:[#0?.,]+|General)[\\ _]*"([^"]*\w[^"]*)"')
"""A number format that ends in a unit: `0.0" mmol/L"`."""


class Refusal(Exception):
    """Reason for not reading a workbook, one line."""


def main(path: str, wanted: str) -> None:
    bound()
    try:
        for line in lines(path, wanted):
            print(json.dumps(line))
        print('"end"')
    except Refusal as refusal:
        print(json.dumps({"error": str(refusal)}))
    except MemoryError:
        sys.exit(1)
    except Exception as error:  # openpyxl may raise anything on a damaged file
        print(json.dumps({"error": f"cannot read the workbook: {type(error).__name__}; save the sheet as CSV"}))


def bound() -> None:
    """Limit memory and CPU time of this process, if the system supports it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def lines(path: str, wanted: str) -> Any:
    """Yield an object about the sheet, then [row, [[column, value] …]] of each row that is not blank."""
    import openpyxl

    refuse_bombs(path)
    book = openpyxl.load_workbook(path, read_only=True)
    outlines = {sheet.title: Outline.of(book, sheet) for sheet in book.worksheets}
    sheet = choose(book, outlines, wanted)
    outline = outlines.pop(sheet.title)
    others = [title for title, other in outlines.items() if other.filled]
    notes = [*outline.notes(), *([f"sheet {sheet.title} is read, not {', '.join(others)}"] if others else [])]
    yield {"sheet": sheet.title, "filled": sorted(outline.filled), "notes": notes}
    stored = openpyxl.load_workbook(path, read_only=True, data_only=True)[sheet.title] if outline.formulas else None
    merged = Merged(outline.merged)
    for row, cells in values_of(sheet, stored):
        filled = merged.fill(row, cells)
        if filled:
            yield [row, sorted(filled.items())]


def values_of(sheet: Any, stored: Any) -> Iterator[tuple[int, dict[int, Any]]]:
    """Yield (row, column → value) of each row; formula values come from `stored`, the same sheet."""
    sheet.reset_dimensions()  # the dimensions in the file may be wrong
    if stored is not None:
        stored.reset_dimensions()
    results = repeat(None) if stored is None else stored.iter_rows(values_only=True)
    for number, (row, values) in enumerate(zip(sheet.iter_rows(), results, strict=False), start=1):
        found = {}
        for column, cell in enumerate(row, 1):
            if holds(cell):
                value = values[column - 1] if values is not None else cell.value
                if value is None:
                    raise Refusal(f"row {number}: {cell.coordinate} holds a formula without a stored value; open the "
                                  "workbook in Excel and save it, or save the sheet as CSV")  # fmt: skip
                found[column] = plain(cell, value)
        yield number, found


@dataclass
class Outline:
    """Structure of a sheet: filled columns, merged areas and more, read from its XML."""

    filled: set[int] = field(default_factory=set)
    """Columns that are not empty."""
    merged: list[tuple[int, int, int, int]] = field(default_factory=list)
    """First column, first row, last column and last row of each merged area."""
    formulas: int = 0
    hidden_rows: int = 0
    hidden_columns: set[int] = field(default_factory=set)
    _column: int = 0

    @classmethod
    def of(cls, book: Any, sheet: Any) -> "Outline":
        """Parse the XML of a sheet in one streaming pass."""
        outline, parser = cls(), expat.ParserCreate()
        parser.StartElementHandler = outline._start
        parser.EntityDeclHandler = _refuse_entities
        with book._archive.open(sheet._worksheet_path) as part:
            parser.ParseFile(part)
        return outline

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        from openpyxl.utils import range_boundaries

        name = tag.rpartition(":")[2]
        is_hidden = attributes.get("hidden") in ("1", "true")
        if name == "row":
            self._column = 0
            self.hidden_rows += is_hidden
            if int(attributes.get("r", 1)) > MOST_ROWS:  # openpyxl yields every row before it
                raise Refusal(f"more than {MOST_ROWS:,} rows; that is no table")
        elif name == "c":
            place = attributes.get("r")
            self._column = range_boundaries(place)[0] if place else self._column + 1
            if self._column > MOST_COLUMNS:
                raise Refusal(f"more than {MOST_COLUMNS:,} columns; that is no table")
        elif name in ("v", "is"):
            self.filled.add(self._column)
        elif name == "f":
            self.formulas += 1
            self.filled.add(self._column)
        elif name == "mergeCell":
            self.merged.append(range_boundaries(attributes["ref"]))
        elif name == "col" and is_hidden:
            self.hidden_columns |= set(range(int(attributes["min"]), min(int(attributes["max"]), MOST_COLUMNS) + 1))

    def notes(self) -> list[str]:
        """Return notes on hidden and merged cells, which are read too."""
        columns = len(self.hidden_columns & self.filled)
        counts = [(self.hidden_rows, "row"), (columns, "column")]
        notes = [f"{n:,} hidden {name}{'s' * (n > 1)} read like the others" for n, name in counts if n]
        areas = f"{len(self.merged):,} area{'s' * (len(self.merged) > 1)}"
        merged = f"merged cells ({areas}) are read as their one value in each of them"
        return [*notes, *([merged] if self.merged else [])]


def _refuse_entities(*_: Any) -> None:
    raise Refusal("cannot read the workbook: its XML declares entities; save the sheet as CSV")


@dataclass
class Merged:
    """Fill the cells of merged areas with the area's value, row by row."""

    areas: list[tuple[int, int, int, int]]
    _starting: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    """First row → first column, last column and last row of the areas that begin there."""
    _open: list[tuple[int, int, int, Any]] = field(default_factory=list)
    """First column, last column, last row and value of the areas that the last row was in."""

    def __post_init__(self) -> None:
        size = sum((right - left + 1) * (low - top + 1) for left, top, right, low in self.areas)
        if size > LARGEST_MERGED:
            raise Refusal(f"more than {LARGEST_MERGED:,} merged cells; unmerge them")
        for left, top, right, low in self.areas:
            self._starting.setdefault(top, []).append((left, right, low))

    def fill(self, row: int, cells: dict[int, Any]) -> dict[int, Any]:
        """Return the cells of a row with the merged areas that it crosses; rows must come in order."""
        begun = [(*area, cells[area[0]]) for area in self._starting.get(row, ()) if area[0] in cells]
        self._open = [area for area in self._open if row <= area[2]] + begun
        for left, right, _, value in self._open:
            cells |= dict.fromkeys(range(left, right + 1), value)
        return cells


def refuse_bombs(path: str) -> None:
    """Refuse an archive that decompresses to far more than a workbook (a ZIP bomb)."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except zipfile.BadZipFile:
        raise Refusal("cannot be read as an Excel workbook (.xlsx); if it is text, name it .csv") from None
    if any(part.flag_bits & 1 for part in parts) or not any(part.filename == "[Content_Types].xml" for part in parts):
        raise Refusal("cannot be read as an Excel workbook: damaged, or protected by a password; save the sheet as CSV")
    packed, unpacked = sum(part.compress_size for part in parts), sum(part.file_size for part in parts)
    if unpacked > max(FREE_UNPACKED, MOST_RATIO * packed):
        raise Refusal(f"unpacks to more than {MOST_RATIO} times its size; save the sheet as CSV")


def choose(book: Any, outlines: dict[str, Outline], wanted: str) -> Any:
    """Return the named sheet, else the only visible sheet that is not empty."""
    names = [sheet.title for sheet in book.worksheets]
    if wanted:
        alike = [name for name in names if name.strip().casefold() == wanted.strip().casefold()]
        if len(alike) != 1:
            raise Refusal(f"no sheet {wanted}; it has {', '.join(names)}")
        return book[alike[0]]
    shown = [sheet for sheet in book.worksheets if outlines[sheet.title].filled and sheet.sheet_state == "visible"]
    if len(shown) > 1:
        names = [sheet.title for sheet in shown]
        raise Refusal(f"has {len(names)} sheets, {', '.join(names)}; name one with data.table.sheet (--sheet)")
    if not shown:
        raise Refusal("has no visible sheet that holds anything; name one with data.table.sheet (--sheet)")
    return shown[0]


def holds(cell: Any) -> bool:
    """Check whether a cell is not empty."""
    return cell.value is not None and not (isinstance(cell.value, str) and not cell.value.strip())


def plain(cell: Any, value: Any) -> Any:
    """Convert a cell's value to what the sheet shows: its number format holds percents, units and leading zeros."""
    form = cell.number_format or "General"
    if isinstance(value, datetime | date):
        return [value.isoformat()]
    if isinstance(value, time | timedelta):
        return str(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if "%" in form:
            return f"{value * 100:.10g}%"
        if unit := _UNIT.fullmatch(form.split(";")[0]):
            return f"{value:.15g} {unit[1].strip()}"
        if isinstance(value, int) and form.strip("0") == "" and len(form) > 1:
            return str(value).zfill(len(form))
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value
    return value if isinstance(value, str | bool) else str(value)


if __name__ == "__main__":
    main(*sys.argv[1:3])
