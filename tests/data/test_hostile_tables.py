"""Tables as they leave hospitals: each variant gives the exact rows, or one error that names file, row and column."""

import datetime
import gzip
import itertools
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlm.config import DataConfig, TableConfig
from vlm.data.cohort import read_vitals_columns
from vlm.data.ingest.read import read_chunks, read_table, reading_notes
from vlm.data.ingest.table import load_table
from vlm.data.vitals.catalog import resolve_vitals
from vlm.data.vitals.schema import VitalsSchema
from vlm.errors import UserError
from vlm.faults import Faults

SCHEMA = VitalsSchema(resolve_vitals(["age", "glucose", "temperature"]))
HEADER = ["case", "age", "glucose", "temperature", "note"]
ROWS = [
    ["007", "54", "8.7", "37.5", 'Müller, a; b|c\tsaid "no"'],
    ["c2", "", "6.4", "38.6", "two\nlines"],
    ["c3", "61", "", "", ""],
]
X = np.array([[54, 8.7, 37.5], [np.nan, 6.4, 38.6], [61, np.nan, np.nan]])


def write(rows: list[list[str]], separator: str = ",", end: str = "\n", quote_all: bool = False) -> str:
    def cell(text: str) -> str:
        needed = quote_all or any(letter in text for letter in f'{separator}"\r\n')
        return '"' + text.replace('"', '""') + '"' if needed else text

    return "".join(separator.join(map(cell, row)) + end for row in rows)


def vitals_of(path: Path) -> np.ndarray:
    frame = read_table(path)
    columns = [column for column in frame.columns if SCHEMA.names_in(column)]
    faults = Faults()
    vitals, _ = read_vitals_columns(frame, str(path), SCHEMA, columns, faults)
    faults.raise_any()
    return np.array(vitals)


def good_texts() -> Iterator[tuple[str, str, bytes, list[str]]]:
    """(name, file name, bytes, notes as the file must give them)."""
    encodings = {"utf-8": "", "utf-8-sig": "", "utf-16": "", "utf-32": "", "cp1252": "Windows-1252"}
    for (encoding, note), separator, end, quote, spaced in itertools.product(
        encodings.items(), ",;\t|", ("\n", "\r\n", "\r"), (False, True), (False, True)
    ):
        header = [f"  {name}\u00a0" for name in HEADER] if spaced else HEADER
        data = write([header, *ROWS], separator, end, quote).encode(encoding)
        yield f"{encoding}-{separator!r}-{end!r}-{quote}-{spaced}", "t.csv", data, [note] if note else []
    text = write([HEADER, *ROWS])
    for name in ("t.tsv", "t.txt", "t.CSV"):
        yield name, name, text.encode(), []
    yield "gz", "t.csv.gz", gzip.compress(text.encode()), []
    yield "no last line end", "t.csv", text.rstrip("\n").encode(), []
    yield "two byte order marks", "t.csv", b"\xef\xbb\xbf" * 2 + text.encode(), []
    yield "sep line", "t.csv", ("sep=;\r\n" + write([HEADER, *ROWS], ";", "\r\n")).encode(), []
    yield (
        "mixed ends",
        "t.csv",
        (write([HEADER], end="\r\n") + write(ROWS[:1], end="\r") + write(ROWS[1:])).encode(),
        [],
    )
    for separator in ",;\t|":
        blank = [[*row, ""] for row in [HEADER, *ROWS]]
        yield f"blank last column {separator!r}", "t.csv", write(blank, separator).encode(), []
        blank = [[*row[:2], "", "", *row[2:]] for row in [HEADER, *ROWS]]
        yield f"blank columns {separator!r}", "t.csv", write(blank, separator).encode(), []


GOOD = list(good_texts())


@pytest.mark.parametrize(("name", "file", "data", "notes"), GOOD, ids=[case[0] for case in GOOD])
def test_ways_of_writing_one_table(name: str, file: str, data: bytes, notes: list[str], tmp_path: Path) -> None:
    path = tmp_path / file
    path.write_bytes(data)
    frame = read_table(path)
    assert list(frame.columns) == HEADER and list(frame.index) == [0, 1, 2]
    assert frame.values.tolist() == ROWS
    np.testing.assert_allclose(vitals_of(path), X, rtol=1e-6)
    given = reading_notes(path)
    assert len(given) == len(notes) and all(
        word in note and str(path) in note for word, note in zip(notes, given, strict=True)
    )


