"""Train, validation and test by patient: a patient is in one of them, whatever is added later."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from vlm.config import SplitConfig

SPLITS = ("train", "validation", "test")


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: not on the row, the machine or Python's hash seed."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(patients: Sequence[str], config: SplitConfig) -> list[str]:
    """One of `SPLITS` for each row, by its patient's id."""

    def split_of(patient: str) -> str:
        position = unit_hash(f"{config.seed}/{patient}")
        if position < config.test:
            return "test"
        return "validation" if position < config.test + config.validation else "train"

    return [split_of(patient) for patient in patients]


# A split that moves nobody when rows are added can depend on nothing but each patient's own id, so its shares are
# those of chance: it cannot be stratified exactly. What can be chosen, once, is the seed whose chance is the fairest.


def deviations(
    patients: np.ndarray, labels: Mapping[str, np.ndarray], config: SplitConfig, seeds: Iterable[int]
) -> list[float]:
    """For each seed, how far the share of a label's patients in a split is from the wanted one, at its worst.

    `labels` says for each of the N rows (bool) whether it is positive.
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
