"""Measure discrimination, calibration and utility of probabilities, each as a bootstrap statistic.

Every function takes targets (N, 0 or 1) and probabilities or scores (N), sorts them once, and returns a
`Statistic` of case weights (D × N). So 2,000 draws are a few matrix products, not 2,000 calls.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import expit, logit

from vlm.statistics.intervals import Statistic

BINS = 10
"""Number of equal-width bins of the reliability diagram and the ECE."""
NEWTON_STEPS = 25
EPSILON = 1e-6
"""Clipping margin from 0 and 1 before the logit of a probability."""


def auroc(targets: np.ndarray, scores: np.ndarray) -> Statistic:
    """Build the statistic of the area under the ROC curve; ties count half (Mann and Whitney, 1947)."""
    order, starts = _thresholds(scores)
    positive = targets[order] == 1

    def statistic(weights: np.ndarray) -> np.ndarray:
        p, n = _by_threshold(weights, order, starts, positive)  # D × T, from the lowest score
        below = np.cumsum(n, axis=1) - n
        with np.errstate(invalid="ignore", divide="ignore"):
            return (p * (below + n / 2)).sum(1) / (p.sum(1) * n.sum(1))

    return statistic


def average_precision(targets: np.ndarray, scores: np.ndarray) -> Statistic:
    """Build the statistic of average precision (area under the precision-recall curve); its floor is the prevalence."""
    order, starts = _thresholds(-scores)
    positive = targets[order] == 1

    def statistic(weights: np.ndarray) -> np.ndarray:
        p, n = _by_threshold(weights, order, starts, positive)  # D × T, from the highest score
        found, called = np.cumsum(p, axis=1), np.cumsum(p + n, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(called > 0, found / called, 0.0)
            return (p * precision).sum(1) / p.sum(1)

    return statistic


def brier(targets: np.ndarray, probabilities: np.ndarray) -> Statistic:
    """Build the statistic of the Brier score, the mean squared error of the probability (Brier, 1950)."""
    errors = (probabilities - targets) ** 2
    return lambda weights: weights @ errors / weights.sum(1)


def expected_calibration_error(targets: np.ndarray, probabilities: np.ndarray) -> Statistic:
    """Build the ECE statistic: case-weighted mean of |confidence − frequency| by bin (Naeini et al., 2015)."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    member = np.eye(BINS)[bins]  # N × bins
    gaps = member * (probabilities - targets)[:, None]
    return lambda weights: np.abs(weights @ gaps).sum(1) / weights.sum(1)


def calibration_line(targets: np.ndarray, probabilities: np.ndarray) -> Statistic:
    """Build the statistic of the slope b of the logistic recalibration logit P(y) = a + b · logit(p) (Cox, 1958).

    1 is calibrated, below 1 is overconfident. Newton's method fits all draws at once.
    """

    x = logit(np.clip(probabilities, EPSILON, 1 - EPSILON))

    def statistic(weights: np.ndarray) -> np.ndarray:
        a, b = np.zeros(len(weights)), np.zeros(len(weights))  # from 0, Newton's steps do not overshoot
        for _ in range(NEWTON_STEPS):
            p = expit(np.clip(a[:, None] + b[:, None] * x, -30, 30))  # D × N
            error, w = weights * (targets - p), weights * p * (1 - p)
            ga, gb = error.sum(1), error @ x
            haa, hab, hbb = w.sum(1), w @ x, w @ x**2
            determinant = np.maximum(haa * hbb - hab**2, 1e-12)
            a = a + np.clip((hbb * ga - hab * gb) / determinant, -5, 5)
            b = b + np.clip((haa * gb - hab * ga) / determinant, -5, 5)
        (lowest_0, highest_0), (lowest_1, highest_1) = (_extremes(x, (weights > 0) & (targets == c)) for c in (0, 1))
        overlap = (lowest_1 < highest_0) & (lowest_0 < highest_1)  # else no finite line fits
        return np.where(overlap, b, np.nan)

    return statistic


