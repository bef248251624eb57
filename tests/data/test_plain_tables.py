"""Columns, workbooks and JSON Lines are read as they are meant; what has two meanings is asked about."""

import datetime
import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from tests.tables import table_of
from vlm.config import DataConfig, SectionConfig, TableConfig
from vlm.data.images.find import ImageFolder
from vlm.data.ingest.read import TableOptions, read_table, reading_notes
from vlm.data.ingest.table import load_table
from vlm.errors import UserError
from vlm.inference.many import TableColumns

# --------------------------------------------------------------------------------------------- columns, all faults


@pytest.mark.parametrize(("cell", "message"), [
    ("NA", "patient 'NA' names nobody; the split is by patient"),
    ("n/a", "patient 'n/a' names nobody; the split is by patient"),
    ("unknown", "patient 'unknown' names nobody; the split is by patient"),
    ("1.23E+17", "patient '1.23E+17' is rounded; format the column as text before it is saved"),
    ("4,2E+11", "patient '4,2E+11' is rounded; format the column as text before it is saved")])  # fmt: skip
def test_what_would_make_one_patient_of_many_is_refused(cell: str, message: str, tmp_path: Path) -> None:
    data = table_of(tmp_path, f'patient,edema\np1,1\n"{cell}",0\n', patient="patient", labels=["edema"])
    with pytest.raises(UserError) as error:
        load_table(data)
    assert str(error.value) == f"{tmp_path}/t.csv: row 3: {message}"


