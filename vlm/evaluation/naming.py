"""Find the cases whose text names a label, beside those that have it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vlm.findings.labeller import Labeller
from vlm.statistics.intervals import Statistic, ratio


class Named(NamedTuple):
    """Which of N cases the text names a label in, and which have it; 0 or 1 each."""

    right: np.ndarray
    """Named and there."""
    said: np.ndarray
    has: np.ndarray
    known: np.ndarray

    @property
    def f1(self) -> Statistic:
        """Build the statistic of F1."""
        return ratio(2 * self.right, self.said + self.has)


def naming(
    drafts: Sequence[str], targets: np.ndarray, labels: Sequence[str], stands_for: Mapping[str, str], labeller: Labeller
) -> dict[str, Named]:
    """Find the cases whose text names each label that stands for a finding and that some case has; targets N × K."""
    found, result = [labeller.label(draft) for draft in drafts], {}
    for k, name in enumerate(labels):
        finding, known = stands_for.get(name), ~np.isnan(targets[:, k])
        truth = known & (targets[:, k] == 1)
        if finding is None or not truth.any():
            continue
        said = known & np.array([finding in row and row[finding].status == "present" for row in found], dtype=bool)
        result[name] = Named(*(values.astype(np.float64) for values in (truth & said, said, truth, known)))
    return result


def macro(named: Mapping[str, Named]) -> Statistic:
    """Build the statistic of the mean F1 of several labels."""
    f1s = [found.f1 for found in named.values()]
    return lambda weights: np.mean([f1(weights) for f1 in f1s], axis=0)
