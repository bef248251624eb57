"""What a table says in plain words is read as it is meant; what has two meanings is asked about in one line."""

import datetime
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas as pd
import pytest

from vlm.config import DataConfig, SectionConfig, TableConfig, VitalConfig
from vlm.data.images.find import ImageFolder
from vlm.data.ingest.read import TableOptions, read_table, reading_notes
from vlm.data.ingest.sources import load_cohort
from vlm.data.ingest.table import load_table
from vlm.data.labels import LabelReader, parse_labels
from vlm.data.prepare.check import CheckOptions, check_table
from vlm.data.prepare.columns import find_roles, missing
from vlm.data.prepare.row_checks import read_numbers
from vlm.data.vitals.catalog import CATALOG, resolve_vitals
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.values import is_missing, read_value
from vlm.errors import UserError
from vlm.inference.fhir import from_fhir
from vlm.inference.many import TableColumns
from vlm.inference.vitals_argument import read_vitals

NAN = math.nan
SCHEMA = VitalsSchema(tuple(CATALOG.values()))
PRESSURE = VitalsSchema((CATALOG["systolic"], CATALOG["diastolic"]))

# ---------------------------------------------------------------------------------------------------------- labels

LABELS = [
    (["yes", "no", "YES", " No "], [1, 0, 1, 0]), (["Y", "N"], [1, 0]), (["Yes.", "no."], [1, 0]),
    (["true", "False"], [1, 0]),
    (["T", "F"], [1, 0]), (["positive", "negative", "Pos", "neg"], [1, 0, 1, 0]), (["present", "absent"], [1, 0]),
    (["detected", "not detected"], [1, 0]), (["+", "-", "+"], [1, 0, 1]), (["+", "−"], [1, 0]),
    (["1", "0", "1.0", "0.0", "1,0", "+1"], [1, 0, 1, 0, 1, 1]), ([1, 0, 1.0, True, False], [1, 0, 1, 1, 0]),
    (["ja", "nein"], [1, 0]), (["oui", "non"], [1, 0]), (["sí", "no"], [1, 0]), (["да", "нет"], [1, 0]),
    (["положительный", "отрицательный"], [1, 0]), (["есть", "отсутствует"], [1, 0]), (["有", "无"], [1, 0]),
    (["阳性", "阴性"], [1, 0]), (["あり", "なし"], [1, 0]), (["예", "아니오"], [1, 0]), (["نعم", "لا"], [1, 0]),
    (["evet", "hayır"], [1, 0]), (["tak", "nie"], [1, 0]), (["ναι", "όχι"], [1, 0]),
    (["1", "unknown", "", "NA", "n/a", "?", "not done", "неизвестно", None, np.nan, pd.NA, "missing"],
     [1, *[NAN] * 11]),
    (["WAHR", "FALSCH"], [1, 0]), (["VRAI", "FAUX"], [1, 0]), (["VERDADERO", "FALSO"], [1, 0]),
    (["VERO", "FALSO"], [1, 0]),
    (["ИСТИНА", "ЛОЖЬ"], [1, 0]), (["PRAWDA", "FAŁSZ"], [1, 0]), (["真", "假"], [1, 0]), (["J", "N"], [1, 0]),
    (["+ve", "-ve"], [1, 0]), (["выявлено", "не выявлено"], [1, 0]), (["存在", "不存在"], [1, 0]),
    (['="1"', '="0"'], [1, 0]),
    (["Так", "Ні"], [1, 0]), (["1", "N.A.", "k. A.", "not applicable", "нд", "N/K", "不适用"], [1, *[NAN] * 6]),
    (["θετικός", "αρνητικός"], [1, 0]), (["ΘΕΤΙΚΟΣ", "ΑΡΝΗΤΙΚΟΣ"], [1, 0]), (["✓", "✗"], [1, 0]), (["☑", "☐"], [1, 0]),
    (["S", "N"], [1, 0]), (["да", "не"], [1, 0]), (["áno", "nie"], [1, 0]), (["taip", "ne"], [1, 0]),
    (["ja", "nee"], [1, 0]), (["kyllä", "ei"], [1, 0]), (["evet", "HAYIR"], [1, 0]), (["VAR", "YOK"], [1, 0]),
    (["כן", "לא"], [1, 0]), (["إيجابي", "سلبي"], [1, 0]), (["ใช่", "ไม่ใช่"], [1, 0]), (["네", "아니요"], [1, 0]),
    (["有", "没有"], [1, 0]), (["检出", "未检出"], [1, 0]), (["vorhanden", "nicht vorhanden"], [1, 0]),
    (["présente", "absente"], [1, 0]), (["presente", "assente"], [1, 0]), (["выявлен", "не выявлен"], [1, 0]),
    (["полож.", "отриц."], [1, 0]), (["имеется", "не имеется"], [1, 0]), (["pozytywny", "negatywny"], [1, 0]),
    (["1", "not assessed", "unavailable", "не опр."], [1, *[NAN] * 3]),
    (["1", "±", "probable", "inconclusive", "fraglich", "сомнительно", "疑い", "可疑"], [1, *[NAN] * 7]),
]  # fmt: skip


