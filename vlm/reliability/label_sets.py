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
"""Fewest validation patients of a class for its threshold."""


@dataclass(frozen=True)
class LabelThresholds:
    """Hold the thresholds of one label's probability, each fitted on the cases of its class."""

    present: float
    """Least probability at which `present` is in the set; 0: always, since too few patients have the label."""
    absent: float
    """Largest probability at which `absent` is in the set; 1: always, since too few patients lack the label."""

    def __post_init__(self) -> None:
        if not (0 <= self.present <= 1 and 0 <= self.absent <= 1):  # NaN fails every comparison
            raise UserError(f"reliability.label_sets: {self.present} and {self.absent} are no probabilities")

    @property
    def by_class(self) -> bool:
        """True if neither answer is in every set."""
        return self.present > 0 and self.absent < 1

    def answers(self, probability: float) -> tuple[str, ...]:
        """List the answers in the set of a calibrated probability.

        Where one answer is in every set, the likelier one joins it: a set of `present` alone at 0.1 % would mislead.
        """
        fits = {PRESENT: probability >= self.present, ABSENT: probability <= self.absent}
        if not self.by_class:
            fits[PRESENT if probability >= 0.5 else ABSENT] = True
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

    `probabilities` and `targets` are N × K, NaN where unknown. The answer of a class with too few patients stays in
    every set: a threshold common to both classes would hold its rate by never holding the truth of the rare one. With
    too few of both classes a label gets none.
    """
    named, needed = np.asarray(patients, dtype=str), fewest_patients(coverage)
    fitted: dict[str, LabelThresholds] = {}
    how: dict[str, list[str]] = {"for each class": [], "never without an answer that few patients have": [], "none": []}
    by_class, one_sided, none = how.values()
    for k, label in enumerate(labels):
        thresholds, few = _fit_label(probabilities[:, k], targets[:, k], named, needed, coverage)
        if thresholds is not None:
            fitted[label] = thresholds
        said = f"{label} ({' and '.join(few)} validation patients, {needed} needed)" if few else label
        (none if thresholds is None else one_sided if few else by_class).append(said)
    title = f"label sets of {coverage:.0%} coverage"
    return fitted, [f"{title}: {kind}: {', '.join(names)}" for kind, names in how.items() if names]


def _fit_label(
    p: np.ndarray, targets: np.ndarray, patients: np.ndarray, needed: int, coverage: float
) -> tuple[LabelThresholds | None, list[str]]:
    """Fit the thresholds of one label; returns None with too few patients of both classes, and which are too few."""
    bounds, few = {PRESENT: 0.0, ABSENT: 1.0}, []
    for answer, value, sign in ((PRESENT, 1, -1), (ABSENT, 0, 1)):
        rows = targets == value
        if (count := len(set(patients[rows]))) < needed:
            few.append(f"{answer} in {count}")
        else:
            bounds[answer] = sign * conformal_quantile(sign * p[rows], patients[rows], coverage)
    return LabelThresholds(bounds[PRESENT], bounds[ABSENT]) if len(few) < 2 else None, few
