"""Predictions of a test in the format of ReXrank."""

import json
from dataclasses import replace
from pathlib import Path

from tests.conftest import read_json, table_config
from vlm.data.ingest.sources import load_cohort
from vlm.evaluation.predictions import write_rexrank


def test_predictions_are_written_as_rexrank_takes_them(table_root: Path, tmp_path: Path) -> None:
    cohort = load_cohort(table_config(table_root))
    cases = list(cohort.split("test"))
    ids = [case["id"] for case in cases]
    rows = [{"id": id, "reference": f"Seen {id}.", "report": f"Drafted {id}."} for id in ids]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_rexrank(tmp_path, cohort, table_root)
    said = read_json(tmp_path / "rexrank.json")
    assert list(said) == ids and ids
    for case, study in zip(cases, said.values(), strict=True):
        assert study["model_prediction"] == f"Drafted {case['id']}." and study["report"] == f"Seen {case['id']}."
        assert study["section_findings"] == case["sections"][0] and study["section_impression"] is None
        assert study["split"] == "test" and study["context"] == case["context"]
        assert all((table_root / path).is_file() and not Path(path).is_absolute() for path in study["image_path"])
    assert any(study["image_path"] for study in said.values())
    named = replace(cohort, sections=tuple(replace(one, name="text") for one in cohort.sections))
    write_rexrank(tmp_path, named, table_root)
    assert read_json(tmp_path / "rexrank.json")[cases[0]["id"]]["section_findings"] == rows[0]["reference"]
