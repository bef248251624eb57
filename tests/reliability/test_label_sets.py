"""Sets of answers that hold the truth at the wanted rate, on simulated cohorts."""

from itertools import pairwise

import numpy as np
import pytest

from vlm.errors import UserError
from vlm.reliability.label_sets import LabelThresholds, conformal_quantile, fewest_patients, fit_label_sets

COHORTS = 500


def draw(rng: np.random.Generator, patients: int, prevalence: float) -> tuple[np.ndarray, ...]:
    """Draw one to four cases a patient, alike in truth and in error; returns probabilities, truth and patients, N."""
    patient = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    truth = (rng.random(patients) < prevalence)[patient]
    shift = rng.normal(0, 1.5, patients)[patient] + rng.normal(0, 0.7, len(patient))
    logits = np.where(truth, 1.2, -1.2) + shift + np.log(prevalence / (1 - prevalence))  # as a head learns it
    return 1 / (1 + np.exp(-logits)), truth.astype(float), patient.astype(str)


def one_case_each(p: np.ndarray, truth: np.ndarray, patient: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the first case of each patient: a further patient's case, whatever the number of cases."""
    first = np.unique(patient, return_index=True)[1]
    return p[first], truth[first]


def holds_truth(thresholds: LabelThresholds, p: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.array([("present" if y else "absent") in thresholds.answers(q) for q, y in zip(p, truth, strict=True)])


def mean_coverage(prevalence: float, patients: int, coverage: float = 0.9) -> tuple[float, float, float, bool]:
    """Coverage on further patients over the cohorts: of all, of those with the label, of those without."""
    rng, rows, kinds = np.random.default_rng(0), [], set()
    for _ in range(COHORTS):
        p, truth, patient = draw(rng, patients, prevalence)
        (thresholds,) = fit_label_sets(p[:, None], truth[:, None], list(patient), ["x"], coverage)[0].values()
        kinds.add(thresholds.by_class)
        asked, answer = one_case_each(*draw(rng, 200, prevalence))
        held = holds_truth(thresholds, asked, answer)
        rows.append((held.mean(), held[answer == 1].mean(), held[answer == 0].mean()))
    assert len(kinds) == 1
    everyone, present, absent = np.mean(rows, axis=0)
    return float(everyone), float(present), float(absent), kinds.pop()


def test_sets_by_class_cover_each_class_at_the_wanted_rate() -> None:
    everyone, present, absent, by_class = mean_coverage(0.4, 100)
    assert by_class
    assert [everyone, present, absent] == pytest.approx([0.9] * 3, abs=0.02)


def test_a_rare_class_is_never_ruled_out_and_the_other_keeps_its_rate_or_more() -> None:
    _, present, absent, by_class = mean_coverage(0.05, 100)
    assert not by_class
    assert present == 1 and absent > 0.88, "the likelier answer is beside the rare one"


def test_another_coverage_is_kept_too() -> None:
    assert mean_coverage(0.5, 200, 0.8)[0] == pytest.approx(0.8, abs=0.02)


def test_a_patient_with_many_cases_counts_once() -> None:
    scores = np.concatenate([np.linspace(0, 1, 50), np.full(5000, 9.0)])
    patients = [*map(str, range(50)), *["many"] * 5000]
    assert conformal_quantile(scores, patients, 0.9) < 1, "by cases it would be 9"
    assert conformal_quantile(scores[:50], patients[:50], 0.9) == pytest.approx(np.linspace(0, 1, 50)[45])
    assert conformal_quantile(scores[:5], patients[:5], 0.9) == np.inf


def test_what_cannot_be_fitted_is_said_with_its_reason() -> None:
    rng = np.random.default_rng(1)
    p, targets = rng.random((60, 3)), rng.integers(0, 2, (60, 3)).astype(float)
    targets[5:, 1] = 0
    targets[12:, 2] = np.nan
    fitted, lines = fit_label_sets(p, targets, [f"p{n}" for n in range(60)], ["a", "b", "c"], 0.9)
    assert fitted.keys() == {"a", "b"} and fitted["a"].by_class and fitted["b"].present == 0 < fitted["b"].absent < 1
    title = "label sets of 90% coverage"
    assert lines[0] == f"{title}: for each class: a"
    assert lines[1].startswith(f"{title}: never without an answer that few patients have: b (present in ")
    assert lines[2].startswith(f"{title}: none: c (present in ") and lines[2].endswith("patients, 20 needed)")
    mirrored, _ = fit_label_sets(1 - p, 1 - targets, [f"p{n}" for n in range(60)], ["a", "b", "c"], 0.9)
    assert (mirrored["b"].present, mirrored["b"].absent) == pytest.approx((1 - fitted["b"].absent, 1))
    assert fit_label_sets(np.empty((0, 0)), np.empty((0, 0)), [], [], 0.9) == ({}, [])


def test_more_coverage_needs_more_patients_and_gives_larger_sets() -> None:
    assert [fewest_patients(coverage) for coverage in (0.5, 0.9, 0.95, 0.99)] == [20, 20, 20, 99]
    p, truth, patient = draw(np.random.default_rng(2), 300, 0.5)
    fits = [fit_label_sets(p[:, None], truth[:, None], list(patient), ["x"], c)[0]["x"] for c in (0.6, 0.8, 0.95)]
    assert all(a.present >= b.present and a.absent <= b.absent for a, b in pairwise(fits))


def test_the_four_sets() -> None:
    overlapping, apart = LabelThresholds(0.3, 0.6), LabelThresholds(0.8, 0.2)
    assert [overlapping.answers(p) for p in (0.1, 0.3, 0.6, 0.9)] == [
        ("absent",), ("present", "absent"), ("present", "absent"), ("present",)
    ]  # fmt: skip
    assert apart.answers(0.5) == ()
    with pytest.raises(UserError, match=r"reliability.label_sets: 1.5 and 0.1 are no probabilities"):
        LabelThresholds(1.5, 0.1)
    with pytest.raises(UserError):
        LabelThresholds(float("nan"), 0.1)


def test_the_likelier_answer_is_beside_one_that_is_in_every_set() -> None:
    """As of a class that too few validation patients have: `present` alone at 1 % would mislead."""
    rare, common = LabelThresholds(present=0.0, absent=0.001), LabelThresholds(present=0.2, absent=0.001)
    assert [rare.answers(p) for p in (0.0005, 0.01, 0.6)] == [
        ("present", "absent"),
        ("present", "absent"),
        ("present",),
    ]
    assert [common.answers(p) for p in (0.0005, 0.01, 0.6)] == [("absent",), (), ("present",)]
