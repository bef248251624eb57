"""Compute bootstrap intervals over patients, since cases of one patient are not independent."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from vlm.statistics.estimate import Estimate

Statistic = Callable[[np.ndarray], np.ndarray]
"""Function from case weights (D × N, whole numbers) to D values, NaN where undefined."""

FEWEST_PATIENTS = 10
"""Minimum patients, in all and in each class, for an interval; with fewer, the bootstrap is not reliable."""
MOST_WEIGHTS = 20_000_000
"""Maximum weights in memory at once; more draws are split into batches."""


def patient_bootstrap(
    statistic: Statistic,
    patients: Sequence[str],
    draws: int,
    seed: int = 0,
    classes: np.ndarray | None = None,
) -> Estimate:
    """Estimate a statistic and its percentile interval over resampled patients (Efron, 1979).

    A draw is a weight for each case: how often its patient was drawn. Draws with an undefined statistic are
    skipped. There is no interval where a bound is infinite, or with fewer than ten patients in all, or in a class of
    `classes` (N, the class of each case, NaN for none).
    """
    names, group = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    value = float(statistic(np.ones((1, len(group))))[0]) if len(group) else float("nan")
    if not np.isfinite(value):
        return Estimate(None)
    if draws < 1 or min(len(names), smallest_class(group, classes)) < FEWEST_PATIENTS:
        return Estimate(value)
    drawn = np.concatenate([statistic(weights) for weights in _weights(group, len(names), draws, seed)])
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < draws / 2:
        return Estimate(value)
    with np.errstate(invalid="ignore"):  # between infinite draws
        low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(value, float(low), float(high)) if np.isfinite([low, high]).all() else Estimate(value)


def _weights(group: np.ndarray, patients: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the weights of all draws, D × N in all, in batches that fit into the memory."""
    most = max(1, MOST_WEIGHTS // len(group))
    if draws * patients > MOST_WEIGHTS:
        rng = np.random.default_rng(seed)
        yield from (draw_weights(group, min(most, draws - start), rng) for start in range(0, draws, most))
        return
    counts = _counts(patients, draws, seed)
    yield from (counts[start : start + most][:, group].astype(np.float64) for start in range(0, draws, most))


@lru_cache(maxsize=4)
def _counts(patients: int, draws: int, seed: int) -> np.ndarray:
    """Draw how often each patient is drawn, D × P; the statistics of an evaluation are many, and share their draws."""
    return _draw(patients, draws, np.random.default_rng(seed)).astype(np.int32)


def _draw(patients: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    return rng.multinomial(patients, np.full(patients, 1 / patients), draws)


def draw_weights(group: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the weights of N cases under resampled patients (D × N); `group` is each case's patient, from 0."""
    return _draw(int(group.max()) + 1, draws, rng)[:, group].astype(np.float64)


def smallest_class(group: np.ndarray, classes: np.ndarray | None) -> float:
    """Count the patients of the rarest class; infinity without classes."""
    if classes is None:
        return np.inf
    kinds = np.unique(classes[~np.isnan(classes)])
    return min((len(np.unique(group[classes == kind])) for kind in kinds), default=0)


def mean(values: np.ndarray) -> Statistic:
    """Build the statistic of the mean of N values, ignoring NaN."""
    return ratio(np.nan_to_num(values.astype(np.float64)), (~np.isnan(values.astype(np.float64))).astype(np.float64))


def ratio(above: np.ndarray, below: np.ndarray) -> Statistic:
    """Build the statistic of a ratio of sums over N cases, such as loss over tokens."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(weights @ below > 0, (weights @ above) / (weights @ below), np.nan)

    return statistic