CELLS = [  # header, cells as written, what they are read as
    ("glucose", ["6,4", "6.4", "6·4", "'6.4", '="6.4"', "6.4 H", "6.4*", "６.４", "+6.4", "0.64e1", " 6.4 ",
    "6.3-6.5"], 6.4),
    ("Glucose", ["<6.4", ">6.4", "6.4+", "6.4 mmol/L", "6.4mmol/l", "115.302 mg/dL", "115.302 mg/dl H"], 6.4),
    ("glucose_mg_dl", ["115.302", "115,302", "6.4 mmol/L"], 6.4),
    ("Blood glucose (mg/dL)", ["115.302", "115.302*"], 6.4), ("GLU [mmol/l]", ["6.4", "6,40"], 6.4),
    ("glucose", ["", "NA", "n/a", "-", "–", ".", "nd", "not done", "pending", "#N/A", "NULL", "?",
    "unknown"], math.nan),
    ("glucose", ["900", "-3", "0"], math.nan), ("Temp [°F]", ["99.5", "99,5", "37.5 C"], 37.5),
    ("temp_f", ["99.5"], 37.5), ("Temperature (Celsius)", ["37.5", "99.5 °F"], 37.5),
    ("temperature", ["99.5"], math.nan),
    ("Age (months)", ["18", "1.5 years"], 1.5), ("age", ["018M", "18 months", "1.5 y"], 1.5),
]  # fmt: skip
READ = [(header, cell, number, end) for header, cells, number in CELLS for cell in cells for end in ("\n", "\r\n")]


