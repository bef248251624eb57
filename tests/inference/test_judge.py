"""How far to rely on a draft: what the adapter's thresholds add to a report, wherever it is shown."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.fhir_bundles import of_type, validate
from vlm import ClinicalVLM
from vlm.adapter import save
from vlm.atomic import write_manifest
from vlm.errors import UserError
from vlm.inference.fhir import Software, to_fhir
from vlm.inference.judge import UNLIKE
from vlm.model.evidence import FusedInputs
from vlm.reliability.familiarity import Familiarity
from vlm.reliability.label_sets import LabelThresholds
from vlm.reliability.thresholds import Reliability
from vlm.report import Contradiction, Report

SETS = {"pathology": LabelThresholds(0.0, 1.0), "effusion": LabelThresholds(1.0, 0.0)}
SHOWN = Report(
    "Shadow.", {"pathology": 0.4, "effusion": 0.2, "mass": 0.1}, label_sets={"pathology": ("present", "absent"),
    "effusion": ()}, coverage=0.9, contradictions=(Contradiction("Shadow", "vital", "says <b>\x1b[2J"),),
)  # fmt: skip
ABOUT = Software("f" * 64, "base", "0.1.0")


def test_an_adapter_keeps_its_thresholds_and_drafts_with_them(tiny_model: ClinicalVLM, tmp_path: Path) -> None:
    before = tiny_model.predict(None, {"glucose": 8}, max_new_tokens=2)
    assert before.label_sets == {} and before.coverage is None, "an adapter without thresholds"
    tiny_model.reliability = Reliability(0.8, SETS)
    again = ClinicalVLM.from_pretrained(save(tiny_model, tmp_path / "adapter"))
    assert again.reliability == tiny_model.reliability
    report = again.predict(None, {"glucose": 8}, max_new_tokens=2)
    assert report.label_sets == {"pathology": ("present", "absent"), "effusion": ()} and report.coverage == 0.8
    assert replace(report, label_sets={}, coverage=None).to_dict() == before.to_dict()


def test_a_draft_that_contradicts_what_is_known_says_so(tiny_model: ClinicalVLM, monkeypatch) -> None:
    said, x = "No effusion.\nGlucose is low.", torch.full((1, 1), torch.nan)
    monkeypatch.setattr(
        tiny_model, "generate", lambda batch, *_, **__: ([said], FusedInputs(x, x, torch.tensor([[0.0, 9.0]]), x[0]))
    )
    tiny_model.spec = replace(tiny_model.spec, label_findings={"effusion": "pleural_effusion"})
    report = tiny_model.predict(None, {"glucose": 9})
    assert [(one.sentence, one.kind) for one in report.contradictions] == [
        ("No effusion", "probability"), ("Glucose is low", "vital")
    ]  # fmt: skip
    assert "contradiction: 'Glucose is low': says glucose low; given: elevated" in str(report).splitlines()
    assert tiny_model.predict(None, {"glucose": 2}).contradictions == report.contradictions[:1]
    tiny_model.spec = replace(tiny_model.spec, label_findings={})
    assert [one.kind for one in tiny_model.predict(None, {"glucose": 9}).contradictions] == ["vital"]


def test_the_sets_stand_beside_the_probabilities() -> None:
    lines = SHOWN.after_text().splitlines()
    assert lines[1:5] == [
        "pathology   40.0%  present or absent",
        "effusion    20.0%  neither fits",
        "mass        10.0%",
        "(of 100 sets of answers behind the probabilities, about 90 hold the truth)",
    ]
    assert lines[5] == "contradiction: 'Shadow': says <b>\\x1b[2J", "without terminal codes"
    assert json.loads(json.dumps(SHOWN.to_dict()))["label_sets"] == {"pathology": ["present", "absent"], "effusion": []}


def test_the_page_shows_the_sets(adapter) -> None:
    from vlm.app import view

    shown = view.finished(SHOWN, adapter)
    assert '<span class="vlm-set">present or absent</span>' in shown and "about 90 hold the truth." in shown
    assert "<q>Shadow</q> says &lt;b&gt;" in shown
    plain = view.finished(replace(SHOWN, label_sets={}, coverage=None, contradictions=()), adapter)
    assert "vlm-set" not in plain and "hold the truth" not in plain and "<q>" not in plain


def test_fhir_notes_the_sets_and_keeps_the_ids_of_a_report_without(adapter) -> None:
    made = to_fhir(SHOWN, adapter.config.spec.schema, ABOUT)
    validate(made)
    notes = [[note["text"] for note in one["note"]] for one in of_type(made, "Observation")]
    assert [len(texts) for texts in notes] == [2, 2, 1]
    assert notes[0][1].startswith("answers that fit: present or absent; of 100 sets")
    (drafted,) = of_type(made, "DiagnosticReport")
    assert "contradiction: 'Shadow': says" in drafted["extension"][1]["valueAnnotation"]["text"]
    plain = to_fhir(Report("Shadow.", {"pathology": 0.4}), adapter.config.spec.schema, ABOUT)
    assert plain["entry"][0]["fullUrl"] == "urn:uuid:84294cdc-2f1a-5059-a8f5-e417a456eaba"


@pytest.mark.parametrize("name", ["label_sets", "coverage", "contradictions"])
def test_http_documents_what_it_answers(name: str) -> None:
    from vlm.app.api import Answer

    assert Answer.model_fields[name].description and Answer(**SHOWN.to_dict()).model_dump()[name]


def test_a_picture_far_from_those_of_training_is_told(tiny_model: ClinicalVLM, tmp_path: Path) -> None:
    file = str(tmp_path / "case.png")
    cv2.imwrite(file, np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8))
    tiny_model.familiarity = Familiarity.fit(np.random.default_rng(0).normal(size=(50, tiny_model.vision.summary_size)))
    tiny_model.spec = replace(tiny_model.spec, familiarity=tiny_model.familiarity.count)
    tiny_model.reliability = Reliability(unlike_above=1e-6)
    folder = save(tiny_model, tmp_path / "adapter")
    again = ClinicalVLM.from_pretrained(folder)
    assert UNLIKE in again.predict(file, {"glucose": 8}, max_new_tokens=2).warnings
    assert UNLIKE not in again.predict(None, {"glucose": 8}, max_new_tokens=2).warnings, "there is no picture"
    again.reliability = Reliability(unlike_above=1e6)
    assert UNLIKE not in again.predict(file, {"glucose": 8}, max_new_tokens=2).warnings
    with pytest.raises(UserError, match=r"familiarity.* has another shape|tensor familiarity"):
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | {"familiarity": 3}))
        write_manifest(folder)
        ClinicalVLM.from_pretrained(folder)


def test_a_value_beyond_those_of_training_is_told(tiny_model: ClinicalVLM) -> None:
    notes = tiny_model.predict(None, {"glucose": 49, "systolic": 41, "sex": "F"}, max_new_tokens=2).warnings
    assert "glucose 49 lies above all values that the adapter was trained on" in notes
    assert "systolic 41 lies below all values that the adapter was trained on" in notes
    assert not [note for note in notes if note.startswith("sex")]
