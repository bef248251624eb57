"""Give each label a set of answers that holds the truth at a wanted rate: split conformal prediction.

The set is {present}, {absent}, both or none. Thresholds by class: Vovk (2012), "Conditional validity of inductive
conformal predictors"; cases of one patient: Lee, Barber and Willett (2023), "Distribution-free inference with
hierarchical data".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm.errors import UserError

PRESENT, ABSENT = "present", "absent"
FEWEST_PATIENTS = 20
"""Fewest validation patients of a class for a threshold of its own, and of both together for a common one."""


@dataclass(frozen=True)
class LabelThresholds:
    """Hold the thresholds of one label's probability."""

    present: float
    """Least probability at which `present` is in the set."""
    absent: float
    """Largest probability at which `absent` is in the set."""
    by_class: bool = True
    """True if each class has a threshold of its own; then the rate holds for its cases alone too."""

    def __post_init__(self) -> None:
        if not (0 <= self.present <= 1 and 0 <= self.absent <= 1):  # NaN fails every comparison
            raise UserError(f"reliability.label_sets: {self.present} and {self.absent} are no probabilities")

    def answers(self, probability: float) -> tuple[str, ...]:
        """List the answers in the set of a calibrated probability."""
        fits = {PRESENT: probability >= self.present, ABSENT: probability <= self.absent}
        return tuple(answer for answer, is_in in fits.items() if is_in)


def conformal_quantile(scores: np.ndarray, patients: Sequence[str] | np.ndarray, coverage: float) -> float:
    """Find the least value that bounds the score of a further patient's case with the probability `coverage`.

    `scores` are those of N cases. Each patient has the same weight, shared among the cases, and the further patient,
    whose score may be anything, has it too. Infinity for fewer patients than coverage / (1 - coverage).
    """
    names, group, counts = np.unique(np.asarray(patients, dtype=str), return_inverse=True, return_counts=True)
    weights = 1 / (counts[group] * (len(names) + 1))  # N
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(weights[order]) >= coverage - 1e-9
    return float(scores[order][reached.argmax()]) if reached.any() else math.inf


def fewest_patients(coverage: float) -> int:
    """Return the fewest patients for a threshold at this coverage: below it every answer would be in every set."""
    return max(FEWEST_PATIENTS, math.ceil(coverage / (1 - coverage) - 1e-9))


def fit_label_sets(
    probabilities: np.ndarray, targets: np.ndarray, patients: Sequence[str], labels: Sequence[str], coverage: float
) -> tuple[dict[str, LabelThresholds], list[str]]:
    """Fit the thresholds of each label on the validation split; returns them, and lines that say which were fitted how.

    `probabilities` and `targets` are N × K, NaN where unknown. A label with too few patients of one class gets common
    thresholds, whose rate holds for both classes together; with too few of both together it gets none.
    """
    named, needed = np.asarray(patients, dtype=str), fewest_patients(coverage)
    fitted: dict[str, LabelThresholds] = {}
    how: dict[str, list[str]] = {"a threshold for each class": [], "one threshold for both classes": [], "none": []}
    by_class, pooled, none = how.values()
    for k, label in enumerate(labels):
        is_class = {PRESENT: targets[:, k] == 1, ABSENT: targets[:, k] == 0}
        counts = {answer: len(set(named[rows])) for answer, rows in is_class.items()}
        known, few = is_class[PRESENT] | is_class[ABSENT], min(counts, key=lambda answer: counts[answer])
        p = probabilities[:, k]
        if counts[few] >= needed:
            low = -conformal_quantile(-p[is_class[PRESENT]], named[is_class[PRESENT]], coverage)
            high = conformal_quantile(p[is_class[ABSENT]], named[is_class[ABSENT]], coverage)
            fitted[label] = LabelThresholds(low, high)
            by_class.append(label)
        elif (together := len(set(named[known]))) >= needed:
            wrong = np.where(is_class[PRESENT], 1 - p, p)  # share of the probability on the other answer
            most = conformal_quantile(wrong[known], named[known], coverage)
            fitted[label] = LabelThresholds(1 - most, most, by_class=False)
            pooled.append(f"{label} ({few} in {counts[few]} validation patients, {needed} needed)")
        else:
            none.append(f"{label} ({together} validation patients, {needed} needed)")
    title = f"label sets of {coverage:.0%} coverage"
    return fitted, [f"{title}: {kind}: {', '.join(names)}" for kind, names in how.items() if names]
