"""Measures of a probability against scikit-learn, and temperature scaling against a known truth."""

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from vlm.evaluation import probability
from vlm.evaluation.scoring import CaseScores, split_metrics
from vlm.evaluation.temperature import fit_temperature
from vlm.model.calibration import Calibration


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


def test_the_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3000, 2))
    targets = (rng.random(logits.shape) < expit(logits)).astype(float)
    targets[::7, 1] = np.nan
    columns = np.column_stack([4 * logits, np.zeros((3000, 2))])
    patients = [str(number // 2) for number in range(3000)]
    calibration = fit_temperature(CaseScores.from_columns(columns, targets), patients)
    assert calibration.temperature == pytest.approx(4, rel=0.1)
    assert (calibration.patients, calibration.cases) == (1500, 3000)
    nobody = fit_temperature(CaseScores.from_columns(columns, np.full_like(targets, np.nan)), patients)
    assert nobody == Calibration() and "not calibrated" in nobody.describe()
    for one_class in (np.where(targets == 1, 1, np.nan), np.zeros_like(targets)):
        assert fit_temperature(CaseScores.from_columns(columns, one_class), patients) == Calibration()


def test_a_temperature_divides_the_logit() -> None:
    """Above 1 it takes certainty away: a logit of 4 at 2 is one of 2."""
    logits = torch.tensor([[4.0, -4.0, 0.0]])
    np.testing.assert_allclose(Calibration(2.0).probabilities(logits)[0], [0.880797, 0.119203, 0.5], atol=1e-6)
    np.testing.assert_allclose(Calibration(0.5).probabilities(logits)[0], [0.999665, 0.000335, 0.5], atol=1e-6)
    np.testing.assert_allclose(Calibration().probabilities(logits)[0], expit([4.0, -4, 0]), atol=1e-6)


def test_split_metrics_are_exact_means_and_skip_the_unknown() -> None:
    logits = np.array([[2.0], [-1.0], [3.0]])
    targets = np.array([[1.0], [0.0], [np.nan]])
    scores = CaseScores.from_columns(np.column_stack([logits, [6.0, 0.0, 3.0], [2, 0, 4]]), targets)
    metrics = split_metrics(scores, ["a"], alpha=0.25)
    bce = np.mean([np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0))])
    assert metrics["eval_loss_ce"] == pytest.approx(9 / 6) and metrics["eval_loss_bce"] == pytest.approx(bce)
    assert metrics["eval_loss"] == pytest.approx(0.25 * bce + 0.75 * 1.5) and metrics["eval_auroc"] == 1.0


def test_classes_that_are_apart_have_no_calibration_line() -> None:
    y, p = np.array([0.0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    weights = np.array([[1.0, 1, 1, 1], [1, 0, 1, 0]])
    assert np.isnan(probability.calibration_line(y, p)(weights)).all()
    mixed = np.array([0.1, 0.85, 0.8, 0.9])
    found = probability.calibration_line(y, mixed)(weights)
    assert np.isfinite(found[0]) and np.isnan(found[1])  # the second draw leaves out what lies between
