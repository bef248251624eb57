"""Training, validation and test side by side: the losses and areas of scikit-learn, of whole patients, undropped."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from vlm.config import Config, DropoutConfig
from vlm.data.ingest.sources import load_cohort
from vlm.evaluation.evaluate import plain_splits
from vlm.evaluation.scoring import CaseScores, score_cases
from vlm.evaluation.split_measures import SplitScores, score_splits, split_measures


def scored(targets: np.ndarray, seed: int = 0) -> SplitScores:
    """Cases of one patient each, whose logits follow the targets loosely; every case has a report of ten tokens."""
    rng, count = np.random.default_rng(seed), len(targets)
    logits = rng.normal(size=targets.shape) + np.nan_to_num(targets)
    scores = CaseScores(logits, targets, rng.uniform(5, 15, count), np.full(count, 10))
    return SplitScores(scores, np.array([f"p{number}" for number in range(count)], object), 500)


def test_losses_and_areas_are_those_of_scikit_learn() -> None:
    targets = np.random.default_rng(1).integers(0, 2, (60, 2)).astype(float)
    targets[::5, 1] = np.nan
    split = scored(targets)
    scores, known = split.scores, ~np.isnan(targets)
    measured = split_measures({"train": split}, ["a", "b"], 50)["train"]
    assert (measured["cases"], measured["patients"], measured["drawn_from"]) == (60, 60, 500)
    assert measured["bce"]["value"] == pytest.approx(log_loss(targets[known], scores.probabilities[known]))
    assert measured["text_loss"]["value"] == pytest.approx(scores.losses.mean() / 10)
    for k, label in enumerate("ab"):
        rows = known[:, k]
        area = roc_auc_score(targets[rows, k], scores.logits[rows, k].round(4))
        assert measured["auroc"][label]["value"] == pytest.approx(area)
        assert measured["auroc"][label]["low"] < area < measured["auroc"][label]["high"]


def test_what_is_not_defined_says_why() -> None:
    unknown = scored(np.full((12, 1), np.nan))
    unknown.scores.tokens[:] = 0
    measured = split_measures({"test": unknown, "train": scored(np.ones((12, 1)))}, ["a"], 20)
    assert measured["test"]["bce"]["why"] == "no label is known"
    assert measured["test"]["text_loss"]["why"] == "no case has a reference report"
    for split in measured.values():
        assert split["auroc"]["a"]["why"] == "the label is the same in all these cases, or unknown"
    assert measured["train"]["bce"]["value"] > 0


def test_training_cases_are_scored_whole_and_few(tiny_model, tiny_config: Config, monkeypatch) -> None:
    """Not with the inputs that training drops, and of patients drawn at random."""
    dropped = replace(tiny_config.data, dropout=DropoutConfig(0.9, 0.9, 0.9))
    config = replace(tiny_config, data=dropped)
    cohort = load_cohort(config.data)
    split = plain_splits(tiny_model, cohort, config)["train"]
    whole = score_cases(tiny_model, split, 4, "all")
    found = score_splits(tiny_model, plain_splits(tiny_model, cohort, config), config)
    np.testing.assert_allclose(found["train"].scores.losses, whole.losses, rtol=1e-4)
    assert set(found) == {"train", "validation"} and found["train"].drawn_from == len(split)
    monkeypatch.setattr("vlm.evaluation.split_measures.MOST_CASES", 4)
    few = score_splits(tiny_model, plain_splits(tiny_model, cohort, config), config)["train"]
    patients = list(split.rows["patient"])
    assert 4 <= len(few.patients) < len(split) == few.drawn_from
    assert all(list(few.patients).count(name) == patients.count(name) for name in few.patients), "whole patients"
    rows = np.flatnonzero(np.isin(patients, few.patients))
    np.testing.assert_allclose(few.scores.losses, whole.losses[rows], rtol=1e-4)
