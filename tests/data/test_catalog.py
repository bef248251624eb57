"""The ready-made vitals: complete, consistent, and usable by name in a config."""

from pathlib import Path

import pytest

from tests.fhir_bundles import loinc_check_digit
from vlm.config import VitalConfig
from vlm.config.parsing import parse_config
from vlm.config.strict import from_dict
from vlm.data.vitals.catalog import CATALOG, in_unit, resolve_vitals
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.units import conversion
from vlm.errors import UserError


@pytest.mark.parametrize("vital", CATALOG.values(), ids=lambda vital: vital.name)
def test_an_entry_is_complete(vital: VitalConfig) -> None:
    assert vital.categories or len(vital.plausible) == 2
    if vital.reference:
        assert vital.plausible[0] <= vital.reference[0] < vital.reference[1] <= vital.plausible[1]
    if vital.loinc:
        number, _, digit = vital.loinc.partition("-")
        assert digit == loinc_check_digit(number)
    for unit, (factor, offset) in vital.accepts.items():
        assert factor > 0 and conversion(vital, unit) == (factor, offset)


def test_the_catalogue_is_one_schema() -> None:
    """No two entries share a name or alias, so that any of them can stand together."""
    assert len(VitalsSchema(tuple(CATALOG.values()))) >= 38


def test_a_config_names_ready_made_vitals(tmp_path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "data: {table: {vitals: [glucose, {name: ward_score, unit: points}, {ready: temperature, unit: °F}, "
        "{ready: glucose, name: night_glucose, aliases: [gn], unit: mg/dL}]}}"
    )
    config, _ = parse_config(["--config", str(file)])
    glucose, score, temperature, night = resolve_vitals(config.data.table.vitals)
    assert glucose == CATALOG["glucose"] and score == VitalConfig("ward_score", "points")
    assert temperature.plausible == pytest.approx([86, 113]) and temperature.reference == pytest.approx([96.8, 99.5])
    assert conversion(temperature, "°C") == pytest.approx((1.8, 32))
    assert (
        night.name == "night_glucose" and night.aliases == ["gn"] and night.plausible[1] == pytest.approx(900.8, 0.01)
    )
    assert night.loinc == "" and not night.ready


@pytest.mark.parametrize("vital", [v for v in CATALOG.values() if v.accepts], ids=lambda vital: vital.name)
def test_another_unit_and_back_is_the_same_vital(vital: VitalConfig) -> None:
    for unit, (factor, offset) in vital.accepts.items():
        there = in_unit(vital, unit)
        back = in_unit(there, vital.unit)
        assert back.plausible == pytest.approx(vital.plausible, rel=1e-4, abs=1e-3)
        if (factor, offset) != (1, 0):
            assert back.accepts[unit] == pytest.approx([factor, offset])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("glukose", "no ready-made vital 'glukose'; did you mean glucose?"),
        ("qqqq", "known: glucose, systolic"),
        (VitalConfig(), "an entry needs a name"),
        (VitalConfig(ready="glucose", unit="stone"), "glucose: unit stone is none of mmol/L, mg/dL"),
    ],
)
def test_a_wrong_entry_is_one_line(entry, message: str) -> None:
    with pytest.raises(UserError) as error:
        resolve_vitals([entry])
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_entry_of_an_older_adapter_still_loads() -> None:
    old = {"name": "spo2", "unit": "%", "aliases": [], "categories": [], "plausible": [50, 100], "reference": [95, 100]}
    vital = from_dict(VitalConfig, old, "config.json")
    assert vital == CATALOG["spo2"] and vital.accepts == {}  # equal: the numbers mean the same


def test_the_documented_table_is_the_catalogue() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "vitals.md").read_text(encoding="utf-8")
    for vital in CATALOG.values():
        unit = ", ".join(vital.categories) or vital.unit or "none"
        ranges = [f"{limits[0]:g} to {limits[1]:g}" if limits else "" for limits in (vital.plausible, vital.reference)]
        cells = [vital.name, unit, ", ".join(vital.accepts), *ranges, vital.loinc, ", ".join(vital.aliases)]
        assert "| " + " | ".join(cells) + " |" in text, vital.name