@pytest.mark.parametrize(("cells", "values"), LABELS, ids=[str(cells[:2]) for cells, _ in LABELS])
def test_words_for_a_label(cells: list, values: list) -> None:
    np.testing.assert_array_equal(parse_labels(pd.Series(cells, dtype=object, name="edema"), "t.csv"), values)


@pytest.mark.parametrize(("uncertain", "value"), [("ignore", NAN), ("positive", 1.0), ("negative", 0.0), (None, NAN)])
@pytest.mark.parametrize("cell", ["-1", -1, "-1.0", "−1", "uncertain", "Equivocal"])
def test_minus_one_is_uncertain_as_it_is_declared(uncertain: str | None, value: float, cell: Any) -> None:
    column = pd.Series(["1", "0", cell], dtype=object, name="edema")
    np.testing.assert_array_equal(parse_labels(column, "t.csv", uncertain), [1, 0, value])


def table_of(folder: Path, text: str, **changes: Any) -> DataConfig:
    (folder / "t.csv").write_text(text, encoding="utf-8")
    return DataConfig(source="table", root=str(folder), table=TableConfig(file="t.csv", image=None, **changes))


def test_what_minus_one_was_taken_for_is_said(tmp_path: Path) -> None:
    data = table_of(tmp_path, "edema\n1\n0\n-1\n-1\n", labels=["edema"])
    (said,) = [text for text in load_table(data).warnings if " -1" in text]
    assert said == (f"{tmp_path}/t.csv: edema: -1, or a word for uncertain, in 2 rows is taken as unknown; "
                    "data.table.uncertain says otherwise: ignore, positive or negative")  # fmt: skip
    declared = table_of(tmp_path, "edema\n1\n0\n-1\n", labels=["edema"], uncertain="positive")
    cohort = load_table(declared)
    assert cohort.dataset["labels"] == [[1], [0], [1]] and not any(" -1" in text for text in cohort.warnings)


