"""Whether the text names a label, and a test of a part of the cases."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.evaluation.measures import Bootstrap, Reports, named_labels
from vlm.evaluation.naming import macro, naming
from vlm.findings.labeller import Labeller
from vlm.training.run import train

LABELS = ["mel", "nv", "odd"]
STANDS_FOR = {"mel": "melanoma", "nv": "nevus"}
DRAFTS = ["Consistent with a melanoma.", "A nevus. No melanoma.", "Possible melanoma.", "A nevus or a melanoma."] * 5
TARGETS = np.array([[1, 0, 1], [0, 1, 0], [1, np.nan, 0], [0, 1, 0]] * 5)


def test_a_text_names_what_it_asserts_alone() -> None:
    reports = Reports(DRAFTS, DRAFTS, Labeller.load("dermoscopy_en"))
    found = named_labels(reports, TARGETS, LABELS, STANDS_FOR, Bootstrap(np.arange(20), 50))
    assert found["each"].keys() == {"mel", "nv"}, "a label without a finding is left out"
    melanoma, nevus = found["each"]["mel"], found["each"]["nv"]
    assert (melanoma["cases"], melanoma["named"], melanoma["prevalence"]) == (10, 10, 0.5)
    assert melanoma["precision"]["value"] == melanoma["recall"]["value"] == melanoma["f1"]["value"] == 0.5
    assert nevus["f1"]["value"] == 1 and nevus["prevalence"] == pytest.approx(10 / 15), "unknown cases are left out"
    assert found["macro_f1"]["value"] == pytest.approx(0.75)


def test_the_mean_weighs_labels_alike_and_cases_by_their_draws() -> None:
    named = naming(DRAFTS, TARGETS, LABELS, STANDS_FOR, Labeller.load("dermoscopy_en"))
    weights = np.stack([np.ones(20), np.tile([1, 1, 0, 0], 5)]).astype(float)
    np.testing.assert_allclose(macro(named)(weights), [0.75, 1.0])
    assert naming(DRAFTS, TARGETS, LABELS, {}, Labeller.load()) == {}


def test_a_part_of_the_test_cases(tiny_config: Config) -> None:
    cohort = load_cohort(tiny_config.data)
    whole, part = cohort.split("test"), cohort.split("test", 2)
    assert 2 <= len(part) < len(whole) and set(part["id"]) < set(whole["id"])
    chosen = set(part["patient"])
    assert [row for row in whole["id"] if row in set(part["id"])] == part["id"], "in table order"
    assert set(part["id"]) == {row["id"] for row in whole if row["patient"] in chosen}, "whole patients"
    assert cohort.split("test", 2)["id"] == part["id"]
    assert cohort.split("test", len(whole))["id"] == whole["id"] == cohort.split("test", 0)["id"]


def test_a_run_says_of_how_many_it_tested_a_part(tiny_config: Config) -> None:
    few = replace(tiny_config.evaluation, cases=2)
    run: Path = train(replace(tiny_config, evaluation=few, train=replace(tiny_config.train, max_steps=1)))
    metrics = json.loads((run / "metrics.json").read_text())
    total = len(load_cohort(tiny_config.data).split("test"))
    assert (
        metrics["cases"] == len((run / "predictions.jsonl").read_text().splitlines()) < metrics["drawn_from"] == total
    )
    assert f"drawn at random from {total} cases" in (run / "report.html").read_text()
