"""Values over time at use: --vitals, FHIR, HTTP, the page's form, warnings, explanation."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import table_config, tiny_model_config
from tests.serving import serving_drafts
from vlm.adapter import load, save
from vlm.app.about import Adapter
from vlm.app.form import fields
from vlm.config import Config, DropoutConfig, SectionConfig, VitalConfig
from vlm.data.dataset import CaseDataset
from vlm.data.ingest.sources import load_cohort
from vlm.data.vitals.schema import VitalsSchema
from vlm.errors import UserError
from vlm.explanation.explain import explain
from vlm.inference.engine import ReportEngine
from vlm.inference.fhir import from_fhir, to_fhir
from vlm.inference.fhir.documents import Software
from vlm.inference.rows import TableColumns
from vlm.inference.vitals_argument import read_vitals
from vlm.training.run import build_model

SERIES = [["-48 h", 9.1], ["-24 h", 10.4], [0, 11.2]]


@pytest.fixture(scope="module")
def folder(tiny_llm: str, table_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained adapter whose glucose is a series."""
    data = table_config(table_root)
    glucose = VitalConfig(ready="glucose", over_time=True, steady=0.5)
    data = replace(data, table=replace(data.table, vitals=[glucose, *data.table.vitals[1:]]))
    model = build_model(Config(data=data, model=tiny_model_config(tiny_llm)), load_cohort(data), torch.device("cpu"),
                        torch.float32)  # fmt: skip
    return save(model, tmp_path_factory.mktemp("series") / "adapter")


@pytest.fixture(scope="module")
def drafter(folder: Path) -> ReportEngine:
    return ReportEngine(load(folder))


@pytest.fixture(scope="module")
def schema(drafter: ReportEngine) -> VitalsSchema:
    return drafter.model.spec.schema


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("glucose=9.1@-48h;10.4@-24h;11.2@0h", {"glucose": "9.1@-48h;10.4@-24h;11.2@0h"}),
        ("bp=120/80; glucose=9,1@-2d;11,2@0; sex=F", {"bp": "120/80", "glucose": "9,1@-2d;11,2@0", "sex": "F"}),
        ("glucose: 9.1@-48h;11.2@0h, bp: 120/80", {"glucose": "9.1@-48h;11.2@0h", "bp": "120/80"}),
        ("glucose=9.1@2026-03-01T10:00Z;11@2026-03-01T12:00+01:00;study_time=2026-03-02T00:00Z",
         {"glucose": "9.1@2026-03-01T10:00Z;11@2026-03-01T12:00+01:00", "study_time": "2026-03-02T00:00Z"}),
        ('{"glucose": [["-48 h", 9.1], [0, 11.2]]}', {"glucose": [["-48 h", 9.1], [0, 11.2]]}),
    ],
)  # fmt: skip
def test_a_series_on_the_command_line(text: str, expected: dict[str, Any], schema: VitalsSchema) -> None:
    assert read_vitals(text) == expected
    schema.parse(read_vitals(text))


def test_points_with_commas_between_them_are_refused() -> None:
    with pytest.raises(UserError, match="write ; between the points of a series"):
        read_vitals("glucose=9.1@-48h, 10.4@-24h")


def test_the_adapter_keeps_the_series_and_its_names_of_states(folder: Path, drafter: ReportEngine) -> None:
    kept = {vital["name"]: vital for vital in json.loads((folder / "config.json").read_text())["vitals"]}
    assert kept["glucose"]["over_time"] is True and "over_time" not in kept["systolic"]
    assert (kept["glucose_change"]["of"], kept["glucose_change"]["feature"]) == ("glucose", "change")
    names = [value.names for value in drafter.model.vitals.values]
    assert names[1] == ["glucose_change not measured", "glucose_change falling", "glucose_change stable",
                        "glucose_change rising"]  # fmt: skip


