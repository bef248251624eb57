"""Temperature scaling against a known truth, and the losses of a split that is scored with it."""

import numpy as np
import pytest
import torch
from scipy.special import expit

from vlm.evaluation.scoring import CaseScores, split_metrics
from vlm.evaluation.temperature import fit_temperature
from vlm.model.calibration import Calibration


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
