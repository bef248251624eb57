"""What a cell of a hospital's table is read as."""

import datetime
import math
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.config import VitalConfig
from vlm.data.vitals.catalog import CATALOG
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.values import read_value
from vlm.errors import UserError
from vlm.inference.command import read_vitals

FREE = VitalConfig("score")


@pytest.mark.parametrize(
    ("name", "cell", "number"),
    [
        ("spo2", "91-92", 91.5), ("spo2", "91 – 92 %", 91.5), ("spo2", "91 to 93", 92), ("age", "50+", 50),
        ("temperature", "38·6", 38.6), ("temperature", "38,6", 38.6), ("glucose", "6,4", 6.4), ("crp", "<0.5", 0.5),
        ("crp", "> 100", 100), ("crp", "≤5", 5), ("crp", "<=5", 5), ("temperature", "37.5 °C", 37.5),
        ("temperature", "99.5 F", 37.5), ("temperature", "99,5°F", 37.5), ("temperature", "37.5ºC", 37.5),
        ("temperature", "37.5 ℃", 37.5), ("glucose", "156 mg/dl", 8.6589672), ("glucose", "8.7mmol/L", 8.7),
        ("spo2", "91%", 91), ("spo2", "0.97 fraction", 97), ("age", "6 months", 0.5), ("age", "018M", 1.5),
        ("age", "054Y", 54), ("leukocytes", "7.5 x10^9/L", 7.5), ("leukocytes", "7.5 ×10⁹/L", 7.5),
        ("leukocytes", "7500 /µL", 7.5), ("leukocytes", "7.5 K/uL", 7.5),
        ("creatinine", "1,234", 1234), ("platelets", "1 234", 1234), ("platelets", "1'234,5", 1234.5),
        ("temperature", "38,123", 38.123), ("troponin", "1,234,567 pg/mL", 1234567), ("troponin", "1.234,5", 1234.5),
        ("glucose", "7.8 H", 7.8), ("glucose", "7.8*", 7.8), ("glucose", "7.8 (H)", 7.8), ("glucose", "7.8HH", 7.8),
        ("glucose", "8.1 mmol/L H", 8.1), ("glucose", "H 8.1", 8.1), ("glucose", "7.8 ↑", 7.8),
        ("glucose", "'7.8", 7.8), ("glucose", '="7.8"', 7.8), ("glucose", "７．８", 7.8),
        ("glucose", "\xa07.8\u202f", 7.8),
        ("days_since_onset", "−3", -3), ("days_since_onset", "+3", 3), ("crp", "1.5E+02", 150), ("crp", ".5", 0.5),
        ("crp", "5.", 5), ("crp", "٣٫٥", 3.5), ("haemoglobin", "130 g/L", 13), ("creatinine", "1.0 mg/dL", 88.42),
        ("height", "1.80 m", 180), ("weight", "100 lbs", 45.359237), ("heart_rate", "80 bpm", 80), ("crp", "007", 7),
    ],
)  # fmt: skip
def test_a_cell_is_read_as_a_clinician_would(name: str, cell: str, number: float) -> None:
    assert read_value(CATALOG[name], cell, "here") == pytest.approx(number)


@pytest.mark.parametrize("cell", ["N/A", "-", "nd", "Not done", "pending", "#N/A", "NULL", ".", "—", " ", "\\N", "NaN",
                                  None, pd.NA, pd.NaT, float("nan"), np.float32("nan"), "'", "\u200b"])  # fmt: skip
