"""Measures of a probability against scikit-learn and by hand."""

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from vlm.statistics import probability


def random_cases(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, probabilities with ties, weights."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 300))
    p = rng.random(n).round(2)
    y = (rng.random(n) < p).astype(float)
    y[:2] = 0, 1
    w = rng.integers(0, 4, n).astype(float)
    w[:2] = 1
    return y, p, w


@pytest.mark.parametrize("seed", range(60))
def test_measures_are_those_of_scikit_learn(seed: int) -> None:
    y, p, w = random_cases(seed)
    for ours, theirs in (
        (probability.auroc, roc_auc_score),
        (probability.average_precision, average_precision_score),
        (probability.brier, brier_score_loss),
    ):
        weighted = ours(y, p)(np.vstack([w, np.ones_like(w)]))
        assert weighted[0] == pytest.approx(theirs(y, p, sample_weight=w), abs=1e-9)
        assert weighted[1] == pytest.approx(theirs(y, p), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_line_is_a_logistic_regression(seed: int) -> None:
    y, p, w = random_cases(seed)
    x = logit(np.clip(p, probability.EPSILON, 1 - probability.EPSILON))[:, None]
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10000).fit(x, y, sample_weight=w)
    assert probability.calibration_line(y, p)(w[None])[0] == pytest.approx(model.coef_[0, 0], abs=1e-4)


def test_calibration_measures_know_a_calibrated_probability() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(40000)
    y = (rng.random(40000) < p).astype(float)
    one = np.ones((1, len(y)))
    assert probability.expected_calibration_error(y, p)(one)[0] < 0.01
    assert probability.calibration_line(y, p)(one)[0] == pytest.approx(1, abs=0.03)
    assert probability.calibration_intercept(y, p)(one)[0] == pytest.approx(0, abs=0.03)
    sure = expit(3 * logit(np.clip(p, 1e-6, 1 - 1e-6)))
    assert probability.expected_calibration_error(y, sure)(one)[0] > 0.1
    assert probability.calibration_line(y, sure)(one)[0] == pytest.approx(1 / 3, abs=0.03)


def test_net_benefit_and_selective_risk_by_hand() -> None:
    y, p, one = np.array([1.0, 0, 1, 0]), np.array([0.9, 0.8, 0.3, 0.1]), np.ones((1, 4))
    assert probability.net_benefit(y, p, 0.5)(one)[0] == pytest.approx((1 - 1) / 4)
    assert probability.net_benefit(y, p, 0.2)(one)[0] == pytest.approx((2 - 1 * 0.25) / 4)
    # Surest first: 0.9 and 0.1, both right; then 0.8, wrong; then 0.3, wrong.
    assert probability.selective_risk(y, p, 0.5)(one)[0] == 0
    assert probability.selective_risk(y, p, 0.75)(one)[0] == pytest.approx(1 / 3)
    assert probability.selective_risk(y, p, 1.0)(one)[0] == pytest.approx(1 / 2)


def test_one_class_alone_has_no_auroc() -> None:
    assert np.isnan(probability.auroc(np.ones(5), np.arange(5.0))(np.ones((1, 5)))[0])
    assert np.isnan(probability.average_precision(np.zeros(5), np.arange(5.0))(np.ones((1, 5)))[0])


def test_the_intercept_by_hand_and_where_there_is_none() -> None:
    """Above 0 where the probabilities are too low: three of four at 0.5 are positive, so logit 3/4."""
    half, one = np.full(4, 0.5), np.ones((1, 4))
    assert probability.calibration_intercept(np.array([1.0, 1, 1, 0]), half)(one)[0] == pytest.approx(np.log(3))
    assert probability.calibration_intercept(np.array([0.0, 0, 0, 1]), half)(one)[0] == pytest.approx(-np.log(3))
    light = np.array([[0.25, 0.25, 0.25, 0.25], [1, 1, 1, 0]])
    found = probability.calibration_intercept(np.array([1.0, 1, 1, 0]), half)(light)
    assert found[0] == pytest.approx(np.log(3)) and np.isnan(found[1]), "a draw without a negative has none"
    for y in (np.zeros(4), np.ones(4)):
        assert np.isnan(probability.calibration_intercept(y, half)(one)[0])


def test_classes_that_are_apart_have_no_calibration_line() -> None:
    y, p = np.array([0.0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    weights = np.array([[1.0, 1, 1, 1], [1, 0, 1, 0]])
    assert np.isnan(probability.calibration_line(y, p)(weights)).all()
    mixed = np.array([0.1, 0.85, 0.8, 0.9])
    found = probability.calibration_line(y, mixed)(weights)
    assert np.isfinite(found[0]) and np.isnan(found[1])  # the second draw leaves out what lies between


def test_the_risk_of_ties_does_not_depend_on_their_order() -> None:
    wrong, certain = np.array([0.0, 1, 0, 1]), np.array([2.0, 1, 1, 0])
    # Kept 1 of 4 without error, then 3 with one, then 4 with two.
    area = probability.risk_coverage_area(wrong, certain)(np.array([[1.0, 1, 1, 1], [1, 2, 0, 1], [0, 1, 1, 1]]))
    assert area == pytest.approx([(0 + 2 * 1 / 3 + 1 / 2) / 4, (0 + 2 * 2 / 3 + 3 / 4) / 4, (2 * 1 / 2 + 2 / 3) / 3])
    swapped = probability.risk_coverage_area(wrong[[0, 2, 1, 3]], certain)(np.ones((1, 4)))
    assert swapped[0] == pytest.approx(area[0])
