"""Bootstrap intervals over patients: cases of one patient are not independent."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A value with its 95 % interval; null bounds where there was too little to state one."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "not defined"
        return f"{self.value:.3f}" + (f" ({self.low:.3f} to {self.high:.3f})" if self.low is not None else "")


def patient_bootstrap(
    statistic: Callable[[np.ndarray], float], patients: Sequence[str], draws: int, seed: int = 0
) -> Estimate:
    """Value of a statistic and its percentile interval over resampled patients.

    `statistic` takes row indices (with repeats) and gives a number, NaN where it is not defined; draws without
    a value are passed over. With fewer than two patients there is no interval.
    """
    names, group = np.unique(np.asarray(patients, dtype=object).astype(str), return_inverse=True)
    value = float(statistic(np.arange(len(group)))) if len(group) else float("nan")
    if np.isnan(value):
        return Estimate(None)
    if len(names) < 2 or draws < 1:
        return Estimate(value)
    order = np.argsort(group, kind="stable")  # rows patient by patient
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    values = np.empty(draws)
    for draw in range(draws):
        chosen = rng.integers(0, len(names), len(names))
        size = sizes[chosen]
        # Places of the chosen patients' rows in `order`: each patient's start, counted on within the patient.
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        values[draw] = statistic(order[np.repeat(starts[chosen], size) + within])
    values = values[~np.isnan(values)]
    if len(values) < draws / 2:
        return Estimate(value)
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def auroc(targets: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve; NaN where only one class is present. Ties count half."""
    from scipy.stats import rankdata

    positive = targets == 1
    p, n = int(positive.sum()), int((~positive).sum())
    if p == 0 or n == 0:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - p * (p + 1) / 2) / (p * n))