ASKED = [
    ("edema\n1\n-1\n", "t.csv: row 3: edema: -1 stands in a column without 0, so it can mean negative or uncertain; "
     "write 0, or set data.table.uncertain to ignore, positive or negative"),
    ("edema\n1\n0\n-\n", "t.csv: row 4: edema: '-' can mean negative or nothing; write 0 or nothing"),
    ("edema\n1\n2\n", "t.csv: row 3: edema: '2' is no label; write 1, 0 or nothing for unknown"),
    ("edema\n1\nmild\n", "t.csv: row 3: edema: 'mild' is no label; write 1, 0 or nothing for unknown"),
    ("edema\n1\n0.7\n", "t.csv: row 3: edema: '0.7' is no label; write 1, 0 or nothing for unknown"),
    ("edema\nx\n1\nseen\n", "t.csv: 2 faults: row 2: edema: 'x' is no label; write 1, 0 or nothing for unknown; row 4: "
     "edema: 'seen' is no label; write 1, 0 or nothing for unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), ASKED)
def test_a_label_with_two_meanings_is_asked_about(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_table(table_of(tmp_path, text, labels=["edema"]))
    assert str(error.value) == f"{tmp_path}/{message}"


def test_a_sign_of_another_part_of_the_table_counts() -> None:
    from vlm.faults import Faults

    reader, faults = LabelReader("edema"), Faults()
    np.testing.assert_array_equal(reader.read(pd.Series(["-", ""]), "t.csv", faults), [0, NAN])
    np.testing.assert_array_equal(reader.read(pd.Series(["+"]), "t.csv", faults), [1])
    assert reader.finish(faults) == [] and not faults.count


# ------------------------------------------------------------------------------------------------- sexes and units

SEXES = {
    0: "F f F. Female W weiblich femme ж Ж жен жен. женский Женщина 女 女性 여 mujer donna kobieta žena أنثى K θήλυ "
    "weibl. Fem. ♀ 女孩 девочка ΓΥΝΑΙΚΑ γυναίκα Θ женск. жінка женски زن נ nữ kadın KADIN femminile Ž "
    "moteris femeie naine sieviete ženska žensko 女士",
    1: "M m male Mann männlich homme H м муж муж. мужской 男 男性 남 hombre uomo mężczyzna muž ذكر "
    "männl. masc. ♂ 男孩 мальчик άνδρας Άνδρας ΑΝΔΡΑΣ E мужск. мъж чоловік чоловіча مرد ז nam maschile mand mees "
    "vyras bărbat moški muško mezczyzna 先生",
}


@pytest.mark.parametrize(("index", "word"), [(index, word) for index, words in SEXES.items() for word in words.split()])
def test_words_for_a_sex(index: int, word: str) -> None:
    assert read_value(CATALOG["sex"], word, "here") == index
    assert read_value(VitalConfig("sex", categories=["Female", "Male"]), f" {word} ", "here") == index


@pytest.mark.parametrize(
    "word",
    [
        "O",
        "U",
        "X",
        "other",
        "unknown",
        "divers",
        "u",
        "неизвестно",
        "不明",
        "not specified",
        "N.A.",
        "k. A.",
        "未说明",
    ],
)
def test_a_sex_that_is_neither_is_missing_unless_it_is_declared(word: str) -> None:
    assert math.isnan(read_value(CATALOG["sex"], word, "here"))
    if word in ("O", "X", "other", "divers"):
        assert read_value(VitalConfig("sex", categories=["F", "M", "Other"]), word, "here") == 2


def test_a_column_of_h_and_m_is_asked_about(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load_table(table_of(tmp_path, "sex\nH\nM\n", vitals=["sex"]))
    assert str(error.value) == (f"{tmp_path}/t.csv: sex: H and M stand in one column, so M can be mujer or male; write "
                                "female and male")  # fmt: skip
    rows = load_table(table_of(tmp_path, "sex\nH\nF\n", vitals=["sex"])).dataset["vitals"]
    assert rows == [[1], [0]]


UNITS = [
    ("glucose", "6,4 ммоль/л", 6.4), ("glucose", "110 мг/дл", 6.105682), ("glucose", "110 mg/dl", 6.105682),
    ("glucose", "110 mg dL-1", 6.105682), ("glucose", "6.4 mmol·L⁻¹", 6.4), ("glucose", "110 mg per dL", 6.105682),
    ("systolic", "120 мм рт. ст.", 120), ("systolic", "120 мм рт.ст", 120), ("systolic", "120 mm Hg", 120),
    ("systolic", "120 毫米汞柱", 120), ("systolic", "16 кПа", 120.00992), ("age", "54 лет", 54), ("age", "54 года", 54),
    ("age", "54 г.", 54), ("age", "54岁", 54), ("age", "54歳", 54), ("age", "54 ans", 54), ("age", "54 Jahre", 54),
    ("age", "54 años", 54), ("age", "54 years old", 54), ("age", "54 y/o", 54),
    ("age", "6 мес", 0.5), ("age", "6 мес.", 0.5), ("age", "6 Monate", 0.5),
    ("temperature", "37,5 °С", 37.5), ("temperature", "37.5 ℃", 37.5), ("creatinine", "90 мкмоль/л", 90),
    ("creatinine", "90 µmol/l", 90), ("creatinine", "90 μmol/L", 90), ("creatinine", "90 umol/L", 90),
    ("creatinine", "1.0 mg/dl", 88.42), ("heart_rate", "80 уд/мин", 80), ("heart_rate", "80 уд./мин", 80),
    ("heart_rate", "80 次/分", 80), ("haemoglobin", "130 г/л", 13), ("leukocytes", "7,5 10^9/л", 7.5),
    ("leukocytes", "7,5 тыс/мкл", 7.5), ("alt", "30 Ед/л", 30), ("alt", "0,5 мккат/л", 30), ("weight", "80 кг", 80),
    ("height", "1,80 м", 180), ("height", "180 см", 180), ("crp", "5 мг/л", 5), ("spo2", "97 %", 97),
    ("glucose", "8,7 ммоль/литр", 8.7), ("glucose", "8.7 mmol/Litre", 8.7), ("glucose", "8.7 毫摩尔/升", 8.7),
    ("glucose", "110 毫克/分升", 6.105682), ("haemoglobin", "13 gm/dl", 13), ("haemoglobin", "130 克/升", 13),
    ("creatinine", "88 micromol/L", 88), ("creatinine", "88 微摩尔/升", 88), ("heart_rate", "72 次/分钟", 72),
    ("heart_rate", "72 ударов в минуту", 72), ("heart_rate", "72 уд. в мин.", 72), ("weight", "70 公斤", 70),
    ("weight", "3200 гр", 3.2), ("height", "172 厘米", 172), ("leukocytes", "7200 кл/мкл", 7.2),
    ("leukocytes", "7.2 thou/mm3", 7.2), ("age", "54 yr old", 54), ("leukocytes", "7.2 х10^9/л", 7.2),
    ("temperature", "36,6°", 36.6), ("temperature", "36.8 grados", 36.8), ("age", "54 jaar", 54), ("age", "54 år", 54),
    ("age", "54 роки", 54), ("age", "54 років", 54), ("age", "54 ετών", 54), ("age", "54살", 54), ("age", "6ヶ月", 0.5),
    ("age", "54 Jahre alt", 54), ("alt", "30 Е/л", 30), ("creatinine", "88 mkmol/l", 88),
    ("haemoglobin", "13,5 g%", 13.5),
    ("heart_rate", "72 уд. в 1 мин.", 72), ("heart_rate", "72 lpm", 72), ("weight", "80 kilos", 80),
    ("crp", "↑ 12.5", 12.5), ("crp", "↑12.5", 12.5), ("glucose", "٦،٤", 6.4), ("platelets", "250.000 /µl", 250),
]  # fmt: skip


@pytest.mark.parametrize(("name", "cell", "number"), UNITS)
def test_units_of_other_countries(name: str, cell: str, number: float) -> None:
    assert read_value(CATALOG[name], cell, "here") == pytest.approx(number, rel=1e-4)


@pytest.mark.parametrize(("header", "cell", "number"), [
    ("Глюкоза", "6,4", None), ("glucose, ммоль/л", "6,4", 6.4), ("glucose (мг/дл)", "110", 6.105682),
    ("GLUCOSE", "6.4", 6.4), (" Glucose ", "6.4", 6.4), ("Glucose [mg/dL]", "110", 6.105682), ("'glucose'", "6.4", 6.4),
    ("\ufeffglucose", "6.4", 6.4), ("glucose\u00a0", "6.4", 6.4), ("glucose mmol L-1", "6.4", 6.4)])  # fmt: skip
def test_headers_with_a_unit_or_in_another_case(header: str, cell: str, number: float | None, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f'case;"{header}"\n1;{cell}\n', encoding="utf-8")
    table = TableConfig(file="t.csv", image=None, vitals=["glucose"])
    data = DataConfig(source="table", root=str(tmp_path), table=table)
    if number is None:
        with pytest.raises(UserError, match="no column for the vital glucose; the table has case, Глюкоза"):
            load_table(data)
    else:
        assert load_table(data).dataset["vitals"][0] == pytest.approx([number], rel=1e-4)


PRESSURES = ["120/80", "120-80", "120–80", "120/80 (95)", "120/80(95)", "120 / 80 mmHg", "120\\80", "120:80", "120 80",
             "120|80", "120 over 80", "120 на 80", "120/80 mmHg (95)", "120/80 (MAP 93)", "120-80 мм рт. ст.",
             "120/80 mm Hg", "120/80*", "16.0/10.67 kPa", "BP 120/80", "АД 120/80", "120 mmHg / 80 mmHg", "120⁄80",
             "120∕80", "120x80", "120 × 80 mmHg", "120 х 80", "120 to 80", "120 zu 80", "120 por 80", "120/80(H)",
             "120/80 [95]", "120/80 MAP 93", "120/80 MAP: 93", "120/80 mmHg, MAP 93", "120-80 mmHg [93]"]  # fmt: skip


@pytest.mark.parametrize("cell", PRESSURES)
def test_ways_of_writing_a_blood_pressure(cell: str) -> None:
    assert PRESSURE.parse({"bp": cell})[0] == pytest.approx([120, 80], rel=1e-3)


@pytest.mark.parametrize(
    "cell",
    ["80-120", "120/80/95", "120/80 (130)", "120", "12/08/2020", "120 80 60", "high", "120/80 MAP 130", "120/80 [70]"],
)
def test_what_is_no_blood_pressure_is_refused(cell: str) -> None:
    with pytest.raises(UserError) as error:
        PRESSURE.parse({"bp": cell}, "row 2")
    assert str(error.value) == (f"row 2: bp: '{cell}' is no blood pressure; write systolic/diastolic in mmHg, such as "
                                "125/80")  # fmt: skip


@pytest.mark.parametrize("cell", ["80/120", "118/120 mmHg", "70/110"])
def test_a_blood_pressure_the_wrong_way_round_is_refused(cell: str) -> None:
    with pytest.raises(UserError) as error:
        PRESSURE.parse({"bp": cell}, "row 2")
    assert str(error.value) == f"row 2: bp: '{cell}': the systolic is below the diastolic; write such as 125/80"


@pytest.mark.parametrize("cell", ["5.000 /µL", "5,000/mm3", "7.200 кл/мкл"])
def test_a_count_of_cells_with_a_point_is_asked_about(cell: str) -> None:
    with pytest.raises(UserError, match=r"here: '.*' can be read as \d\.\d{3} or \d{4}; write one of these"):
        read_value(CATALOG["leukocytes"], cell, "here")
    assert read_value(CATALOG["leukocytes"], "5.000", "here") == 5, "of thousands a point is the decimal one"


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
    assert cohort.dataset["image"] == [None] * 4
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
                                     ["c", None, None, "a\nb", []]]  # fmt: skip
    for text, message in (('{"a": 1}\n[1]\n', "row 2 is no JSON object"), ('{"a": 1, "a": 2}\n', "the key 'a' stands"),
                          ("", "the file is empty"), ('{"a": "\ufeff"}\n{"a": tru}\n', "row 2 is no")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError) as error:
            read_table(path)
        assert message in str(error.value) and str(error.value).startswith(f"{path}: ")


# ----------------------------------------------------------------------------------------------- vitals in a command

GIVEN = {"glucose": "8.7", "bp": "145/90"}


@pytest.mark.parametrize("text", ["glucose=8.7, bp=145/90", "glucose: 8.7; bp: 145/90", "glucose=8.7;bp=145/90;",
                                  "glucose：8.7；bp：145/90",
                                  "glucose=8.7，bp=145/90",
                                  "glucose = 8.7 , bp = 145/90,", "glucose: 8.7, bp: 145/90", "glucose=8.7\nbp=145/90",
                                  "{glucose: 8.7, bp: 145/90}", "{'glucose': 8.7, 'bp': '145/90'}"])  # fmt: skip
def test_vitals_in_a_line(text: str) -> None:
    assert read_vitals(text) == GIVEN


def test_vitals_as_json_and_yaml_and_with_decimal_commas(tmp_path: Path) -> None:
    assert read_vitals('{"glucose": 8.7, "bp": "145/90"}') == {"glucose": 8.7, "bp": "145/90"}
    assert read_vitals("glucose: 8,7; bp: 145/90") == {"glucose": "8,7", "bp": "145/90"}
    assert SCHEMA.parse(read_vitals("glucose: 8,7 ммоль/л; age: 58 лет"))[0][0] == pytest.approx(8.7)
    (tmp_path / "v.yaml").write_text("glucose: 8.7\nbp: 145/90\n")
    assert read_vitals(str(tmp_path / "v.yaml")) == {"glucose": 8.7, "bp": "145/90"}


@pytest.mark.parametrize(("text", "message"), [
    ("glucose=8,7", "--vitals: glucose=8,7: a comma stands between two values; write glucose=8.7 with a point, or a "
     "thousand without a comma; or ; between the values"),
    ("glucose", "--vitals: 'glucose' is no name=value; write \"glucose=8.7, bp=145/90\""),
    ("glucose=8.7,bp", "--vitals: 'bp' is no name=value; write \"glucose=8.7, bp=145/90\""),
    ("glucose=1; glucose=2", "--vitals: glucose is given twice"),
    ('{"glucose": 1, "glucose": 2}', "--vitals: no valid JSON: the key 'glucose' stands there twice"),
    ("[" * 4000, "--vitals: no valid JSON: nested deeper than 16 levels")])  # fmt: skip
def test_wrong_vitals_in_a_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_vitals(text)
    assert str(error.value) == message


PATIENT = {"resourceType": "Patient", "id": "1", "gender": "female", "birthDate": "1956-04-30"}
GLUCOSE = {
    "resourceType": "Observation", "status": "final", "effectiveDateTime": "2020-04-29",
    "code": {"coding": [{"system": "http://loinc.org", "code": "14749-6"}]}, "subject": {"reference": "Patient/1"},
    "valueQuantity": {"value": 8, "unit": "mmol/L"},
}  # fmt: skip


def test_sex_and_age_of_a_fhir_patient() -> None:
    day = "age is that of 2020-04-29, the newest Observation"
    for values in (
        [PATIENT, GLUCOSE],
        {"resourceType": "Bundle", "entry": [{"resource": one} for one in (GLUCOSE, PATIENT)]},
    ):
        assert from_fhir(values, SCHEMA) == ({"sex": "F", "age": 63.0, "glucose": 8}, (day,))
    young = [{**PATIENT, "gender": "male", "birthDate": "2019-03-29"}, GLUCOSE]
    assert from_fhir(young, SCHEMA)[0] == {"sex": "M", "age": pytest.approx(13 / 12), "glucose": 8}
    values, notes = from_fhir([{**PATIENT, "gender": "other", "birthDate": "1956"}, GLUCOSE], SCHEMA)
    assert values == {"age": 63.0, "glucose": 8}
    assert notes == (
        "the Patient's gender is other: sex is not given",
        f"{day}, from the middle of what the birthDate says",
    )
    alone, (said,) = from_fhir(PATIENT, SCHEMA)
    today = datetime.date.today()
    assert alone == {"sex": "F", "age": float(today.year - 1956 - ((today.month, today.day) < (4, 30)))}
    assert said == f"age is that of {today.isoformat()}, today"
    only = VitalsSchema((CATALOG["glucose"],))
    assert from_fhir([PATIENT, GLUCOSE], only) == ({"glucose": 8}, ())


@pytest.mark.parametrize(("values", "message"), [
    ([PATIENT, PATIENT], "obs.json: 2 Patients; give one"),
    ([{**PATIENT, "id": "2"}, GLUCOSE], "obs.json: the Observations are of another patient than the Patient"),
    ([{**PATIENT, "gender": "w"}], "obs.json: entry 1: the gender of the Patient is none of male, female"),
    ([{**PATIENT, "birthDate": "30.4.1956"}], "the birthDate of the Patient is not one that FHIR knows, such as"),
    ([{**PATIENT, "birthDate": "1956-02-30"}], "the birthDate of the Patient is no day of the calendar"),
    ([{**PATIENT, "birthDate": "2021-01-01"}, GLUCOSE], "entry 1: the Patient is born after 2020-04-29")])  # fmt: skip
def test_a_broken_patient_is_one_line(values: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        from_fhir(values, SCHEMA, "obs.json")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_age_of_a_patient_who_died_or_is_not_born() -> None:
    for died in ("2000-06", "2000"):
        late = {**PATIENT, "birthDate": "1940-01-01", "deceasedDateTime": died}
        assert from_fhir([late, GLUCOSE], SCHEMA)[0]["age"] == 60, "a month or year alone is a day of death too"
    dead = {**PATIENT, "birthDate": "1940-01-01", "deceasedDateTime": "2000-06-01T10:00:00Z"}
    assert from_fhir(dead, SCHEMA) == ({"sex": "F", "age": 60.0}, ("age is that of 2000-06-01, the day of death",))
    for born in ("2021", "2020-05"):
        with pytest.raises(UserError, match="entry 1: the Patient is born after 2020-04-29"):
            from_fhir([{**PATIENT, "birthDate": born}, GLUCOSE], SCHEMA)
    assert from_fhir([{**PATIENT, "birthDate": "2020"}, GLUCOSE], SCHEMA)[0]["age"] == 0


# ------------------------------------------------------------------------------------- nothing to learn, said at load

HEAD = "id,patient,age,edema,report,split\n"
SUBSTANCE = [
    ("".join(f"c{n},p{n},{50 + n},{n % 2},,{s}\n" for n, s in enumerate(["train"] * 4 + ["validation", "test"])),
     "no report in 4 training cases: the text cannot be learned"),
    ("".join(f"c{n},p{n},{50 + n},{n % 2},Normal.,{s}\n" for n, s in enumerate(["train"] * 4 + ["validation", "test"])),
     "one and the same report in all 4 training cases that have one"),
    ("".join(f"c{n},p{n},{50 + n},1,r{n},{s}\n" for n, s in enumerate(["train"] * 4 + ["validation", "test"])),
     "label edema is the same in all 4 training cases that have it, so nothing can be learned of it"),
    ("".join(f"c{n},p{n},{50 + n},unknown,r{n},{s}\n" for n, s in enumerate(["train"] * 4 + ["validation", "test"])),
     "label edema is unknown in all 4 training cases, so nothing can be learned of it"),
    ("".join(f"c{n},p{n},,{n % 2},r{n},{s}\n" for n, s in enumerate(["train"] * 4 + ["validation", "test"])),
     "vital age is unknown in all 4 training cases, so nothing can be learned of it"),
    ("".join(f"c{n},p{n},50,{n % 2},r{n},{s}\n" for n, s in enumerate(["train"] * 4 + ["validation", "test"])),
     "vital age is the same in all 4 training cases that have it, so nothing can be learned of it"),
    ("".join(f"c{n},p{n},{50 + n},{n % 2},r{n},train\n" for n in range(4)),
     "every case is in the split train, none in validation or test"),
    ("".join(f"c{n},p{n},{50 + n},{n % 2},r{n},{s}\n" for n, s in enumerate(["train"] * 4 + ["test"])),
     "no case is in the split validation"),
    ("c0,p0,50,1,same,train\nc1,p0,50,1,same,train\nc2,p2,60,0,other,train\nc3,p3,61,0,b,validation\nc4,p4,62,1,c,test\n",
     "1 row repeats an earlier one in all but its id: the same image, values, labels and report"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "message"), SUBSTANCE, ids=[message[:40] for _, message in SUBSTANCE])
def test_what_cannot_be_learned_is_said_by_training_and_check_alike(rows: str, message: str, tmp_path: Path) -> None:
    data = table_of(tmp_path, HEAD + rows, id="id", patient="patient", vitals=["age"], labels=["edema"], split="split",
                    report=[SectionConfig("report", [])])  # fmt: skip
    assert [text for text in load_cohort(data).warnings if not text.startswith(str(tmp_path))] == [message]
    options = CheckOptions(None, {"patient": "patient", "split": "split"}, ["edema"], resolve_vitals(["age"]),
                           reports=["report"])  # fmt: skip
    notices = check_table(tmp_path / "t.csv", options).notices
    assert [notice.message for notice in notices if notice.check == "substance"] == [message]


def test_check_says_what_training_says(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = "".join(f"{n},{n % 2 if n else 'maybe'},Größe normal - Übersicht,train\n" for n in range(30))
    path.write_bytes(("id,edema,report,split\n" + rows.replace("29,1", "29,-1")).encode("cp1252"))
    table = TableConfig(file="t.csv", image=None, labels=["edema"], report=[SectionConfig("report", [])], split="split")
    with pytest.raises(UserError) as error:
        load_table(DataConfig(source="table", root=str(tmp_path), table=table))
    notices = check_table(path, CheckOptions(None, {"split": "split"}, ["edema"], reports=["report"])).notices
    said = {notice.check: f"{path}: {notice.message}" for notice in notices}
    assert said["unreadable_label"] == str(error.value)
    assert (said["reading"],) == reading_notes(path) and "Windows-1252" in said["reading"]
    command = [sys.executable, "-m", "vlm.cli", "check", str(path), "--encoding", "utf-8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "line 2 is not in utf-8, which data.table.encoding" in done.stderr


def test_a_gender_that_the_vital_names_is_given() -> None:
    three = VitalsSchema((VitalConfig("sex", categories=["Female", "Male", "Other"]),))
    assert from_fhir([{**PATIENT, "gender": "other"}], three)[0] == {"sex": "Other"}
    values, notes = from_fhir([{**PATIENT, "gender": "unknown"}], three)
    assert values == {} and notes == ("the Patient's gender is unknown: sex is not given",)


# ---------------------------------------------------------------------- check reads as training reads


def test_check_counts_missing_cells_and_classes_by_the_rule_of_training() -> None:
    cells = ["n.a.", "N. A.", "k. A.", '="NA"', "\u200bNA", "не опр.", "5", None, np.nan, 5.0]
    assert missing(pd.Series(cells, dtype=object)).tolist() == [is_missing(cell) for cell in cells] == [
        *[True] * 6, False, True, True, False]  # fmt: skip
    found = pd.Series(["edema"] * 12 + ["n.a."] * 12 + ["normal"] * 12, dtype=object)
    frame = pd.DataFrame({"patient": [f"p{row}" for row in range(36)], "finding": found})
    labels = find_roles(frame, {}).labels
    assert sorted(labels) == ["edema", "normal"] and np.isnan(labels["edema"][12:24]).all()


@pytest.mark.parametrize(("name", "unit", "cell"), [
    ("sex", "", "1"), ("sex", "", 0.0), ("sex", "", "w"), ("leukocytes", "/µL", "5.000"), ("leukocytes", "/µL", "7200"),
    ("glucose", "mg/dL", "110"), ("glucose", "", "1e3"), ("glucose", "", "６,４"), ("glucose", "", True),
    ("glucose", "", "1_000"), ("glucose", "", "n.a."), ("glucose", "", 6.4), ("age", "", [1])])  # fmt: skip
def test_check_reads_a_vital_as_training_does(name: str, unit: str, cell: Any) -> None:
    values, broken = read_numbers(pd.Series(["", cell, cell], dtype=object), CATALOG[name], unit)
    try:
        np.testing.assert_array_equal(values, [NAN, *[read_value(CATALOG[name], cell, "", unit)] * 2])
        assert broken == {}
    except UserError:
        assert np.isnan(values).all() and sorted(broken) == [1, 2]


def test_a_spreadsheet_and_utf16_that_are_not_read_say_the_way_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.ods", "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
    with pytest.raises(UserError, match=r"an OpenDocument spreadsheet; save it as \.xlsx or CSV"):
        read_table(tmp_path / "t.ods")
    for codec in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        (tmp_path / "t.csv").write_bytes("id,note\n1,ü\n".encode(codec))
        with pytest.raises(UserError, match=rf"set data\.table\.encoding \(--encoding\) to {codec}$"):
            read_table(tmp_path / "t.csv")
        assert read_table(tmp_path / "t.csv", TableOptions(codec))["note"].tolist() == ["ü"], "the way out is one"
