"""Words of labels, sexes and units are read as they are meant; what has two meanings is asked about in one line."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.tables import NAN, PRESSURE, table_of
from vlm.config import DataConfig, TableConfig, VitalConfig
from vlm.data.ingest.table import load_table
from vlm.data.labels import LabelReader, parse_labels
from vlm.data.vitals.catalog import CATALOG
from vlm.data.vitals.values import read_value
from vlm.errors import UserError

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
