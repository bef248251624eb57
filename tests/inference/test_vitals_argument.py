"""Vitals of a command: names and values in a line, JSON, YAML, and FHIR with its Patient."""

import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.fhir_bundles import PATIENT
from tests.tables import SCHEMA
from vlm.data.vitals.catalog import CATALOG
from vlm.data.vitals.schema import VitalsSchema
from vlm.errors import UserError
from vlm.inference.fhir import from_fhir
from vlm.inference.vitals_argument import read_vitals

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