def test_nothing_is_missing(cell: object) -> None:
    assert math.isnan(read_value(CATALOG["glucose"], cell, "here"))


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [
        ("troponin", "1,234", "can be read as 1.234 or 1234"), ("platelets", "1,234", "can be read as"),
        ("glucose", "2020-01-05", "looks like a date"),
        ("glucose", "5.1.2020", "looks like a date"), ("glucose", "2-Jan", "looks like a date"),
        ("glucose", datetime.date(2020, 1, 5), "is a date"), ("glucose", pd.Timestamp("2020-01-05"), "is a date"),
        ("glucose", True, "true or false"), ("glucose", b"7.8", "of type bytes"), ("glucose", [7.8], "of type list"),
        ("glucose", "inf", "not a finite"), ("glucose", "1e999", "not a finite"), ("glucose", 10**400, "not a finite"),
        ("glucose", "38²", "unit ^2 is none of"), ("glucose", "7½", "is none of"), ("glucose", "05-12", "no range"),
        ("glucose", "8-7", "no range"), ("glucose", "7.8 stone", "unit stone is none of those that glucose takes"),
        ("glucose", "12:30", "is not a number"), ("glucose", "1.2.3", "date, not a number"),
        ("systolic", "125/80", "unit /80 is none of"), ("glucose", "high", "is not a number (mmol/L)"),
        ("glucose", "7" * 500, "is not a number"), ("ph", "7.4 mmol/L", "takes: none"), ("sex", "1", "none of F, M"),
        ("sex", 0, "none of F, M"), ("sex", "q", "none of F, M"),
    ],
)  # fmt: skip
def test_a_cell_that_is_no_value_says_why(name: str, cell: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_value(CATALOG[name], cell, "cases.csv: row 7: it")
    assert message in str(error.value) and str(error.value).startswith("cases.csv: row 7: it: ")
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize(("cell", "index"), [("F", 0), (" female ", 0), ("W", 0), ("Ｍ", 1), ("MALE", 1), ("man", 1)])
def test_words_of_a_category(cell: str, index: int) -> None:
    assert read_value(CATALOG["sex"], cell, "here") == index
    assert read_value(VitalConfig("sex", categories=["Female", "Male"]), cell, "here") == index


@pytest.mark.parametrize("cell", [7.5, np.float32(7.5), Decimal("7.5"), np.float64(7.5)])
def test_typed_numbers_are_numbers(cell: object) -> None:
    assert read_value(CATALOG["glucose"], cell, "here") == 7.5
    assert read_value(CATALOG["glucose"], cell, "here", "mg/dL") == pytest.approx(7.5 * 0.0555062)


@pytest.mark.parametrize(
    ("header", "cell", "number"),
    [
        ("glucose_mg_dl", "156", 8.6589672), ("Glucose (mg/dL)", "156", 8.6589672),
        ("Glucose, mg/dl", "156", 8.6589672),
        ("glucose", "156 mg/dL", 8.6589672), ("Glucose (mg/dL)", "8.7 mmol/L", 8.7),
        ("Blood\xa0Glucose mg/dL", "156", 8.6589672),
        ("Temp [°F]", "99.5", 37.5), ("temp_f", "99.5", 37.5), ("SpO2 (fraction)", "0.97", 97), ("SpO2 (%)", "97", 97),
        ("pO2 saturation", "97", 97), ("o2sat", "97", 97), ("Age (months)", "6", 0.5), ("WBC [10^3/uL]", "7.5", 7.5),
    ],
)  # fmt: skip
def test_a_header_may_state_the_unit(header: str, cell: str, number: float) -> None:
    schema = VitalsSchema(tuple(CATALOG.values()))
    x, _ = schema.parse({header: cell})
    assert x[np.isfinite(x)] == pytest.approx([number], rel=1e-5)


def test_a_pressure_in_one_cell() -> None:
    schema = VitalsSchema((CATALOG["systolic"], CATALOG["diastolic"]))
    for cell in ("125/80", "125 / 80 mmHg", "125/80mmHg", "125/80 H", "16.6653 / 10.6658 kPa"):
        assert schema.parse({"Blood Pressure": cell})[0] == pytest.approx([125, 80], rel=1e-4)
    assert schema.parse({"BP (mmHg)": "125/-"})[0] == pytest.approx([125, math.nan], nan_ok=True)


def test_the_command_line_reads_as_tables_do() -> None:
    schema = VitalsSchema(tuple(CATALOG.values()))
    x, _ = schema.parse(read_vitals("glucose=156 mg/dL, bp=145/90, temp [F]=99.5"), "--vitals")
    assert x[np.isfinite(x)] == pytest.approx([8.658967, 145, 90, 37.5], rel=1e-5)
    with pytest.raises(UserError, match=r"glucose=8,7: a comma stands between two values; write glucose=8\.7"):
        read_vitals("glucose=8,7")


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=30) | st.text("0123456789.,-+<>/ eHL%'±", max_size=15) | st.floats() | st.integers()
       | st.binary() | st.booleans() | st.none() | st.dates() | st.lists(st.integers()))  # fmt: skip
def test_any_cell_is_a_number_or_one_error(cell: object) -> None:
    for vital in (CATALOG["glucose"], CATALOG["sex"], CATALOG["days_since_onset"], FREE):
        try:
            value = read_value(vital, cell, "here")
        except UserError as error:
            assert str(error).startswith("here: ") and "\n" not in str(error)
        else:
            assert isinstance(value, float) and not math.isinf(value)
    schema = VitalsSchema((CATALOG["systolic"], CATALOG["diastolic"]))
    try:
        assert len(schema.parse({"bp": cell})[0]) == 2
    except UserError as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(st.floats(-1e6, 1e6, allow_nan=False).map(lambda value: round(value, 2)))
def test_a_formatted_number_comes_back(value: float) -> None:
    for text in (f"{value}", f"{value:.2f}", f"{value:.2f}".replace(".", ","), f"{value:+.2f}", f" {value:.2f} H",
                 f"{value:.2f}".replace("-", "−"), f"'{value:.2f}", f"{value:.12e}", f"{value:,.2f}",
                 f"{value:,.2f}".replace(",", " "), f"{value:,.2f}".replace(",", "'")):  # fmt: skip
        assert read_value(FREE, text, "here") == pytest.approx(value, abs=1e-6), text