def calibration_intercept(targets: np.ndarray, probabilities: np.ndarray) -> Statistic:
    """Build the statistic of the recalibration intercept at slope 1; above 0, the probabilities are too low."""
    x = logit(np.clip(probabilities, EPSILON, 1 - EPSILON))

    def statistic(weights: np.ndarray) -> np.ndarray:
        a = np.zeros(len(weights))
        for _ in range(NEWTON_STEPS):
            p = expit(a[:, None] + x)  # D × N
            gradient, curvature = (weights * (targets - p)).sum(1), (weights * p * (1 - p)).sum(1)
            a = np.clip(a + gradient / np.maximum(curvature, 1e-12), -20, 20)
        both = (weights @ targets > 0) & (weights @ (1 - targets) > 0)
        return np.where(both, a, np.nan)

    return statistic


def _extremes(x: np.ndarray, counted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the lowest and highest of N values among those counted in each draw (D × N); two arrays of D."""
    return np.where(counted, x, np.inf).min(1), np.where(counted, x, -np.inf).max(1)


def net_benefit(targets: np.ndarray, probabilities: np.ndarray, threshold: float) -> Statistic:
    """Build the statistic of net benefit a case at a decision threshold (Vickers and Elkin, 2006)."""
    called = probabilities >= threshold
    gain = called * (targets - (1 - targets) * threshold / (1 - threshold))
    return lambda weights: weights @ gain / weights.sum(1)


def selective_risk(targets: np.ndarray, probabilities: np.ndarray, coverage: float = 0.8) -> Statistic:
    """Build the statistic of the error rate at 0.5 on the most confident share `coverage` of the cases."""
    order = np.argsort(-np.abs(probabilities - 0.5), kind="stable")
    wrong = ((probabilities >= 0.5) != (targets == 1))[order].astype(np.float64)

    def statistic(weights: np.ndarray) -> np.ndarray:
        w = weights[:, order]
        before = np.cumsum(w, axis=1) - w
        kept = np.clip(coverage * w.sum(1, keepdims=True) - before, 0, w)  # the last case counts in part
        return (kept * wrong).sum(1) / kept.sum(1)

    return statistic


def certainty(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Compute how far N probabilities are from a decision threshold, as the absolute difference of their log-odds."""
    odds, of_threshold = (logit(np.clip(value, EPSILON, 1 - EPSILON)) for value in (probabilities, threshold))
    return np.abs(odds - of_threshold).round(6)  # so that equal distances on either side are ties


def risk_coverage(wrong: np.ndarray, certain: np.ndarray) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Build the risk-coverage curve of N decisions, the most certain kept first (El-Yaniv and Wiener, 2010).

    The function takes case weights (D × N) and returns the weight kept and the share of it that is wrong, each
    D × T, at each of T distinct certainties: ties are kept together.
    """
    order, starts = _thresholds(-certain)
    errors = wrong[order] == 1

    def curve(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        missed, right = _by_threshold(weights, order, starts, errors)
        kept = np.cumsum(missed + right, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return kept, np.where(kept > 0, np.cumsum(missed, axis=1) / kept, 0.0)

    return curve


def risk_coverage_area(wrong: np.ndarray, certain: np.ndarray) -> Statistic:
    """Build the statistic of the area under the risk-coverage curve (Geifman et al., 2019); 0 is without error."""
    curve = risk_coverage(wrong, certain)

    def statistic(weights: np.ndarray) -> np.ndarray:
        kept, risk = curve(weights)
        return (np.diff(kept, axis=1, prepend=0) * risk).sum(1) / weights.sum(1)

    return statistic


def _thresholds(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the scores in ascending order; returns the order and the start of each distinct score."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    return order, np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])


def _by_threshold(
    weights: np.ndarray, order: np.ndarray, starts: np.ndarray, positive: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the weights of the positives and of the negatives at each distinct score, D × T each."""
    ordered = weights[:, order]
    p = np.add.reduceat(ordered * positive, starts, axis=1)
    return p, np.add.reduceat(ordered, starts, axis=1) - p
