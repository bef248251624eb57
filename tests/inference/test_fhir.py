"""FHIR: what is written is valid in R4B and R5 and claims no more than it may; what is written can be read again."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ucumvert import PintUcumRegistry

from tests.conftest import read_json
from tests.fhir_bundles import ABOUT, NOW, READY, bundle, loinc_check_digit, observed, of_type, report, validate
from tests.forks import Forks
from vlm.adapter import digest, save
from vlm.config import VitalConfig
from vlm.data.ingest.phantom_words import VITALS as PHANTOM
from vlm.data.vitals.catalog import CATALOG, in_unit
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.units import ucum, ucum_conversion
from vlm.errors import UserError
from vlm.inference.fhir import from_fhir, to_fhir
from vlm.inference.fhir.codes import LOINC
from vlm.report import NOTICE

UNITS = PintUcumRegistry()


# ------------------------------------------------------------------------------------------------ codes and units


@pytest.mark.parametrize("vital", CATALOG.values(), ids=lambda vital: vital.name)
def test_every_unit_of_a_ready_made_vital_is_ucum_and_converts_as_declared(vital: VitalConfig) -> None:
    if vital.categories:
        return
    own = ucum(vital.unit)
    assert own and UNITS.from_ucum(own) is not None and ucum_conversion(vital, own) == (1, 0)
    for unit, (factor, offset) in vital.accepts.items():
        code = ucum(unit)
        assert code and ucum_conversion(vital, code) == (factor, offset)
        here, there = UNITS.Quantity(10.0, UNITS.from_ucum(code).units), UNITS.from_ucum(own).units
        if here.is_compatible_with(there):  # an amount of substance and a mass are not
            assert here.to(there).magnitude == pytest.approx(10 * factor + offset, rel=1e-4)


def test_a_users_own_unit_has_no_ucum_code_and_is_not_guessed() -> None:
    assert [ucum(unit) for unit in ("bpm", "mm Hg", "K/µL", "umol/l", "Celsius")] == [
        "/min", "mm[Hg]", "10*9/L", "umol/L", "Cel"]  # fmt: skip
    assert [ucum(unit) for unit in ("share of 100 years", "G/L", "min", "µL", "stone")] == [None] * 5


@pytest.mark.parametrize(
    ("name", "code", "factor"),
    [("leukocytes", "10*3/uL", 1), ("heart_rate", "{beats}/min", 1), ("pain", "{0-10}", 1), ("pain", "", 1),
     ("ph", "[pH]", 1), ("alt", "[IU]/L", 1), ("spo2", "1", 100), ("glucose", "", None), ("leukocytes", "", None),
     ("glucose", "mmol/kg", None)],
)  # fmt: skip
def test_other_systems_write_units_in_other_ways(name: str, code: str, factor: float | None) -> None:
    pair = ucum_conversion(CATALOG[name], code)
    assert pair == (None if factor is None else (factor, 0))


def test_no_code_stands_for_two_vitals() -> None:
    codes = [code for vital in CATALOG.values() for code in (vital.loinc, *vital.also_loinc) if code]
    assert len(codes) == len(set(codes)) and all(loinc_check_digit(c[:-2]) == c[-1] for c in codes)
    assert "14749-6" in in_unit(CATALOG["glucose"], "mg/dL").also_loinc, "another unit is still found by its old code"


# -------------------------------------------------------------------------------------------------------- writing

plausible = {
    name: st.sampled_from(vital.categories)
    if vital.categories
    else st.floats(*vital.plausible, allow_nan=False).map(lambda x: round(x, 3)).filter(
        lambda x, low=vital.plausible[0], high=vital.plausible[1]: low <= x <= high
    )
    for name, vital in CATALOG.items()
}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=plausible))
def test_what_is_written_is_read_again(vitals: dict[str, Any]) -> None:
    made = bundle(vitals)
    again, warnings = from_fhir(made, READY)
    assert again == report(vitals).vitals
    assert warnings == (f"left out 2 of {len(of_type(made, 'Observation'))} Observations: "
                        "no vital of the adapter has such a code",)  # fmt: skip
    listed, _ = from_fhir(of_type(made, "Observation"), READY)
    assert listed == again


@settings(max_examples=15, deadline=None)
@given(
    st.fixed_dictionaries({}, optional=plausible),
    st.text(),
    st.lists(st.text()),
    st.booleans(),
    st.sampled_from([None, "Patient/123"]),
)
def test_a_bundle_is_valid_in_r4b_and_r5(vitals, text, warnings, image, subject) -> None:
    drafted = report(vitals, text=text, warnings=tuple(warnings))
    validate(to_fhir(drafted, READY, ABOUT, image, subject, NOW))


def test_a_draft_is_preliminary_and_no_diagnosis() -> None:
    made = bundle({"glucose": 8.7, "bp": "145/90"})
    kinds = [entry["resource"]["resourceType"] for entry in made["entry"]]
    assert kinds == ["DiagnosticReport", *["Observation"] * 4, "Device", "Provenance"]
    drafted = of_type(made, "DiagnosticReport")[0]
    assert drafted["conclusion"] == "Dense shadow in the <left> zone." and "conclusionCode" not in drafted
    assert "&lt;left&gt;" in drafted["text"]["div"] and NOTICE in drafted["text"]["div"]
    assert [note["valueAnnotation"]["text"] for note in drafted["extension"]] == [NOTICE, "warning: not given: sex"]
    assert drafted["issued"] == "2026-01-02T03:04:05Z" == made["timestamp"]
    assert {resource["status"] for resource in (drafted, *of_type(made, "Observation"))} == {"preliminary"}
    label = observed(made, "Probability of pathology, estimated by software")
    assert label["valueQuantity"] == {"value": 0.98765, "unit": "probability",
                                      "system": "http://unitsofmeasure.org", "code": "1"}  # fmt: skip
    assert "calibrated on 76 patients" in label["method"]["text"] and label["note"] == [{"text": NOTICE}]
    assert label["meta"]["security"][0]["code"] == "AIAST" and label["device"]["reference"].startswith("urn:uuid:")
    versions = [version["value"] for version in of_type(made, "Device")[0]["version"]]
    assert versions == [ABOUT.version, ABOUT.adapter, ABOUT.base]


def test_every_reference_of_a_bundle_is_in_it() -> None:
    made = bundle({"glucose": 8.7, "bp": "145/90"})
    addresses = [entry["fullUrl"] for entry in made["entry"]]
    named = [part.split('"')[0] for part in json.dumps(made).split('"reference": "')[1:]]
    assert len(set(addresses)) == len(addresses) and set(named) <= set(addresses)
    made_by_us = {target["reference"] for target in of_type(made, "Provenance")[0]["target"]}
    given_to_us = {
        entry["fullUrl"] for entry in made["entry"] if entry["resource"].get("code", {}).get("text") == "glucose"
    }
    assert given_to_us and not given_to_us & made_by_us, "the values are the user's, not the software's"


def test_blood_pressure_is_one_panel_and_half_of_it_is_none() -> None:
    panel = observed(bundle({"bp": "145/90"}), "blood pressure")
    assert panel["code"]["coding"][0]["code"] == "85354-9" and "valueQuantity" not in panel
    shown = [(c["code"]["coding"][0]["code"], c["valueQuantity"]["value"], c["valueQuantity"]["code"])
             for c in panel["component"]]  # fmt: skip
    assert shown == [("8480-6", 145, "mm[Hg]"), ("8462-4", 90, "mm[Hg]")]
    alone = bundle({"systolic": 145})
    assert observed(alone, "systolic")["code"]["coding"][0]["code"] == "8480-6" and "85354-9" not in str(alone)


def test_nobody_is_named_who_was_not_given() -> None:
    assert "subject" not in str(bundle({"glucose": 8.7}))
    named = bundle({"glucose": 8.7}, subject="Patient/123")
    assert all(r["subject"] == {"reference": "Patient/123"}
               for kind in ("DiagnosticReport", "Observation") for r in of_type(named, kind))  # fmt: skip
    assert bundle({"glucose": 8.7}) == bundle({"glucose": 8.7}) != named
    later = to_fhir(report({"glucose": 8.7}), READY, ABOUT)
    fixed = json.dumps(bundle({"glucose": 8.7})).replace("2026-01-02T03:04:05Z", later["timestamp"])
    assert json.loads(fixed) == later, "only the time differs"


def test_an_age_that_is_a_share_is_not_given_out_as_years() -> None:
    schema = VitalsSchema(tuple(PHANTOM))
    made = bundle({"glucose": 8.7, "bp": "145/90", "age": 0.58}, schema)
    age = observed(made, "age")
    assert age["valueQuantity"] == {"value": 0.58, "unit": "share of 100 years"} and "coding" not in age["code"]
    assert observed(made, "glucose")["code"]["coding"][0]["code"] == "14749-6"
    elsewhere = quantity("30525-0", 58, "a")
    assert from_fhir([elsewhere], schema)[0] == {}, "years are no share"


def test_without_an_image_it_is_no_imaging_report() -> None:
    with_image, without = (of_type(bundle({}, image=image), "DiagnosticReport")[0] for image in (True, False))
    assert with_image["code"]["coding"][0]["code"] == "18748-4" and with_image["category"]
    assert without["code"] == {"text": "Draft of a report"} and "category" not in without


# -------------------------------------------------------------------------------------------------------- reading


def quantity(code: str, value: Any, unit: str = "mmol/L", **changes: Any) -> dict[str, Any]:
    """An Observation as another system would send it."""
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": "http://snomed.info/sct", "code": "1"},
                            {"system": LOINC, "code": code}]},
        "valueQuantity": {"value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit},
        **changes,
    }  # fmt: skip


def test_the_unit_decides_and_a_code_of_another_unit_is_the_same_vital() -> None:
    mine = [quantity("2345-7", 156, "mg/dL"), quantity("8310-5", 98.6, "[degF]"), quantity("6690-2", 9.1, "10*3/uL"),
            quantity("2708-6", 0.93, "1"), quantity("8867-4", 80, "{beats}/min"),
            quantity("46098-0", 0, valueCodeableConcept={"coding": [{"code": "female"}]})]  # fmt: skip
    values, warnings = from_fhir(mine, READY)
    assert values.pop("sex") == "F" and warnings == ()
    coded_elsewhere = {"value": 8, "unit": "mmol/L", "system": "http://snomed.info/sct", "code": "258813002"}
    assert from_fhir(quantity("14749-6", 0, valueQuantity=coded_elsewhere), READY)[0] == {"glucose": 8}
    wanted = {"glucose": 8.659, "temperature": 37.0, "leukocytes": 9.1, "spo2": 93, "heart_rate": 80}
    assert values == pytest.approx(wanted, rel=1e-4)


def test_the_newest_of_each_counts() -> None:
    times = ["2026-01-02T10:00:00+05:00", "2026-01-02T08:00:00Z", "2026-01-02", "2025", None]
    mine = [quantity("14749-6", number, **({"effectiveDateTime": time} if time else {}))
            for number, time in enumerate(times, 5)]  # fmt: skip
    for order in (mine, mine[::-1]):
        values, warnings = from_fhir(order, READY)
        assert values == {"glucose": 6} and warnings == ("glucose is there 5 times; the newest was taken",)
    undated = [quantity("14749-6", number) for number in (5, 6)]
    assert from_fhir(undated, READY)[0] == {"glucose": 6}, "of equal ones the last"
    period = quantity("14749-6", 9, effectivePeriod={"start": "2026-01-01", "end": "2026-02-01"})
    assert from_fhir([period, *mine], READY)[0] == {"glucose": 9}


def test_what_cannot_count_is_left_out_and_said() -> None:
    wrong = quantity("14749-6", 7, status="entered-in-error")
    mine = [wrong, wrong, quantity("14749-6", 7, "stone"), quantity("2085-9", 1), quantity("14749-6", 7, ""),
            quantity("46098-0", 1), quantity("2823-3", None) | {"valueQuantity": {"unit": "mmol/L"}},
            {**quantity("2951-2", 0), "valueString": "high"}]  # fmt: skip
    del mine[-1]["valueQuantity"], mine[5]["valueQuantity"]
    mine[5]["valueCodeableConcept"] = {"text": "other"}
    values, warnings = from_fhir({"resourceType": "Bundle", "entry": [{"resource": one} for one in mine]}, READY)
    assert values == {} and warnings == (
        "left out 2 of 8 Observations: status entered-in-error",
        "left out 1 of 8 Observations: glucose is in stone, not in mmol/L, mg/dL",
        "left out 1 of 8 Observations: no vital of the adapter has such a code",
        "left out 1 of 8 Observations: glucose is in no unit, not in mmol/L, mg/dL",
        "left out 1 of 8 Observations: sex is none of F, M",
        "left out 1 of 8 Observations: sodium is a valueString, not a valueQuantity",
    )
    requests = {"resourceType": "Bundle", "entry": [{"request": {"method": "DELETE"}}, {"resource": mine[3]}]}
    assert from_fhir(requests, READY)[1] == ("left out 1 of 1 Observations: no vital of the adapter has such a code",)
    assert from_fhir({"resourceType": "Bundle"}, READY) == ({}, ("there is no Observation in it",))


def test_two_vitals_with_one_code_are_told_apart_by_name_or_not_at_all() -> None:
    night = replace(CATALOG["glucose"], name="night", aliases=[])
    schema = VitalsSchema((CATALOG["glucose"], night))
    one = quantity("14749-6", 7)
    assert from_fhir(one, schema)[0] == {}
    one["code"]["text"] = "night"
    assert from_fhir(one, schema)[0] == {"night": 7}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resourceType": "Patient"}, "obs.json: a Patient; give a Bundle, an Observation or a list of these"),
        ([{"glucose": 8}], "obs.json: entry 1 is no FHIR resource"),
        ({"resourceType": "Bundle", "entry": 3}, "obs.json: entry is not a list of objects"),
        ([quantity("1-8", 2), {"resourceType": "Observation", "status": "final"}], "entry 2: code is missing"),
        ([{**quantity("1-8", 2), "status": None}], "entry 1: an Observation without a status"),
        ([quantity("14749-6", "high")], "entry 1: the value of glucose is not a number"),
        ([{**quantity("14749-6", 1), "valueQuantity": 5}], "entry 1: valueQuantity is not an object"),
        ([quantity("14749-6", 1, effectiveDateTime="tomorrow")], "entry 1: the time of the Observation is not one"),
        ([quantity("14749-6", 1, component={})], "entry 1: component is not a list"),
        ([quantity("14749-6", 1, subject={"reference": f"Patient/{n}"}) for n in (1, 2)], "Observations of 2 subjects"),
    ],
)
def test_a_broken_resource_is_one_line_with_its_entry(values: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        from_fhir(values, READY, "obs.json")
    assert message in str(error.value) and "\n" not in str(error.value) and str(error.value).startswith("obs.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.sampled_from(["final", LOINC, "14749-6"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["code", "coding", "text", "system", "valueQuantity", "value", "unit", "component", "status",
                         "effectiveDateTime", "effectivePeriod", "subject", "reference"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(json_values, st.sampled_from(["code", "valueQuantity", "component", "status", "effectiveDateTime", "subject"]))
def test_nothing_but_a_clear_line_comes_of_hostile_values(broken: Any, key: str) -> None:
    try:
        values, _ = from_fhir([quantity("14749-6", 7) | {key: broken}], READY, "obs.json")
        READY.parse(values)
    except UserError as error:
        assert "\n" not in str(error)


def test_the_study_of_the_image_is_named_by_its_uid() -> None:
    """In R4 and R4B alone: R5 renamed the element."""
    made, without = bundle({"glucose": 7}, study="1.2.840.1"), bundle({"glucose": 7})
    validate(made, ("R4B.",))
    (link,) = of_type(made, "DiagnosticReport")[0]["imagingStudy"]
    assert link == {"type": "ImagingStudy", "identifier": {"system": "urn:dicom:uid", "value": "urn:oid:1.2.840.1"}}
    assert "imagingStudy" not in of_type(without, "DiagnosticReport")[0]
    other = bundle({"glucose": 7}, study="1.2.840.2")
    assert len({one["entry"][0]["fullUrl"] for one in (made, without, other)}) == 3
    assert json.dumps(made).count("1.2.840.1") == 1


# -------------------------------------------------------------------------------------------------------- command


def test_the_command_reads_and_writes_fhir(tiny_model, tmp_path: Path, forks: Forks) -> None:
    coded = [
        replace(vital, loinc=ready.loinc, also_loinc=ready.also_loinc, accepts=ready.accepts)
        for vital in tiny_model.spec.schema.vitals
        if (ready := CATALOG[vital.name])
    ]
    tiny_model.spec = replace(tiny_model.spec, schema=VitalsSchema(tuple(coded)))
    adapter = save(tiny_model, tmp_path / "adapter")
    given_file, made_file = tmp_path / "obs.json", tmp_path / "out.json"
    given_file.write_text(json.dumps([quantity("2345-7", 156, "mg/dL"), quantity("2085-9", 1)]))
    options = ("--max_new_tokens", "6", "--adapter", str(adapter), "--vitals", str(given_file))
    result = forks.command(*options, "--fhir", str(made_file), "--fhir_subject", "Patient/123", "--json")
    assert result.returncode == 0, result.stderr
    drafted, made = json.loads(result.stdout), read_json(made_file)
    validate(made)
    assert of_type(made, "DiagnosticReport")[0].get("conclusion", "") == drafted["text"]
    assert drafted["vitals"] == {"glucose": pytest.approx(8.659, rel=1e-4)} and len(list(tmp_path.iterdir())) == 3
    assert drafted["warnings"][0] == "left out 1 of 2 Observations: no vital of the adapter has such a code"
    versions = [version["value"] for version in of_type(made, "Device")[0]["version"]]
    assert versions[1] == digest(adapter) and "/" not in versions[2], "no path of this machine is given away"
    given_file.write_text(made_file.read_text())
    again = forks.command(*options, "--json")
    assert json.loads(again.stdout)["text"] == drafted["text"], "its own Bundle drafts the same report"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fhir", "/no/such/out.json"], "--fhir: /no/such: no such folder"),
        (["--fhir_subject", "Patient/1"], "name its file with --fhir"),
        (["--fhir", "out.json", "--fhir_subject", "Jane Doe"], "Jane Doe is no reference to a patient"),
        (["--fhir", "out.json", "--input", "cases.csv"], "--fhir: is for one case"),
    ],
)
def test_a_wrong_option_costs_no_wait(arguments: list[str], message: str, forks: Forks) -> None:
    result = forks.command(*arguments)
    assert result.returncode == 2 and message in result.stderr and result.stderr.count("\n") == 1