@pytest.mark.parametrize(("header", "cell", "number", "end"), READ)
def test_ways_of_writing_one_value(header: str, cell: str, number: float, end: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(write([["case", header], ["1", cell], ["2", ""]], ";", end).encode())
    x = vitals_of(tmp_path / "t.csv")
    vital = SCHEMA.position(SCHEMA.names_in(header)[0])
    np.testing.assert_allclose(x[:, vital], [number, np.nan], rtol=1e-5)


LINE = "case,age,glucose,temperature,note\n"
BAD = [
    ("empty", b"", "the file is empty"), ("spaces", b" \n\n \t\n", "the file is empty"),
    ("bom", b"\xef\xbb\xbf", "is empty"),
    ("utf-16 bom", b"\xff\xfe", "is empty"),
    ("duplicate", b"age,case,age\n1,2,3\n", "row 1: column age stands twice, as columns 1 and 3"),
    ("duplicate by spaces", "age,case, age\u00a0\n1,2,3\n".encode(), "column age stands twice"),
    ("short row", (LINE + "1,2,3,4,5\n1,2,3\n").encode(), "row 3 has 3 cells, the header has 5"),
    ("long row", (LINE + "1,2,3,4,5\n\n1,2,3,4,5,6\n").encode(), "row 4 has 6 cells, the header has 5"),
    ("long after quoted lines", (LINE + '1,2,3,4,"a\nb\nc"\n1,2\n').encode(), "row 3 has 2 cells"),
    ("unclosed", (LINE + '1,2,3,4,5\n1,2,3,4,"a\n1,2,3,4,5\n').encode(), "row 3: a quote is opened and never closed"),
    ("inner quote", (LINE + '1,2,3,4,"a "b" c"\n').encode(), "row 2: a quote inside a quoted cell must be doubled"),
    ("nul", (LINE + "1,2,3,4,a\0b\n").encode(), "row 2: column 5 holds a NUL"),
    ("xlsx", b"PK\x03\x04\x14\0[Content_Types].xml" + bytes(99), "an Excel workbook; save it as CSV"),
    ("zip", b"PK\x03\x04\x14\0cases.csv" + bytes(99), "a ZIP archive"),
    ("xls", b"\xd0\xcf\x11\xe0" + bytes(99), "Excel"),
    ("gzip", gzip.compress(b"a,b\n1,2\n"), "a gzip file; name it .csv.gz"), ("pdf", b"%PDF-1.7\n", "a PDF"),
    ("png", b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG"), ("jpeg", b"\xff\xd8\xff\xe0" + bytes(50), "a JPEG"),
    ("parquet", b"PAR1" + bytes(50), "a Parquet file"), ("html", b"<html><table>", "HTML"), ("xml", b"<?xml ?>", "XML"),
    ("json", b'[{"age": 3}]', "JSON"), ("sqlite", b"SQLite format 3\0" + bytes(90), "SQLite"),
    ("binary", bytes(range(256)) * 20, "a binary file"),
    ("utf-16 without mark", LINE.encode("utf-16-le"), "UTF-16 without"),
    ("in no encoding", LINE.encode() + b"M\xfcller\x81,2,3,4,5\n", "line 2 is not UTF-8, and in no encoding"),
    ("broken utf-16", b"\xff\xfea\0,\0\x00\xd8\x00\xd8\n\0", "not in the encoding that its byte order mark states"),
]  # fmt: skip
WORDS = {
    "high": "is not a number", "2020-01-05": "looks like a date", "1.2.2020": "looks like a date",
    "inf": "not a finite",
    "1e999": "not a finite", "7.8 stone": "unit stone is none of", "12:30": "is not a number", "9-8": "no range",
    "05-12": "no range", "125/80": "unit /80", "#REF!": "is not a number", "7 8": "unit 8", "38²": "unit ^2",
    "TRUE": "is not a number", "<": "is not a number", "1,2,3": "is not a number", "--5": "is not a number",
    "x" * 200_000: "is not a number", "\u202e": "", "0x1F": "unit x1F", "(5)": "is not a number", "5±1": "unit ±1",
}  # fmt: skip
BAD += [
    (f"{word[:12]!r} in {column}", write([["age", "glucose"], ["50", "7"], [], row]).encode(),
     f"row 4: {column}: {message}")
    for word, message in WORDS.items() if message
    for column, row in (("age", [word, "7"]), ("glucose", ["50", word]))
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "message"), BAD, ids=[case[0] for case in BAD])
def test_a_fault_is_one_line_with_its_place(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        vitals_of(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < len(str(path)) + 250
    place, _, reason = message.rpartition(": ")
    assert place in text and reason in text


TYPED = [
    ("int", pa.array([6, None]), 6), ("float", pa.array([6.5, None]), 6.5),
    ("float nan", pa.array([6.5, math.nan]), 6.5),
    ("float32", pa.array([6.5, None], pa.float32()), 6.5), ("decimal", pa.array([Decimal("6.5"), None]), 6.5),
    ("text", pa.array(["6,5", None]), 6.5), ("dictionary", pa.array(["6.5", None]).dictionary_encode(), 6.5),
    ("binary text", pa.array([b"6.5", None]), 6.5), ("large text", pa.array(["6.5", ""], pa.large_string()), 6.5),
    ("null", pa.nulls(2), math.nan), ("bool", pa.array([True, None]), "true or false"),
    ("date", pa.array([datetime.date(2020, 1, 5), None]), "a date"), ("list", pa.array([[6.5], None]), "of type list"),
    ("timestamp", pa.array([datetime.datetime(2020, 1, 5), None]), "a date"),
    ("binary", pa.array([b"\xff", None]), "of type bytes"),
    ("struct", pa.array([{"a": 1}, None]), "of type dict"), ("inf", pa.array([math.inf, None]), "not a finite"),
    ("duration", pa.array([datetime.timedelta(1), None]), "of type timedelta"),
    ("uint8", pa.array([6, None], pa.uint8()), 6),
    ("time", pa.array([datetime.time(6), None]), "a date"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "column", "expected"), TYPED, ids=[case[0] for case in TYPED])
def test_types_of_parquet(name: str, column: pa.Array, expected: object, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"case": ["007", "2"], " glucose ": column}), path)
    assert read_table(path)["case"].tolist() == ["007", "2"]
    if isinstance(expected, str):
        with pytest.raises(UserError) as error:
            vitals_of(path)
        assert str(error.value).startswith(f"{path}: row 2: glucose: ") and expected in str(error.value)
    else:
        np.testing.assert_allclose(vitals_of(path)[:, 1], [expected, np.nan])


def test_shards_are_one_table_and_keep_whole_numbers(tmp_path: Path) -> None:
    for shard, ids in enumerate(([1, None, 3], [], [4, 5])):
        frame = pd.DataFrame({"id": pd.array(ids, dtype="Int64"), "b": 1.5}, index=[f"x{i}" for i in range(len(ids))])
        frame.to_parquet(tmp_path / f"part-{shard}.parquet")
    frame = read_table(tmp_path)
    assert frame["id"].tolist() == [1, None, 3, 4, 5] and list(frame.index) == [0, 1, 2, 3, 4]
    assert [len(chunk) for chunk in read_chunks(tmp_path, rows=2)] == [2, 1, 2]
    pd.DataFrame({"other": [1]}).to_parquet(tmp_path / "part-3.parquet")
    with pytest.raises(
        UserError, match=r"part-3\.parquet: its columns differ from those of part-0\.parquet: b, id, other"
    ):
        read_table(tmp_path)


@pytest.mark.parametrize(("name", "message"), [("d", "a folder without .parquet"), ("no.csv", "no such table"),
                                               ("t.xlsx", "an Excel workbook"), ("t.doc", "a table is .csv"),
                                               ("t.parquet", "cannot read the table"),
                                               ("t.csv.gz", "cannot read")])  # fmt: skip
def test_what_is_no_table(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "t.xlsx").write_bytes(b"PK\x03\x04\x14\0[Content_Types].xml")
    for other in ("t.doc", "t.parquet", "t.csv.gz"):
        (tmp_path / other).write_bytes(b"plain text, no more\n")
    with pytest.raises(UserError) as error:
        read_table(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ") and message in str(error.value)


def test_a_broken_gzip_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n" * 9999)[:-20])
    with pytest.raises(UserError, match="cannot read the table"):
        read_table(tmp_path / "t.csv.gz")
    damaged = bytearray(gzip.compress(b"a,b\n1,2\n" * 9999))
    damaged[10:60] = bytes(50)
    (tmp_path / "t.csv.gz").write_bytes(damaged)
    with pytest.raises(UserError, match="cannot read the table"):
        read_table(tmp_path / "t.csv.gz")


def test_blank_rows_and_nameless_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\n,age,\n\n0,50,\n,,\n  , ,\n1,x,\n")
    frame = read_table(path)
    assert list(frame.columns) == ["column 1", "age"] and list(frame.index) == [2, 5]
    faults = Faults()
    read_vitals_columns(frame, "t.csv", SCHEMA, ["age"], faults)
    with pytest.raises(UserError, match=r"row 7: age: 'x' is not a number"):
        faults.raise_any()


def test_a_header_alone_has_columns_and_no_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n")
    frame = read_table(tmp_path / "t.csv")
    assert list(frame.columns) == ["a", "b"] and len(frame) == 0


def test_chunks_are_the_table(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{n},x\n" for n in range(10)))
    chunks = list(read_chunks(tmp_path / "t.csv", rows=5))
    assert [list(chunk.index) for chunk in chunks] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_hundred_thousand_columns(separator: str, tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(100_000)]
    (tmp_path / "t.csv").write_text(write([names, ["1"] * len(names)], separator))
    frame = read_table(tmp_path / "t.csv")
    assert frame.shape == (1, 100_000) and frame["c99999"].tolist() == ["1"]
    data = DataConfig(
        source="table", root=str(tmp_path), table=TableConfig(file="t.csv", image=None, vitals=["glucose"])
    )
    with pytest.raises(UserError) as error:
        load_table(data)
    assert "no column for the vital glucose" in str(error.value) and "99980 more" in str(error.value)


def test_a_very_long_cell(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('age,note\n50,"' + "a,\n" * 1_000_000 + '"\n')
    assert len(read_table(tmp_path / "t.csv")["note"].iloc[0]) == 3_000_000


def test_a_table_in_the_wrong_unit_is_suspected(tmp_path: Path) -> None:
    rows = [[f"{value}"] for value in [*np.linspace(96, 103, 30).round(1), 37.5, 38.0]]
    (tmp_path / "t.csv").write_text(write([["temperature"], *rows]))
    table = TableConfig(file="t.csv", image=None, vitals=["temperature"])
    cohort = load_table(DataConfig(source="table", root=str(tmp_path), table=table))
    assert np.isfinite(np.array(cohort.dataset["vitals"])).sum() == 2
    assert ("30 of 32 values of temperature are outside 30 to 45 °C but would fit as °F; write temperature [°F] in the "
            "header or declare unit: °F") in cohort.warnings[0]  # fmt: skip
    (tmp_path / "t.csv").write_text(write([["temperature [mmHg]"], *rows]))
    with pytest.raises(
        UserError, match=r"temperature \[mmHg\]: its unit is none of those that temperature takes: °C, °F"
    ):
        load_table(DataConfig(source="table", root=str(tmp_path), table=table))


def test_there_are_enough_variants() -> None:
    assert len(GOOD) + len(READ) + len(BAD) + len(TYPED) >= 300
