"""Tables that exhaust whoever reads them: text, compressed text, JSON Lines and workbooks."""

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import openpyxl

MIB = 1 << 20


def gz(path: Path, *pieces: tuple[bytes, int]) -> None:
    """Write each piece as often as it says, without holding them all."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for piece, times in pieces:
            for _ in range(times):
                file.write(piece)


def endless_line(path: Path) -> None:
    gz(path, (b"id,note\n1,", 1), (b"a" * MIB, 60))


def endless_quote(path: Path) -> None:
    gz(path, (b'id,note\n1,"', 1), (b"a,b\n" * (MIB // 4), 60))


def endless_rows(path: Path) -> None:
    gz(path, (b"id,note\n", 1), (b"1,2\n" * (MIB // 4), 60))


def endless_blank_lines(path: Path) -> None:
    gz(path, (b"id,note\n", 1), (b"\n" * MIB, 60))


def endless_header(path: Path) -> None:
    gz(path, (b"a," * (MIB // 2), 60))


def plain_endless_line(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"id,note\n1,")
        for _ in range(20):
            file.write(b"a" * MIB)


def plain_endless_quote(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'id,note\n1,"')
        for _ in range(20):
            file.write("é\n".encode() * (MIB // 3))


def many_columns(path: Path) -> None:
    names = ",".join(f"c{n}" for n in range(200_000))
    with path.open("w") as file:
        file.write(names + "\n")
        for _ in range(50):
            file.write("," * 199_998 + ",1\n")


def legacy_letters(path: Path) -> None:
    """Nothing but distinct words of an old encoding."""
    with path.open("wb") as file:
        file.write(b"id,note\n")
        for number in range(200_000):
            file.write(f"{number},Größe{number}ä Übelkeit{number}ß\n".encode("cp1252"))


def gzip_name(path: Path) -> None:
    packed = gzip.compress(b"id,note\n1,2\n", mtime=0)
    path.write_bytes(packed[:3] + b"\x08" + packed[4:10] + b"n" * (30 * MIB) + b"\0" + packed[10:])


def gzip_zeros(path: Path) -> None:
    path.write_bytes(gzip.compress(b"id,note\n1,2\n") + bytes(30 * MIB))


def json_endless_line(path: Path) -> None:
    gz(path, (b'{"id": "', 1), (b"a" * MIB, 60))


def array_endless_item(path: Path) -> None:
    gz(path, (b'[{"id": "', 1), (b"a" * MIB, 60))


def array_endless_space(path: Path) -> None:
    gz(path, (b"[", 1), (b" " * MIB, 60))


def array_of_marks(path: Path) -> None:
    path.write_bytes(b'[{"conversations": [{"from": "human", "value": "' + b"<image>" * MIB + b'"}]}]')


def json_deep(path: Path) -> None:
    path.write_bytes(b'{"id": ' + b"[" * (4 * MIB))


def json_objects(path: Path) -> None:
    path.write_bytes(b'{"id": [' + b"{}," * (2 * MIB) + b"{}]}\n")


def json_keys(path: Path) -> None:
    path.write_text("".join(json.dumps({f"k{number}": 1}) + "\n" for number in range(60_000)))


def json_number(path: Path) -> None:
    path.write_text('{"id": 1' + "0" * (4 * MIB) + "}\n")


def workbook_of(sheet: bytes, times: int, end: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        book = openpyxl.Workbook()
        book.active.append(["id"])
        book.save(path)
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in parts.items():
                if name != "xl/worksheets/sheet1.xml":
                    archive.writestr(name, data)
            with archive.open("xl/worksheets/sheet1.xml", "w", force_zip64=True) as part:
                part.write(HEAD)
                for _ in range(times):
                    part.write(sheet)
                part.write(end)

    return write


HEAD = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
END = b"</sheetData></worksheet>"
WIDE_ROW = b"<row>" + b"<c><v>1</v></c>" * 500_000 + b"</row>"
BOMB = b"""<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;"><!ENTITY d "&c;&c;&c;&c;&c;&c;&c;&c;&c;&c;"><!ENTITY e "&d;&d;&d;&d;&d;&d;&d;">
<!ENTITY f "&e;&e;&e;&e;&e;">]>"""


def workbook_laughs(path: Path) -> None:
    workbook_of(b"", 0, END)(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            cell = b'<row r="1"><c r="A1" t="str"><v>' + b"&f;" * 100 + b"</v></c></row>"
            archive.writestr(name, BOMB + HEAD + cell + END if name.endswith("sheet1.xml") else data)


def workbook_merged(path: Path) -> None:
    end = END.replace(b"</worksheet>", b'<mergeCells><mergeCell ref="A1:XFD1048576"/></mergeCells></worksheet>')
    workbook_of(b'<row r="1"><c r="A1"><v>1</v></c></row>', 1, end)(path)


def workbook_of_small_areas(path: Path) -> None:
    areas = b"".join(b'<mergeCell ref="C%d:C%d"/>' % (row, row + 1) for row in range(1, 40_000, 2))
    rows = b"".join(b'<row r="%d"><c r="A%d"><v>1</v></c></row>' % (row, row) for row in range(1, 40_001))
    end = END.replace(b"</worksheet>", b"<mergeCells>" + areas + b"</mergeCells></worksheet>")
    workbook_of(rows, 1, end)(path)


FAR_ROW = b'<row r="1"><c r="A1"><v>1</v></c></row><row r="2000000000"><c r="A2000000000"><v>1</v></c></row>'
NO_TABLE = "that is no table"
BOMBS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "one endless line": ("t.csv.gz", endless_line, "unpacks to more than 100 times its size"),
    "one endless quote": ("t.csv.gz", endless_quote, "unpacks to more than 100 times its size"),
    "endless rows": ("t.csv.gz", endless_rows, "unpacks to more than 100 times its size"),
    "endless blank lines": ("t.tsv.gz", endless_blank_lines, "unpacks to more than 100 times its size"),
    "endless header": ("t.txt.gz", endless_header, "unpacks to more than 100 times its size"),
    "a plain endless line": ("t.csv", plain_endless_line, "line 2 is longer than 8 million characters"),
    "a plain endless quote": ("t.csv", plain_endless_quote, "is longer than 8 million characters"),
    "very many columns": ("t.csv", many_columns, ""),
    "distinct words": ("t.csv", legacy_letters, ""),
    "a gzip with an endless name": ("t.csv.gz", gzip_name, "its gzip header, or what stands behind its data"),
    "a gzip with endless zeros": ("t.csv.gz", gzip_zeros, "its gzip header, or what stands behind its data"),
    "a JSON line without end": ("t.jsonl.gz", json_endless_line, "line 1 is longer than 8 million characters"),
    "a JSON array's item without end": ("t.json.gz", array_endless_item, "row 1 is longer than 8 million characters"),
    "a JSON array of spaces": ("t.json.gz", array_endless_space, "unpacks to more than 100 times"),
    "a conversation of image marks": ("t.json", array_of_marks, "images are not named once each"),
    "deep JSON": ("t.jsonl", json_deep, "row 1 is no JSON object"),
    "very many objects": ("t.jsonl", json_objects, ""),
    "a key a row": ("t.ndjson", json_keys, NO_TABLE),
    "a giant number": ("t.jsonl", json_number, "row 1 is no JSON object"),
    "a workbook that unfolds": ("t.xlsx", workbook_of(b" " * MIB, 60, END), "unpacks to more than 100 times"),
    "a row of very many cells": ("t.xlsx", workbook_of(WIDE_ROW, 1, END), "more than 16,384 columns"),
    "entities of entities": ("t.xlsx", workbook_laughs, "cannot read the workbook"),
    "rows out of nothing but a number": ("t.xlsx", workbook_of(FAR_ROW, 1, END), "more than 1,048,576 rows"),
    "very many merged areas": ("t.xlsx", workbook_of_small_areas, ""),
    "one merged sheet": ("t.xlsx", workbook_merged, "more than 1,000,000 merged cells; unmerge them"),
}  # fmt: skip
"""Name → the file, what writes it, the error; none where it is read."""
