"""Split by patient into train, validation and test; a patient stays in one split, whatever is added later."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vlm.config import SplitConfig

if TYPE_CHECKING:
    import datasets

SPLITS = ("train", "validation", "test")


def unit_hash(text: str) -> float:
    """Hash a text to [0, 1), independent of the row, the machine and Python's hash seed."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(patients: Sequence[str], config: SplitConfig) -> list[str]:
    """Assign one of `SPLITS` to each row, by its patient's id."""

    def split_of(patient: str) -> str:
        position = unit_hash(f"{config.seed}/{patient}")
        test = config.test
        if config.folds:  # the fold is moved to the beginning
            test = 1 / config.folds
            position = (position - config.fold / config.folds) % 1
        if position < test:
            return "test"
        return "validation" if position < test + config.validation else "train"

    return [split_of(patient) for patient in patients]


def draw_patients(patients: np.ndarray, most: int) -> np.ndarray:
    """Draw patients until they have `most` rows, always the same; returns their rows of N in order."""
    _, patient, sizes = np.unique(patients, return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(sizes))
    chosen = order[: np.searchsorted(np.cumsum(sizes[order]), most) + 1]
    return np.flatnonzero(np.isin(patient, chosen))


def draw_cases(rows: "datasets.Dataset", most: int) -> np.ndarray:
    """Draw the cases of whole patients until there are `most`, always the same; all if there are no more, or for 0."""
    from vlm.data.storage import hashes

    return draw_patients(hashes(rows, "patient"), most) if 0 < most < len(rows) else np.arange(len(rows))


# A split that moves no patient when rows are added depends only on each patient's id. Its shares are random: it cannot
# be stratified exactly. Only the seed with the smallest deviation can be chosen, once.


def deviations(
    patients: np.ndarray, labels: Mapping[str, np.ndarray], config: SplitConfig, seeds: Iterable[int]
) -> list[float]:
    """Compute for each seed the largest deviation of a label's patient share in a split from the wanted share.

    `labels` marks the positive ones of the N rows (bool).
    """
    names, rows = np.unique(patients.astype(str), return_inverse=True)
    groups = [np.ones(len(names), dtype=bool)]
    for positive in labels.values():
        groups.append(np.bincount(rows[positive], minlength=len(names)) > 0)
    return [_deviation(names, groups, replace(config, seed=seed)) for seed in seeds]


def _deviation(names: np.ndarray, groups: Sequence[np.ndarray], config: SplitConfig) -> float:
    positions = np.array([unit_hash(f"{config.seed}/{name}") for name in names])
    test = positions < config.test
    validation = ~test & (positions < config.test + config.validation)
    return max(
        abs(float(side[group].mean()) - share)
        for group in groups
        if group.any()
        for side, share in ((test, config.test), (validation, config.validation))
    )
