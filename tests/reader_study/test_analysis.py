"""The analysis against numbers worked out by hand, and scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from tests.reader_studies import answer, judge_all, line, small_study, written
from vlm.reader_study.analysis import analyse, weighted_kappa, weighted_median, write_results
from vlm.reader_study.answers import VERDICTS
from vlm.statistics.intervals import draw_weights

BOTH = {(1, "draft"): "minor_edits", (1, "reference"): "as_it_stands",
        (2, "draft"): "not_acceptable", (2, "reference"): "as_it_stands"}  # fmt: skip


def once(count: int) -> np.ndarray:
    return np.ones((1, count))


def test_kappa_by_hand() -> None:
    """Observed squared distances 0 + 1 + 0 + 1; by chance (12 + 2 + 18) / 4 = 8: 1 − 2 / 8."""
    a, b = np.array([0, 0, 1, 3]), np.array([0, 1, 1, 2])
    assert weighted_kappa(a, b, 4)(once(4)) == pytest.approx([0.75])
    assert np.isnan(weighted_kappa(a * 0, b * 0, 4)(once(4))).all()


def test_kappa_is_scikit_learns_for_every_resample() -> None:
    rng = np.random.default_rng(0)
    a, noise = rng.integers(0, 4, 60), rng.integers(-1, 2, 60)
    b = np.clip(a + noise, 0, 3)
    weights = draw_weights(np.arange(60) // 2, 20, rng)
    theirs = [cohen_kappa_score(a, b, labels=range(4), weights="quadratic", sample_weight=row) for row in weights]
    assert weighted_kappa(a, b, 4)(weights) == pytest.approx(theirs)


def test_the_weighted_median_is_that_of_repeated_values() -> None:
    rng = np.random.default_rng(1)
    values, weights = rng.random(9), rng.integers(0, 3, (30, 9)).astype(float)
    theirs = [np.median(np.repeat(values, row.astype(int))) for row in weights]
    assert weighted_median(values)(weights) == pytest.approx(theirs)


def test_shares_differences_and_agreement() -> None:
    study = small_study()
    results = analyse(study, judge_all(study, BOTH), draws=200)
    draft, reference = (results["sources"][name] for name in ("draft", "reference"))
    assert draft["verdicts"] == {"as_it_stands": 0, "minor_edits": 12, "major_edits": 0, "not_acceptable": 12}
    assert (draft["judgements"], draft["cases"], draft["patients"]) == (24, 12, 12)
    assert draft["accepted"]["at_most_minor_edits"]["value"] == 0.5
    as_it_stands = reference["accepted"]["as_it_stands"]
    assert (
        as_it_stands["value"] == 1 and as_it_stands["low"] is None and "rule of three up to 0.25" in as_it_stands["why"]
    )
    pair = results["differences"]["reference"]
    assert (pair["better"], pair["same"], pair["worse"], pair["judgements"]) == (0, 0, 24, 24)
    assert pair["accepted"]["as_it_stands"]["value"] == -1 and pair["accepted"]["at_most_minor_edits"]["value"] == -0.5
    agreed = results["agreement"]["1, 2"]
    grades = [1] * 12 + [0] * 12, [3] * 12 + [0] * 12
    assert agreed["kappa"]["value"] == pytest.approx(cohen_kappa_score(*grades, labels=range(4), weights="quadratic"))
    assert agreed["kappa"]["low"] is None and agreed["kappa"]["why"].startswith("alike in nearly all")
    assert agreed["same_verdict"]["value"] == 0.5
    assert draft["seconds"]["value"] == 10 and draft["seconds"]["answers"] == 24


def test_each_value_has_its_interval() -> None:
    study, rng = small_study(cases=40), np.random.default_rng(3)
    answers = {
        (reader, page): answer(study, reader, page, [rng.choice(list(VERDICTS))], seconds=rng.uniform(5, 60))
        for reader, page in judge_all(study, BOTH)
    }
    results = analyse(study, answers, draws=300)
    kappa, seconds = results["agreement"]["1, 2"]["kappa"], results["seconds"]
    share = results["differences"]["reference"]["accepted"]["at_most_minor_edits"]
    for estimate in (kappa, seconds, share, results["sources"]["draft"]["seconds"]):
        assert estimate["low"] < estimate["value"] < estimate["high"] and "why" not in estimate
    assert kappa["low"] < 0 < kappa["high"], "readers who throw dice"


def test_a_text_of_two_sources_counts_for_both() -> None:
    study = small_study(alike=range(12))
    assert sum(len(reader.pages) for reader in study.readers) == 24
    assert study.cases[0].texts[0].sources == [
        "draft",
        "reference",
    ]
    results = analyse(study, judge_all(study, BOTH), draws=50)
    assert results["same_texts"] == 12 and results["differences"]["reference"]["same_text"] == 24
    assert results["sources"]["reference"]["verdicts"] == results["sources"]["draft"]["verdicts"]
    assert results["differences"]["reference"]["accepted"]["as_it_stands"]["value"] == 0


def test_a_small_group_has_no_interval_and_says_so() -> None:
    study = small_study(cases=9)
    results = analyse(study, judge_all(study, BOTH), draws=50)
    accepted = [results[part][name]["accepted"] for part, name in (("sources", "draft"), ("differences", "reference"))]
    for estimate in (results["agreement"]["1, 2"]["kappa"], *(share["at_most_minor_edits"] for share in accepted)):
        assert estimate["low"] is None and estimate["why"] == "9 patients; an interval needs 10"


def test_nothing_judged_yet_is_undefined_with_its_reason() -> None:
    study = small_study()
    results = analyse(study, {}, draws=50)
    assert results["sources"]["draft"]["any_error"] == {"value": None, "low": None, "high": None,
                                                        "why": "nothing was judged"}  # fmt: skip
    assert results["agreement"]["1, 2"]["kappa"]["why"] == "no text was judged by both"
    uniform = dict.fromkeys(BOTH, "minor_edits")
    alike = analyse(study, judge_all(study, uniform), draws=50)
    assert alike["agreement"]["1, 2"]["kappa"]["why"].startswith("both readers gave one")


def test_errors_and_times_are_counted() -> None:
    study = small_study(readers=1)
    answers = judge_all(study, {key: "minor_edits" for key in BOTH})
    for number in (1, 2, 3):
        shown = {1: {"showings": 2}, 2: {"seconds": None, "showings": 0}, 3: {"seconds": 1000.0}}[number]
        answers[1, number] = answer(study, 1, number, ["major_edits"], [["missed_finding", "other"]], **shown)
    results = analyse(study, answers, draws=50)
    rates = [results["sources"][name]["errors"] for name in study.sources]
    assert sum(12 * rate["missed_finding"]["value"] for rate in rates) == pytest.approx(3)
    assert all(rate["invented_finding"]["value"] == 0 for rate in rates) and results["agreement"] == {}
    assert results["seconds"]["value"] == 10 and (results["seconds"]["answers"], results["seconds"]["left_out"]) == (
        22,
        2,
    )


def test_side_by_side_and_unfinished_results_are_written(tmp_path: Path) -> None:
    study = small_study(layout="side_by_side")
    folder = written(study, tmp_path / "study")
    with (folder / "answers.jsonl").open("wb") as file:
        file.write(line(answer(study, 1, 1, ["minor_edits", "as_it_stands"])))
        file.write(line(answer(study, 2, 1, ["minor_edits", "as_it_stands"]))[:40])
    said = write_results(folder)
    assert "reader 1: 1 of 12 pages answered" in said[1] and said[1].endswith("not finished")
    assert "reader 2: 0 of 12 pages answered" in said[2]
    results = json.loads((folder / "results.json").read_text())
    assert "seconds" not in results["sources"]["draft"] and results["seconds"]["value"] == 10
    page = (folder / "results.html").read_text()
    assert "not finished" in page and all(words in page for words in VERDICTS.values()) and "Report A" not in page
