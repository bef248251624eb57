"""A program of its own that prints the cells of one sheet of a workbook as JSON lines; see `vlm.data.workbook`.

A workbook is a ZIP archive of XML that may unfold without end, so it is read where memory and time are bounded.
"""

import json
import sys
import zipfile
from datetime import date, datetime, time, timedelta
from typing import Any

MEMORY, SECONDS = 1 << 30, 300
FREE_UNPACKED, MOST_RATIO = 1 << 25, 100
LARGEST_MERGED = 100_000


class Refusal(Exception):
    """Why a workbook is not read, in a line."""


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
    except Exception as error:  # whatever the library makes of a damaged file
        print(json.dumps({"error": f"cannot read the workbook: {type(error).__name__}; save the sheet as CSV"}))


def bound() -> None:
    """Bound memory and time of this process, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def lines(path: str, wanted: str) -> Any:
    """An object about the sheet, then [row, [[column, value] …]] of each row that is not blank."""
    import openpyxl

    refuse_bombs(path)
    book = openpyxl.load_workbook(path)
    sheet = choose(book, wanted)
    cells = {place: cell for place, cell in sheet._cells.items() if holds(cell)}  # those that are there alone
    if any(cell.data_type == "f" for cell in cells.values()):
        stored = openpyxl.load_workbook(path, data_only=True)[sheet.title]
        for (row, column), cell in cells.items():
            if cell.data_type == "f":
                cell.value = stored.cell(row, column).value
                if cell.value is None:
                    raise Refusal(f"row {row}: {cell.coordinate} holds a formula without a stored value; open the "
                                  "workbook in Excel and save it, or save the sheet as CSV")  # fmt: skip
    values = {place: plain(cell) for place, cell in cells.items()}
    notes = [*fill_merged(sheet, values), *hidden(sheet, values)]
    others = [other.title for other in book.worksheets if other is not sheet and any(map(holds, other._cells.values()))]
    if others:
        notes.append(f"sheet {sheet.title} is read, not {', '.join(others)}")
    yield {"sheet": sheet.title, "filled": sorted({column for _, column in values}), "notes": notes}
    rows: dict[int, list[list[Any]]] = {}
    for row, column in sorted(values):
        rows.setdefault(row, []).append([column, values[row, column]])
    for row in list(rows):
        yield [row, rows.pop(row)]


def refuse_bombs(path: str) -> None:
    """Refuse an archive that unfolds to far more than a workbook does."""
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


def choose(book: Any, wanted: str) -> Any:
    """The sheet that is named, else the only visible one that holds anything."""
    names = [sheet.title for sheet in book.worksheets]
    if wanted:
        alike = [name for name in names if name.strip().casefold() == wanted.strip().casefold()]
        if len(alike) != 1:
            raise Refusal(f"no sheet {wanted}; it has {', '.join(names)}")
        return book[alike[0]]
    full = [sheet for sheet in book.worksheets if any(map(holds, sheet._cells.values()))]
    shown = [sheet for sheet in full if sheet.sheet_state == "visible"]
    if len(shown) > 1:
        names = [sheet.title for sheet in shown]
        raise Refusal(f"has {len(names)} sheets, {', '.join(names)}; name one with data.table.sheet (--sheet)")
    if not shown:
        raise Refusal("has no visible sheet that holds anything; name one with data.table.sheet (--sheet)")
    return shown[0]


def holds(cell: Any) -> bool:
    """Whether there is anything in a cell."""
    return cell.value is not None and not (isinstance(cell.value, str) and not cell.value.strip())


def plain(cell: Any) -> Any:
    """A cell's value as the sheet shows it: percents and leading zeros are in the format, not in the number."""
    value, form = cell.value, cell.number_format or "General"
    if isinstance(value, datetime | date):
        return [value.isoformat()]
    if isinstance(value, time | timedelta):
        return str(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if "%" in form:
            return f"{value * 100:.10g}%"
        if isinstance(value, int) and form.strip("0") == "" and len(form) > 1:
            return str(value).zfill(len(form))
        return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value
    return value if isinstance(value, str | bool) else str(value)


def fill_merged(sheet: Any, values: dict[tuple[int, int], Any]) -> list[str]:
    """Merged cells show their one value in all of them: it is that of each."""
    areas = [area for area in sheet.merged_cells.ranges if (area.min_row, area.min_col) in values]
    if sum(area.size["rows"] * area.size["columns"] for area in areas) > LARGEST_MERGED:
        raise Refusal(f"more than {LARGEST_MERGED:,} merged cells; unmerge them")
    for area in areas:
        value = values[area.min_row, area.min_col]
        values |= {(row, column): value for row, column in area.cells}
    named = ", ".join(area.coord for area in areas[:3]) + (" …" if len(areas) > 3 else "")
    return [f"merged cells ({named}) are read as their one value in each of them"] if areas else []


def hidden(sheet: Any, values: dict[tuple[int, int], Any]) -> list[str]:
    """Hidden rows and columns are read like the others, and said."""
    from openpyxl.utils import column_index_from_string

    rows = {row for row, _ in values if row in sheet.row_dimensions and sheet.row_dimensions[row].hidden}
    columns = [letters for letters, one in sheet.column_dimensions.items() if one.hidden
               and any(place == column_index_from_string(letters) for _, place in values)]  # fmt: skip
    found = [(len(rows), "row"), (len(columns), "column")]
    return [f"{count:,} hidden {name}{'s' if count > 1 else ''} read like the others" for count, name in found if count]


if __name__ == "__main__":
    main(*sys.argv[1:3])