def test_the_draft_says_what_was_read_and_what_was_not(drafter: ReportEngine) -> None:
    def draft(vitals: dict[str, Any]) -> tuple[dict[str, Any], str]:
        report = drafter.predict([(None, vitals)], max_new_tokens=4)[0]
        return report.vitals, "; ".join(report.warnings)

    said, warnings = draft({"glucose": [*SERIES, [0, "900 mmol/L"]], "bp": "120/80", "sex": "F"})
    assert (said["glucose"], said["glucose_change"], said["glucose_count"]) == (11.2, 2.1, 3)
    assert "glucose 900 is not plausible" in warnings and "was left out of its series" in warnings
    assert "not given" not in warnings
    said, warnings = draft({"glucose": 8})
    assert "one value alone, so no change over time: glucose" in warnings and "not given: systolic" in warnings
    said, warnings = draft({"glucose": [["2026-03-01 10:00", 8], ["2026-03-01 09:00", 9]]})
    assert said["glucose_change"] == -1 and "out of order were sorted" in warnings and "without a zone" in warnings
    assert "not given: glucose" in draft({})[1] and "glucose_slope" not in draft({})[1]


def test_states_are_those_of_the_change(drafter: ReportEngine) -> None:
    change = drafter.model.vitals.values[1]
    _, states = change(torch.tensor([float("nan"), -0.6, -0.5, 0.5, 0.6]))
    assert states.argmax(dim=1).tolist() == [0, 1, 2, 2, 3]


def test_a_lost_series_loses_its_features(tiny_config: Config, schema: VitalsSchema, drafter: ReportEngine) -> None:
    """Value dropout must not show the model a change of a value that is missing, which no user can give."""
    rng = np.random.default_rng(0)
    x = rng.random((200, len(schema))).astype(np.float32)
    x[rng.random(x.shape) < 0.3] = np.nan
    kept = np.stack([schema.without_orphans(row) for row in x])
    assert np.isnan(kept[np.isnan(x[:, 0]), 1:5]).all()
    known = ~np.isnan(x[:, 0])
    np.testing.assert_array_equal(kept[known], x[known])
    np.testing.assert_array_equal(kept[:, 5:], x[:, 5:])
    data = tiny_config.data
    rows = load_cohort(replace(data, table=replace(data.table, vitals=[
        VitalConfig(ready="glucose", over_time=True, steady=0.5), *data.table.vitals[1:]]))).dataset  # fmt: skip
    sections = [SectionConfig("findings", [])]
    dataset = CaseDataset(rows, drafter.model.spec, sections, dropout=DropoutConfig(0, 0, 0.5))
    for index in range(len(rows)):
        vitals = dataset[index]["vitals"]
        assert not vitals[0].isnan() or vitals[1:5].isnan().all()


def test_a_table_to_draft_has_a_series_in_a_cell(schema: VitalsSchema) -> None:
    frame = pd.DataFrame({"image": [""], "glucose": ["9.1@2026-03-01T10:00Z"], "study_time": ["2026-03-01T12:00Z"]})
    row = next(TableColumns().rows(frame, Path("t.csv"), schema))
    assert schema.parse(row.vitals)[0][3] == 2


# ------------------------------------------------------------------------------------------------ FHIR