def test_a_word_for_nothing_is_no_report_and_no_image(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("report,scan\nNA,NA\nnan,-\nN.A.,none\nNormal.,\n")
    table = TableConfig(file="t.csv", image="scan", report=[SectionConfig("report", [])])
    cohort = load_table(DataConfig(source="table", root=str(tmp_path), table=table))
    assert cohort.dataset["sections"] == [[""], [""], [""], ["Normal."]]
    assert cohort.dataset["images"] == [[]] * 4
    assert f"{tmp_path / 't.csv'}: column report: 3 cells such as 'NA' are read as no report" in cohort.warnings
    images = ImageFolder(tmp_path)
    assert [images.find_if_named(name) for name in ("", "NA", "-")] == [(None, "")] * 3  # as in drafts of a table
    with pytest.raises(UserError, match="no image file"):
        images.find_if_named("scan")


def test_columns_in_another_case_are_taken_and_said(tmp_path: Path) -> None:
    text = "Case ID,PATIENT,Edema ,Report-Text,Split\nc1,p1,1,a,Train\nc2,p2,0,b,TEST\nc3,p3,1,c,Val\n"
    data = table_of(tmp_path, text, id="case_id", patient="patient", labels=["edema"], split="split",
                    report=[SectionConfig("report text", [])])  # fmt: skip
    cohort = load_table(data)
    assert cohort.labels == ("edema",) and cohort.dataset["id"] == ["c1", "c2", "c3"]
    assert cohort.dataset["split"] == ["train", "test", "validation"]
    assert cohort.warnings[0] == (f"{tmp_path}/t.csv: case_id is read from column Case ID, patient is read from column "
                                  "PATIENT, split is read from column Split, edema is read from column Edema, report "
                                  "text is read from column Report-Text")  # fmt: skip
    with pytest.raises(UserError, match=r"t\.csv: column edema can be Edema or EDEMA; write the one that you mean"):
        load_table(table_of(tmp_path, "Edema,EDEMA\n1,0\n", labels=["edema"]))
    found = TableColumns("Image", "case id", None).found_in(["IMAGE", "Case_ID"], tmp_path)
    assert found == TableColumns("IMAGE", "Case_ID", None)


def test_every_fault_up_to_ten_is_named_with_its_row(tmp_path: Path) -> None:
    rows = [f"c{n},p{n},{'high' if n % 2 else 5},{'maybe' if n in (1, 4) else 1},{'learn' if n == 2 else 'train'},0.5"
            for n in range(8)]  # fmt: skip
    rows[6] = "c6,,5,1,train,1.5"
    data = table_of(tmp_path, "id,who,glucose,edema,split,p\n" + "\n".join(rows) + "\n", id="id", patient="who",
                    vitals=["glucose"], labels=["edema"], split="split", probability="p")  # fmt: skip
    with pytest.raises(UserError) as error:
        load_table(data)
    said = str(error.value)
    assert said.startswith(f"{tmp_path}/t.csv: 9 faults: row 3: glucose: 'high' is not a number (mmol/L); row 5: ")
    for fault in ("row 3: edema: 'maybe' is no label", "row 6: edema: 'maybe' is no label", "row 9: glucose: 'high'",
                  "row 8: who is empty; the split is by patient", "row 4: split 'learn' is none of train, validation",
                  "row 8: p: '1.5' is no probability; write 0 to 1 or nothing"):  # fmt: skip
        assert fault in said
    text = "edema\n" + "maybe\n" * 500
    with pytest.raises(UserError) as error:
        load_table(table_of(tmp_path, text, labels=["edema"]))
    said = str(error.value)
    assert said.startswith(f"{tmp_path}/t.csv: 500 faults: row 2: ") and said.count("is no label") == 10
    assert said.endswith("; and 490 more") and "\n" not in said
    table = TableConfig(file="t.csv", images=".", id=None)
    (tmp_path / "t.csv").write_text("image\nno.png\nnor.png\n")
    with pytest.raises(UserError, match=r"2 faults: row 2: .*no\.png.*; row 3: .*nor\.png"):
        load_table(DataConfig(source="table", root=str(tmp_path), table=table))


# ------------------------------------------------------------------------------------------------------- workbooks


def workbook(path: Path, rows: list[list], **sheets: list[list]) -> openpyxl.Workbook:
    book = openpyxl.Workbook()
    book.active.title = "Cases"
    for row in rows:
        book.active.append(row)
    for name, cells in sheets.items():
        sheet = book.create_sheet(name)
        for row in cells:
            sheet.append(row)
    book.save(path)
    return book


def test_a_workbook_is_read_as_it_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "t.xlsx"
    day, moment = datetime.date(2020, 1, 5), datetime.datetime(2020, 1, 5, 12, 30)
    rows = [["case", " Age ", None, "spo2", "seen", "edema"], [7, 54, None, 0.97, day, True], [],
            ["c2", "61 y", None, 95, moment, "no"], [None, None, None, None, None, None]]  # fmt: skip
    book = workbook(path, rows, Empty=[])
    sheet = book.active
    sheet["A2"].number_format, sheet["D2"].number_format = "000", "0%"
    book.save(path)
    frame = read_table(path)
    assert frame.columns.tolist() == ["case", "Age", "spo2", "seen", "edema"] and frame.index.tolist() == [0, 2]
    assert frame.values.tolist() == [["007", 54, "97%", day, True], ["c2", "61 y", 95, moment, "no"]]
    assert reading_notes(path) == ()
    table = TableConfig(file="t.xlsx", image=None, id="case", vitals=["age", "spo2"], labels=["edema"])
    cohort = load_table(DataConfig(source="table", root=str(tmp_path), table=table))
    assert cohort.dataset["vitals"] == [[54, 97], [61, 95]] and cohort.dataset["labels"] == [[1], [0]]


@pytest.mark.parametrize(("form", "value", "shown"), [
    ('0.0" mmol/L"', 6.4, "6.4 mmol/L"), ('0 "mg/dL"', 110, "110 mg/dL"), ('#,##0\\ "/µL"', 7200, "7200 /µL"),
    ('General" kg"', 80.5, "80.5 kg"), ('0.0" °F";-0.0" °F"', 98.6, "98.6 °F"), ("#,##0", 5000, 5000),
    ('0.0""', 6.4, 6.4), ('"n="0', 5, 5)])  # fmt: skip
def test_a_unit_in_the_format_of_a_number_counts(form: str, value: float, shown: Any, tmp_path: Path) -> None:
    book = workbook(tmp_path / "t.xlsx", [["id", "x"], ["a", value]])
    book.active["B2"].number_format = form
    book.save(tmp_path / "t.xlsx")
    assert read_table(tmp_path / "t.xlsx")["x"].tolist() == [shown]


def test_a_workbook_asks_for_its_sheet_and_says_what_is_odd(tmp_path: Path) -> None:
    path = tmp_path / "t.xlsx"
    book = workbook(path, [["id", "age"], ["a", 5], [None, 6]], Old=[["id"], ["z"]])
    with pytest.raises(UserError) as error:
        read_table(path)
    way_out = "name one with data.table.sheet (--sheet)"
    assert str(error.value) == f"{path}: has 2 sheets, Cases, Old; {way_out}"
    assert read_table(path, TableOptions(sheet="old"))["id"].tolist() == ["z"]
    with pytest.raises(UserError, match=r"t\.xlsx: no sheet New; it has Cases, Old"):
        read_table(path, TableOptions(sheet="New"))
    book["Old"].sheet_state = "hidden"
    book.active.merge_cells("A2:A3")
    book.active.row_dimensions[3].hidden = True
    book.save(path)
    assert read_table(path)["id"].tolist() == ["a", "a"]
    assert reading_notes(path) == (
        f"{path}: 1 hidden row read like the others",
        f"{path}: merged cells (1 area) are read as their one value in each of them",
        f"{path}: sheet Cases is read, not Old",
    )
    book.active["B2"] = "=2+3"
    book.save(path)
    with pytest.raises(UserError, match="row 2: B2 holds a formula without a stored value; open the workbook in Excel"):
        read_table(path)


@pytest.mark.parametrize(("data", "message"), [
    (b"id,age\n1,2\n", "cannot be read as an Excel workbook (.xlsx); if it is text, name it .csv"),
    (b"", "cannot be read as an Excel workbook"), (b"PK\x05\x06" + bytes(18), "damaged, or protected by a password"),
])  # fmt: skip
def test_what_is_no_workbook(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_bytes(data)
    with pytest.raises(UserError) as error:
        read_table(tmp_path / "t.xlsx")
    assert str(error.value).startswith(f"{tmp_path}/t.xlsx: ") and message in str(error.value)


# ------------------------------------------------------------------------------------------------------ JSON Lines


def test_json_lines_hold_text_and_one_patient_by_one_name(tmp_path: Path) -> None:
    table = TableConfig(file="t.jsonl", image=None, patient="p", labels=["edema"])
    data = DataConfig(source="table", root=str(tmp_path), table=table)
    (tmp_path / "t.jsonl").write_text('{"p": 7.0, "edema": 1}\n{"p": 7, "edema": 0}\n{"p": "\\ud83d\\ude00"}\n')
    assert load_table(data).dataset["patient"] == ["7", "7", "😀"]
    (tmp_path / "t.jsonl").write_text('{"p": "a", "edema": 1}\n{"p": "\\ud800", "edema": 0}\n')
    with pytest.raises(UserError) as error:
        load_table(data)
    assert str(error.value) == f"{tmp_path}/t.jsonl: row 2 holds half of a character (\\ud800 to \\udfff alone)"


def test_json_lines_are_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [
        {"id": "007", "age": 54},
        {"age": 61.5, "edema": True, "id": None},
        {"id": "c", "note": "a\nb", "tags": [1]},
    ]
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    frame = read_table(path)
    assert frame.columns.tolist() == ["id", "age", "edema", "note", "tags"] and frame.index.tolist() == [-1, 1, 3]
    assert frame.values.tolist() == [["007", 54, None, None, None], [None, 61.5, True, None, None],
                                     ["c", None, None, "a\nb", [{}]]]  # fmt: skip
    for text, message in (('{"a": 1}\n[1]\n', "row 2 is no JSON object"), ('{"a": 1, "a": 2}\n', "the key 'a' stands"),
                          ("", "the file is empty"), ('{"a": "\ufeff"}\n{"a": tru}\n', "row 2 is no")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError) as error:
            read_table(path)
        assert message in str(error.value) and str(error.value).startswith(f"{path}: ")
