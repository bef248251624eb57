"""What a run fits to judge its drafts: on which pictures and patients, and what it says where there are too few."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vlm import ClinicalVLM
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.evaluation.scoring import CaseScores
from vlm.inference.engine import Draft
from vlm.reliability import familiarity as distances
from vlm.reliability import sentences
from vlm.reliability.thresholds import Reliability
from vlm.training import fit_reliability as fitting
from vlm.training.run import case_dataset


@pytest.fixture
def splits(tiny_config: Config, tiny_model: ClinicalVLM) -> tuple:
    cohort = load_cohort(tiny_config.data)
    return tuple(case_dataset(tiny_config, tiny_model.spec, cohort, split) for split in ("train", "validation")), cohort


def test_pictures_are_seen_without_dropout_and_blank_or_missing_ones_are_left_out(tiny_model, splits) -> None:
    (train, _), _ = splits
    assert train.dropout is not None and train.dropout.image > 0
    rows = np.arange(len(train))
    found, shown = fitting.image_summaries(tiny_model, train, rows, 4)
    plain = replace(train, dropout=None)
    has = [index for index in rows if plain[index]["has_image"]]
    assert shown.tolist() == has and 0 < len(has) < len(rows)
    pixels = torch.stack([plain[index]["pixel_values"][0] for index in has])
    with torch.no_grad():
        wanted = tiny_model.eval().vision(pixels, torch.ones(len(has), dtype=torch.bool)).f
    assert found == pytest.approx(wanted.numpy(), abs=1e-4)
    hidden = replace(train, withhold=("image",))
    assert len(fitting.image_summaries(tiny_model, hidden, rows, 4)[0]) == 0


def test_the_threshold_is_that_of_the_validation_patients(tiny_model, splits, monkeypatch) -> None:
    (train, validation), _ = splits
    few = fitting.fit_familiarity(tiny_model, train, validation, 4)
    assert few[0].count == 0 and few[1] == 0 and few[2].startswith("unlike pictures: not told (")
    for module in (fitting, distances):
        monkeypatch.setattr(module, "FEWEST_PICTURES", 4)
    assert "validation patients with one, 20 needed" in fitting.fit_familiarity(tiny_model, train, validation, 4)[2]
    monkeypatch.setattr(fitting, "fewest_patients", lambda _: 2)
    monkeypatch.setattr(fitting, "FALSE_ALARMS", 0.5)
    familiarity, above, line = fitting.fit_familiarity(tiny_model, train, validation, 4)
    asked, _ = fitting.image_summaries(tiny_model, validation, np.arange(len(validation)), 4)
    far = familiarity(torch.from_numpy(asked)).numpy()
    assert familiarity.count > 0 and above in far.tolist() and (far > above).mean() <= 0.5
    assert f"further than {above:.3g} ({familiarity.count} directions of" in line


def test_a_run_prints_what_was_not_fitted(tiny_config, tiny_model, splits, capsys) -> None:
    (train, validation), _ = splits
    count, labels = len(validation), len(tiny_model.spec.labels)
    scores = CaseScores(np.zeros((count, labels)), np.zeros((count, labels)), np.zeros(count), np.zeros(count))
    config = replace(tiny_config, evaluation=replace(tiny_config.evaluation, coverage=0.8))
    fitting.fit_reliability(tiny_model, train, validation, scores, config)
    said = capsys.readouterr().err
    assert "label sets of 80% coverage: none: pathology (" in said and "unlike pictures: not told" in said
    assert "confidence of sentences: none (" in said
    assert tiny_model.reliability == Reliability()


def test_sentences_are_fitted_on_drafts_of_validation_cases_with_a_report(
    tiny_config, tiny_model, splits, monkeypatch
) -> None:
    (_, validation), _ = splits
    tiny_model.spec = replace(tiny_model.spec, label_findings={tiny_model.spec.labels[0]: "opacity"})
    asked = []

    def drafts(_model, cases, _config, _drafted) -> list[Draft]:
        asked.append([cases[index]["id"] for index in range(len(cases))])
        return [Draft("Opacity.", [2.0] * len(tiny_model.spec.labels)) for _ in range(len(cases))]

    monkeypatch.setattr(fitting, "draft", drafts)
    fit, why = fitting.fit_confidence(tiny_model, validation, tiny_config)
    assert fit is None and "validation patients with a report, 20 needed" in why and not asked, "no draft for nothing"
    for module in (fitting, sentences):
        monkeypatch.setattr(module, "FEWEST_DRAFTS", 2)
    fit, line = fitting.fit_confidence(tiny_model, validation, tiny_config)
    with_report = [one for one, report in zip(validation.rows["id"], validation.reports, strict=True) if report]
    assert fit is not None and asked == [with_report] and f"of {len(with_report)} validation drafts" in line
    none = replace(tiny_config, evaluation=replace(tiny_config.evaluation, sentence_cases=0))
    assert fitting.fit_confidence(tiny_model, validation, none)[1].endswith("none (evaluation.sentence_cases is 0)")
    tiny_model.spec = replace(tiny_model.spec, label_findings={})
    assert "no label stands for a finding" in fitting.fit_confidence(tiny_model, validation, tiny_config)[1]
