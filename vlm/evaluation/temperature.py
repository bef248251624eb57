"""Calibrate probabilities by temperature scaling (Guo et al., 2017)."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from vlm.evaluation.scoring import CaseScores
from vlm.model.calibration import Calibration

COOLEST, HOTTEST = 0.2, 20.0


def fit_temperature(scores: CaseScores, patients: Sequence[str]) -> Calibration:
    """Fit the temperature that minimises BCE over the known labels of the validation split, never the test split.

    All labels share one temperature: with a few dozen patients, one for each label would be noise. None is fitted
    if the known labels are of one class, since the optimum would be the lowest temperature allowed.
    """
    known = ~np.isnan(scores.targets)
    if len(np.unique(scores.targets[known])) < 2:
        return Calibration()
    logits, targets = scores.logits[known].astype(np.float64), scores.targets[known]

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, scaled) - targets * scaled))

    best = minimize_scalar(loss, bounds=(np.log(COOLEST), np.log(HOTTEST)), method="bounded")
    rows = known.any(axis=1)
    named = np.asarray(patients, dtype=object)[rows]
    return Calibration(round(float(np.exp(best.x)), 4), len(set(named)), int(rows.sum()))
