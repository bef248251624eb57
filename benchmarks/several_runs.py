"""Intervals of statistics over the same cases in several runs: they hold the chance of patients and runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm.statistics.estimate import Estimate
from vlm.statistics.intervals import Statistic

DRAWS = 2000


def stacked(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Stack the values of the cases of all runs, which stand in one order; R·N."""
    measures = next(iter(runs.values()))
    return {name: np.concatenate([np.array(run[name]) for run in runs.values()]) for name in measures}


def interval(statistic: Statistic, patients: Sequence[Any] | np.ndarray, runs: int, seed: int = 0) -> Estimate:
    """Compute a statistic over the stacked cases, and its 95 % interval over draws of patients (N) and of runs."""
    names, of_case = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    by_patient = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)[:, of_case]  # D × N
    by_run = rng.multinomial(runs, np.full(runs, 1 / runs), DRAWS)  # D × R
    weights = (by_run[:, :, None] * by_patient[:, None]).reshape(DRAWS, -1).astype(np.float64)  # D × R·N
    low, high = np.nanquantile(statistic(weights), [0.025, 0.975])
    return Estimate(float(statistic(np.ones((1, weights.shape[1])))[0]), float(low), float(high))
