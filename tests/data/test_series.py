"""Values over time: forms, features, hostile input."""

import math
from typing import Any

import numpy as np
import pytest

from vlm.config import VitalConfig
from vlm.config.strict import from_dict, to_dict
from vlm.data.claims import check_numbers
from vlm.data.vitals.catalog import resolve_vitals
from vlm.data.vitals.schema import VitalsSchema, VitalsStatistics, describe
from vlm.data.vitals.series import expand, state_words
from vlm.errors import UserError

GLUCOSE = VitalConfig(ready="glucose", over_time=True, steady=0.5)
SCHEMA = VitalsSchema(resolve_vitals([GLUCOSE, VitalConfig(ready="temperature", over_time=True), "systolic"]))
SERIES = [["-48 h", 9.1], ["-24 h", 10.4], [0, 11.2]]


def read(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    notes: list[str] = []
    x, _ = SCHEMA.parse(values, note=notes.append)
    return describe(SCHEMA, x.tolist()), notes


def test_a_series_becomes_its_last_value_and_four_features() -> None:
    assert SCHEMA.names[:5] == ("glucose", "glucose_change", "glucose_slope", "glucose_hours_since", "glucose_count")
    assert [vital.unit for vital in SCHEMA.vitals[:5]] == ["mmol/L", "mmol/L", "mmol/L/d", "h", ""]
    assert [vital.name for vital in SCHEMA.given] == ["glucose", "temperature", "systolic"]
    expected = {"glucose": 11.2, "glucose_change": 2.1, "glucose_slope": 1.05, "glucose_hours_since": 0,
                "glucose_count": 3}  # fmt: skip
    assert read({"glucose": SERIES}) == (expected, [])


@pytest.mark.parametrize(
    "cell",
    [
        "9.1@-48h;10.4@-24h;11.2@0h",
        " 9.1 @ −2 d ; 10,4@-1 day; 11.2 mmol/L@0 ",
        '[["-48 h", 9.1], ["-1440 min", "10.4"], [0, 11.2]]',
        [{"time": "-48 h", "value": 9.1}, {"time": "-24 h", "value": 10.4}, {"time": "0 h", "value": 11.2}],
        [["-48 h", "163.9552 mg/dL"], ["-24 h", 10.4], [0, 11.2]],
        [["2026-03-01T10:00Z", 9.1], ["2026-03-02T12:00+02:00", 10.4], ["2026-03-03T10:00:00Z", 11.2]],
    ],
)
def test_every_form_of_one_series_is_read_alike(cell: Any) -> None:
    values = {"glucose": cell} | ({"study_time": "2026-03-03T11:00+01:00"} if "Z" in str(cell) else {})
    said, notes = read(values)
    assert said == pytest.approx(read({"glucose": SERIES})[0], abs=1e-3) and not notes


def test_a_plain_number_is_a_series_of_one_value() -> None:
    said = {"glucose": 11.2, "glucose_hours_since": 0, "glucose_count": 1}
    assert read({"glucose": 11.2})[0] == read({"glucose": "11.2 mmol/L"})[0] == said
    assert read({"glucose": None})[0] == read({"glucose": "NA"})[0] == read({})[0] == {}


def test_hours_since_count_from_the_study() -> None:
    times = {"glucose": [["2026-03-01T10:00Z", 9.1]], "temperature": [["2026-03-01T16:00Z", 37]]}
    said, notes = read({**times, "study_time": "2026-03-02T10:00Z"})
    assert (said["glucose_hours_since"], said["temperature_hours_since"]) == (24, 18) and not notes
    said, notes = read(times)
    assert (said["glucose_hours_since"], said["temperature_hours_since"]) == (6, 0)
    assert len(notes) == 1 and notes[0].startswith("no study_time is given")


@pytest.mark.parametrize(
    ("cell", "expected", "note"),
    [
        ([[0, 11.2], ["-48 h", 9.1]], 2.1, "out of order"),
        ([["-48 h", 9.1], [0, 11], [0, 11.4]], 2.1, "averaged"),
        ([["-48 h", 9.1], [0, 11.2], [0, 11.2]], 2.1, ""),
        ([["-48 h", 9.1], ["-3 h", None], [0, 11.2]], 2.1, "without a value"),
        ([["-48 h", 9.1], ["-3 h", math.nan], [0, 11.2]], 2.1, "without a value"),
        ([["-48 h", 9.1], ["-3 h", 900], [0, 11.2]], 2.1, ""),
        ([["2026-03-01", 9.1], ["2026-03-03 10:00", 11.2]], 2.1, "without a zone"),
    ],
)
def test_an_untidy_series_is_read_with_a_note(cell: Any, expected: float, note: str) -> None:
    said, notes = read({"glucose": cell})
    assert said["glucose_change"] == pytest.approx(expected)
    assert any(note in line for line in notes) or not (note or notes)


def test_an_implausible_value_is_left_out_and_named() -> None:
    x, implausible = SCHEMA.parse({"glucose": [["-48 h", 9.1], ["-3 h", 900], [0, 11.2]]})
    assert implausible == {"glucose": 900} and x[4] == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"glucose": [["3 h", 9.1]]}, "a value 3 h after the study"),
        ({"glucose": [["2026-03-04T10:00Z", 9]], "study_time": "2026-03-03T10:00Z"}, "24 h after the study"),
        ({"glucose": [[-48, 9.1], [0, 11]]}, "has no unit; write -48 h"),
        ({"glucose": "9.1@-48;11@0"}, "has no unit"),
        ({"glucose": [["-3 y", 9.1]]}, "a unit other than"),
        ({"glucose": [["yesterday", 9.1]]}, "'yesterday' is no time"),
        ({"glucose": [[None, 9.1]]}, "there is no time"),
        ({"glucose": [[True, 9.1]]}, "is no time"),
        ({"glucose": [["9" * 400, 9.1]]}, "is no time"),
        ({"glucose": [[10**400, 9.1]]}, "is no time"),
        ({"glucose": [["0001-01-01T00:00+23:00", 9.1]]}, "is no time"),
        ({"glucose": [["2026-03-01T10:00Z", 9], ["2026-03-02T10:00", 8]]}, "without a zone and others with a zone"),
        ({"glucose": [["2026-03-01T10:00Z", 9]], "study_time": "2026-03-02"}, "without a zone and others with a zone"),
        ({"glucose": [["-1 h", "high"]]}, "'high' is not a number"),
        ({"glucose": [["-1 h", True]]}, "not a number"),
        ({"glucose": [["-1 h", math.inf]]}, "not a finite number"),
        ({"glucose": [["-1 h", "9 mmHg"]]}, "unit mmHg is none"),
        ({"glucose": [["-1 h", [1, 2]]]}, "of type list, not a number"),
        ({"glucose": []}, "an empty series"),
        ({"glucose": [[0, 1]] * 4097}, "more than 4,096 values"),
        ({"glucose": "1@0;" * 5000}, "more than 4,096 values"),
        ({"glucose": "[" * 100_000}, "nested deeper"),
        ({"glucose": '[["-48 h", NaN]]'}, "NaN"),
        ({"glucose": [9.1, 10.4]}, "point 1 is no pair of time and value"),
        ({"glucose": {"-48 h": 9.1}}, "of type dict, not a number"),
        ({"glucose_change": 2}, "glucose_change is computed from the series of glucose; give glucose alone"),
        ({"glucose": SERIES, "glucose count": 3}, "is computed from the series of glucose"),
        ({"systolic": "120@-2h"}, "is not a number"),
        ({"glucose": SERIES, "study_time": "soon"}, "study_time: 'soon' is no time"),
    ],
)
def test_a_hostile_series_is_one_clear_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        SCHEMA.parse(values)
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_blood_pressure_may_be_a_series() -> None:
    both = [VitalConfig(ready=name, over_time=True) for name in ("systolic", "diastolic")]
    schema = VitalsSchema(resolve_vitals(both))
    said = describe(schema, schema.parse({"bp": "120/80@-2d; 150/90 mmHg@0"})[0].tolist())
    assert (said["systolic_change"], said["diastolic_slope"]) == (30, 5)
    with pytest.raises(UserError, match="one of systolic and diastolic is over_time"):
        VitalsSchema(resolve_vitals([both[0], "diastolic"])).parse({"bp": "120/80"})


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([VitalConfig("sex", categories=["F", "M"], over_time=True)], "not for categories"),
        ([VitalConfig("crp", "mg/L", steady=1)], "steady is a change"),
        ([VitalConfig("crp", "mg/L", over_time=True, steady=-1)], "steady is a change"),
        ([VitalConfig("crp", "mg/L", over_time=True), VitalConfig("crp_slope")], "crp_slope is computed"),
        ([VitalConfig("crp", "mg/L", over_time=True), VitalConfig("x", of="crp", feature="slope")], "set by hand"),
    ],
)
def test_a_wrong_declaration_is_one_clear_line(entries: list[VitalConfig | str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VitalsSchema(resolve_vitals(entries))


@pytest.mark.parametrize("made", [("lactate", "change"), ("glucose", ""), ("", "slope"), ("glucose", "slope")])
def test_an_adapter_cannot_invent_features(made: tuple[str, Any]) -> None:
    with pytest.raises(UserError, match="of and feature name a vital over_time"):
        VitalsSchema((*SCHEMA.vitals, VitalConfig("made", of=made[0], feature=made[1])))


def test_an_adapter_keeps_the_new_keys_only_where_they_are_set() -> None:
    plain, *_ = resolve_vitals(["glucose"])
    assert not {"over_time", "steady", "of", "feature"} & to_dict(plain).keys()
    kept = [from_dict(VitalConfig, to_dict(vital), "") for vital in SCHEMA.vitals]
    assert tuple(kept) == SCHEMA.vitals and kept[1].of == "glucose" and kept[1].feature == "change"


def test_the_states_of_a_change_are_words_of_change() -> None:
    last, change, slope, *_ = expand(resolve_vitals([GLUCOSE])[0])
    assert state_words(last) == ["low", "normal", "elevated"]
    assert state_words(change) == ["falling", "stable", "rising"] and change.reference == [-0.5, 0.5]
    assert state_words(slope) == ["given"]


def test_a_change_converts_without_the_offset_of_its_unit() -> None:
    celsius = SCHEMA.vitals[SCHEMA.position("temperature_change")]
    assert celsius.accepts["°F"] == [pytest.approx(5 / 9), 0]
    fahrenheit = resolve_vitals([VitalConfig(ready="temperature", unit="°F", over_time=True)])
    schema = VitalsSchema(fahrenheit)
    cells = {"temperature": [["-1 d", 98.6], [0, 102.2]]}
    warm = describe(schema, schema.parse(cells)[0].tolist())
    assert (warm["temperature_change"], warm["temperature_slope"]) == (pytest.approx(3.6), pytest.approx(3.6))
    mixed = {"temperature": [["-1 d", "98.6 °F"], [0, 39]]}
    assert read(mixed)[0]["temperature_change"] == pytest.approx(2)


def test_a_boundary_change_is_stable() -> None:
    """11.2 - 10.7 is 0.4999999999999982 as floats; a change of `steady` is stable however it is computed."""
    for first, last in ((10.7, 11.2), (3.1, 3.6), (9.3, 8.8)):
        x, _ = SCHEMA.parse({"glucose": [["-1 d", first], [0, last]]})
        assert abs(x[1]) == np.float32(0.5)


@pytest.mark.parametrize(
    ("draft", "expected"),
    [
        ("Glucose is elevated at 11.2 and rising.", [("glucose", True), ("glucose", True), ("glucose_change", True)]),
        (
            "Glucose has risen from 9.1 to 11.2 mmol/L.",
            [("glucose", True), ("glucose", True), ("glucose_change", True)],
        ),
        ("Glucose is 9.1.", [("glucose", False)]),
        ("Glucose fell from 9.4 to 11.2.", [("glucose", False), ("glucose", True), ("glucose_change", False)]),
        ("Glucose is stable.", [("glucose_change", False)]),
        ("Glucose is not stable.", [("glucose_change", True)]),
        ("Glucose change 2.1 mmol/L, temperature stable.", [("glucose_change", True), ("temperature_change", False)]),
    ],
)
def test_words_of_change_are_checked_against_the_series(draft: str, expected: list[tuple[str, bool]]) -> None:
    given = read({"glucose": SERIES, "temperature": 37})[0]
    assert [(claim.vital, claim.consistent) for claim in check_numbers(draft, given, SCHEMA)] == expected


def test_a_word_of_change_without_a_change_is_wrong() -> None:
    claims = check_numbers("Glucose is rising.", read({"glucose": 11.2})[0], SCHEMA)
    assert [(claim.given, claim.consistent) for claim in claims] == [("not measured", False)]


def test_statistics_are_fitted_to_each_feature() -> None:
    rng = np.random.default_rng(0)
    rows = [SCHEMA.parse({"glucose": [["-1 d", float(v)], [0, float(v) + 1]]})[0] for v in rng.uniform(4, 12, 50)]
    statistics = VitalsStatistics.fit(SCHEMA, np.stack(rows), bins=4)
    statistics.check(SCHEMA)
    assert statistics.centre[1] == pytest.approx(1, abs=1e-5) and statistics.centre[4] == 2