def observation(value: float, when: str | None, code: str = "14749-6", unit: str = "mmol/L") -> dict[str, Any]:
    dated = {"effectiveDateTime": when} if when else {}
    quantity = {"value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit}
    return {"resourceType": "Observation", "status": "final", **dated, "valueQuantity": quantity,
            "code": {"coding": [{"system": "http://loinc.org", "code": code}]}}  # fmt: skip


def test_observations_of_one_code_become_the_series(schema: VitalsSchema) -> None:
    several = [observation(11.2, "2026-03-03T10:00:00Z"), observation(9.1, "2026-03-01T10:00:00Z"),
               observation(10.4, "2026-03-02T12:00:00+02:00"), observation(120, "2026-03-02", "8480-6", "mm[Hg]"),
               observation(130, "2026-03-03", "8480-6", "mm[Hg]")]  # fmt: skip
    schema = VitalsSchema(tuple(replace(vital, loinc="8480-6") if vital.name == "systolic" else vital
                                for vital in schema.vitals))  # fmt: skip
    values, warnings = from_fhir(several, schema)
    assert values["systolic"] == 130 and warnings == ("systolic is there 2 times; the newest was taken",)
    notes: list[str] = []
    x, _ = schema.parse(values, note=notes.append)
    assert x[:5].tolist() == pytest.approx([11.2, 2.1, 1.05, 0, 3]) and len(notes) == 1
    study = {"resourceType": "ImagingStudy", "started": "2026-03-02T20:00:00Z"}
    values, warnings = from_fhir([*several, study, observation(7, None)], schema)
    x, _ = schema.parse(values)
    assert x[:5].tolist() == pytest.approx([10.4, 1.3, 1.3, 10, 2])
    assert "left out 2 of 4 values of glucose: after the study, or without a date" in warnings


def test_one_observation_without_a_date_is_a_plain_value(schema: VitalsSchema) -> None:
    values, warnings = from_fhir([observation(9.1, None)], schema)
    assert values == {"glucose": 9.1} and not warnings
    values, warnings = from_fhir([observation(9.1, None), observation(8, None)], schema)
    assert values == {} and "left out 2 of 2 values of glucose" in warnings[0]


def test_a_bundle_holds_what_was_measured_alone(drafter: ReportEngine, schema: VitalsSchema) -> None:
    report = drafter.predict([(None, {"glucose": SERIES})], max_new_tokens=2)[0]
    bundle = to_fhir(report, schema, Software("f" * 64, "base", "1"))
    codes = [entry["resource"]["code"]["text"] for entry in bundle["entry"] if "code" in entry["resource"]]
    assert "glucose" in codes and not [code for code in codes if code.startswith("glucose_")]
    named = {**observation(3, "2026-03-02"), "code": {"text": "glucose_change"}}
    assert from_fhir([named], schema)[0] == {}


# ------------------------------------------------------------------------------------------------ HTTP and page


@pytest.fixture(scope="module")
def client(drafter: ReportEngine, folder: Path) -> Iterator[httpx.Client]:
    with (
        serving_drafts(drafter, Adapter.of(folder), tokens=4) as address,
        httpx.Client(base_url=address, timeout=60) as session,
    ):
        yield session


def test_http_takes_the_series(client: httpx.Client) -> None:
    for glucose in (SERIES, "9.1@-48h;10.4@-24h;11.2@0h" + " " * 300, [["-72 h", None], *SERIES]):
        answer = client.post("/v1/report", json={"vitals": {"glucose": glucose}}).json()
        assert (answer["vitals"]["glucose_change"], answer["vitals"]["glucose_count"]) == (2.1, 3)
    dated = {"glucose": [["2026-03-01T10:00Z", 9]], "study_time": "2026-03-01T12:00Z"}
    assert client.post("/v1/report", json={"vitals": dated}).json()["vitals"]["glucose_hours_since"] == 2
    names = [vital["name"] for vital in client.get("/v1/schema").json()["vitals"]]
    assert names == ["glucose", "systolic", "diastolic", "sex"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([["-1 h", 9]] * 4097, "give a number or a text, or a series of at most 4,096 pairs"),
        ([["-1 h", [9]]], "or a series of at most 4,096 pairs of time and value"),
        ([[True, 9]], "or a series"),
        ([["x" * 201, 9]], "or a series"),
        ([], "or a series"),
        ([["1 h", 9]], "a value 1 h after the study"),
        ("9@-1h;" * 20_000, "longer than 100,000 characters"),
        ([[-5, 9]], "the time '-5' has no unit"),
    ],
)
def test_http_refuses_a_hostile_series_in_one_line(value: Any, message: str, client: httpx.Client) -> None:
    answer = client.post("/v1/report", json={"vitals": {"glucose": value}})
    assert answer.status_code == 422 and message in answer.json()["detail"] and "\n" not in answer.json()["detail"]
    answer = client.post("/v1/report", json={"vitals": {"glucose_change": 3}})
    assert answer.status_code == 422 and "is computed from the series of glucose" in answer.json()["detail"]


def test_the_form_asks_for_the_series_and_not_for_what_is_computed(schema: VitalsSchema) -> None:
    form = {field.name: field for field in fields(schema)}
    assert list(form) == ["glucose", "blood_pressure", "sex"]
    assert "9.1@-48h; 11.2@0h" in form["glucose"].help and form["glucose"].longest > form["blood_pressure"].longest


def test_the_explanation_lists_the_features(drafter: ReportEngine) -> None:
    pytest.importorskip("captum")
    explanation = explain(drafter, None, {"glucose": SERIES, "bp": "120/80"})
    assert explanation.vitals[:5] == ("glucose", "glucose_change", "glucose_slope", "glucose_hours_since",
                                      "glucose_count")  # fmt: skip
