"""The bootstrap over patients: what it covers, what it refuses."""

import json

import numpy as np
import pytest

from vlm.statistics.estimate import Estimate
from vlm.statistics.intervals import draw_weights, mean, patient_bootstrap, ratio
from vlm.statistics.probability import auroc


def test_the_bootstrap_resamples_patients_and_not_cases() -> None:
    """Ten copies of each patient's case carry no more evidence than one."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=60)
    patients = [f"p{number}" for number in range(60)]
    once = patient_bootstrap(mean(values), patients, 2000)
    tenfold = patient_bootstrap(mean(np.repeat(values, 10)), np.repeat(patients, 10).tolist(), 2000)
    assert tenfold.high - tenfold.low == pytest.approx(once.high - once.low, rel=0.1)
    assert once.low < values.mean() < once.high
    assert once.high - once.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(60), rel=0.15)


def test_no_interval_is_stated_where_there_is_none() -> None:
    assert patient_bootstrap(mean(np.full(2, np.nan)), ["a", "b"], 100).value is None
    assert patient_bootstrap(mean(np.ones(2)), ["a", "a"], 100) == (1.0, None, None)
    assert patient_bootstrap(mean(np.empty(0)), [], 100).value is None


def test_a_class_of_under_ten_patients_gets_no_interval() -> None:
    """Nine positive patients with many cases each are still nine patients."""
    patients = [f"p{number}" for number in range(30) for _ in range(3)]
    rng = np.random.default_rng(0)
    scores = rng.normal(size=90)
    for positives, stated in ((9, False), (10, True)):
        y = np.array([float(int(name[1:]) < positives) for name in patients])
        estimate = patient_bootstrap(auroc(y, scores), patients, 200, classes=y)
        assert estimate.value is not None and (estimate.low is not None) == stated


def test_the_parts_of_many_draws_are_one_bootstrap(monkeypatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    patients = [str(number) for number in range(50)]
    whole = patient_bootstrap(mean(values), patients, 500)
    monkeypatch.setattr("vlm.statistics.intervals.MOST_WEIGHTS", 50 * 130)
    parted = patient_bootstrap(mean(values), patients, 500)
    assert parted == whole, "the same draws, whether they are kept for the next statistic or not"


def test_a_ratio_is_that_of_the_sums() -> None:
    weights = np.array([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])
    above, below = np.array([2.0, 6.0, 3.0]), np.array([0.0, 2.0, 2.0])
    np.testing.assert_allclose(ratio(above, below)(weights), [11 / 4, 15 / 6, np.nan])


def test_a_ratio_over_one_case_and_the_interval_of_known_draws() -> None:
    assert ratio(np.array([3.0, 1]), np.array([1.0, 0]))(np.array([[1.0, 5]]))[0] == 8
    assert ratio(np.array([3.0]), np.array([0.25]))(np.array([[1.0]]))[0] == 12
    values, patients = np.arange(20.0), [f"p{n:02}" for n in range(20)]
    drawn = draw_weights(np.arange(20), 400, np.random.default_rng(7)) @ values / 20
    found = patient_bootstrap(mean(values), patients, 400, seed=7)
    assert found == pytest.approx((9.5, np.quantile(drawn, 0.025), np.quantile(drawn, 0.975)))
    ten = patient_bootstrap(mean(values[:10]), patients[:10], 1)
    assert ten.low == ten.high is not None and patient_bootstrap(mean(values[:9]), patients[:9], 400).low is None
    half = lambda weights: np.where(np.arange(len(weights)) % 2 == 0, 1.0, np.nan)  # noqa: E731
    assert patient_bootstrap(half, patients, 400) == (1, 1, 1), "half of the draws are enough"
    few = lambda weights: np.where(np.arange(len(weights)) % 3 == 0, 1.0, np.nan)  # noqa: E731
    assert patient_bootstrap(few, patients, 400) == (1, None, None)


def test_an_interval_without_an_end_is_none() -> None:
    """One draw in 20 has no false positive: its likelihood ratio is infinite, and is not left out."""
    patients = [str(n) for n in range(20)]
    assert patient_bootstrap(lambda weights: weights[:, 0] + 1, patients, 400).low is not None
    ends = patient_bootstrap(lambda weights: np.where(weights[:, 0] > 1, np.inf, 1.0), patients, 400)
    assert (ends.value, ends.low, ends.high) == (1.0, None, None)
    gaps = patient_bootstrap(lambda weights: np.where(weights[:, 0] > 1, np.nan, 1.0), patients, 400)
    assert (gaps.low, gaps.high) == (1.0, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_number_that_is_no_json(value: float) -> None:
    estimate = patient_bootstrap(lambda weights: np.full(len(weights), value), list("abcdefghijkl"), 20)
    assert estimate == Estimate(None) and json.dumps(estimate._asdict(), allow_nan=False)


def coverage(cohorts: int, seed: int) -> float:
    """Share of simulated cohorts whose interval of the AUROC holds the truth; patients have one to three cases."""
    rng = np.random.default_rng(seed)
    shift, hits = 1.0, 0
    truth = 0.7602499389065233  # P(a + 1 > b) for two standard normal numbers a and b
    for number in range(cohorts):
        cases = rng.integers(1, 4, 120)
        y = np.repeat(rng.random(120) < 0.5, cases).astype(float)
        patients = np.repeat(np.arange(120), cases).astype(str).tolist()
        scores = rng.normal(size=len(y)) + shift * y
        estimate = patient_bootstrap(auroc(y, scores), patients, 400, seed=number, classes=y)
        hits += estimate.low <= truth <= estimate.high
    return hits / cohorts


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """A sample; `make soak` runs all 1,000 cohorts."""
    assert 0.90 <= coverage(150, seed=0) <= 0.99


@pytest.mark.soak
def test_the_interval_covers_the_truth_in_a_thousand_cohorts() -> None:
    assert 0.93 <= coverage(1000, seed=1) <= 0.97
