"""Measure the model in groups of the test cases, and the gap between the best and the worst group."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm.evaluation.agreement import why_undefined
from vlm.evaluation.groupings import Grouping
from vlm.evaluation.measures import Bootstrap, Reports
from vlm.evaluation.naming import naming
from vlm.evaluation.operating_points import DIGITS, Points
from vlm.evaluation.scoring import CaseScores, ranked
from vlm.statistics import probability
from vlm.statistics.estimate import undefined
from vlm.statistics.intervals import Statistic, ratio

FEWEST = 20
"""Fewest patients of a group that is ranked: an AUROC's interval alone needs ten of each class."""
MOST_LABELS = 6
"""Most labels that are measured in groups, the first."""
NAMES = {"text_loss": "text loss", "finding_f1": "finding F1", "labels_right": "named labels right", "auroc": "AUROC",
         "ece": "ECE"}  # fmt: skip
"""Measure → its name in tables."""


@dataclass(frozen=True)
class Measure:
    """A measure of any subset of the N test cases."""

    name: str
    """Key in the metrics, such as `finding_f1` or `auroc malignant`."""
    of: Callable[[np.ndarray], tuple[np.ndarray, Statistic]]
    """Function from rows (n indices) to those of them that count, and the statistic over these."""
    classes: np.ndarray | None = None
    """N, the class of each case where the measure needs patients of each, NaN for none."""
    lower_is_better: bool = False


def subgroup_measures(
    groupings: Sequence[Grouping], measures: Sequence[Measure], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Measure every group of every grouping, and the gaps; a group of under 20 patients is said as small."""
    result: dict[str, Any] = {}
    for grouping in groupings:
        rows = {name: np.flatnonzero(cases) for name, cases in grouping.groups.items()}
        groups = {name: _group(some, measures, bootstrap) for name, some in rows.items()}
        gaps = {measure.name: _gap(measure, groups, rows, bootstrap) for measure in measures}
        result[grouping.name] = {"unknown": grouping.unknown, "groups": groups, "gaps": gaps}
    return result


def _group(rows: np.ndarray, measures: Sequence[Measure], bootstrap: Bootstrap) -> dict[str, Any]:
    patients = len(set(bootstrap.patients[rows]))
    estimates = {measure.name: _estimate(measure, rows, bootstrap) for measure in measures}
    return {"cases": len(rows), "patients": patients, "small": patients < FEWEST, **estimates}


def _estimate(measure: Measure, rows: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    counted, statistic = measure.of(rows)
    if not len(counted):
        return undefined("no case of the group counts")
    found = bootstrap(statistic, counted, None if measure.classes is None else measure.classes[counted])
    return found if found["value"] is not None else undefined("the group has cases of one class alone")


def _gap(
    measure: Measure, groups: Mapping[str, dict[str, Any]], rows: Mapping[str, np.ndarray], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Estimate how much better the best group is than the worst, on the same resamples of the patients.

    Ranked are the groups of 20 patients and more whose measure has an interval.
    """
    values = {name: group[measure.name]["value"] for name, group in groups.items()
              if not group["small"] and group[measure.name]["low"] is not None}  # fmt: skip
    if len(values) < 2:
        return undefined(f"{len(values)} groups of {FEWEST} patients or more have an interval")
    low, *_, high = sorted(values, key=lambda name: values[name])
    parts = [measure.of(rows[name]) for name in (high, low)]
    (above, first), (below, second) = parts
    estimate = bootstrap(lambda weights: first(weights[:, above]) - second(weights[:, below]))
    return {
        **estimate,
        "best": low if measure.lower_is_better else high,
        "worst": high if measure.lower_is_better else low,
    }


def all_measures(
    scores: CaseScores,
    probabilities: np.ndarray,
    labels: Sequence[str],
    points: Points,
    reports: Reports,
    stands_for: Mapping[str, str],
) -> list[Measure]:
    """List what is measured in each group: the text, and each label's probability (N × K, calibrated)."""
    measures = (
        [_share("text_loss", scores.losses, scores.tokens.astype(np.float64), True)] if scores.tokens.any() else []
    )
    measures += _of_findings(reports)
    if named := naming(reports.drafts, scores.targets, labels, stands_for, reports.labeller):
        right, said = (sum(getattr(found, key) for found in named.values()) for key in ("right", "said"))
        measures.append(_share("labels_right", np.asarray(right), np.asarray(said)))
    for k, label in enumerate(labels[:MOST_LABELS]):
        measures += _of_label(label, scores.targets[:, k], scores.logits[:, k], probabilities[:, k], points)
    return measures


def _share(name: str, above: np.ndarray, below: np.ndarray, lower_is_better: bool = False) -> Measure:
    """Make the measure of a ratio of sums (N each), of the cases where the sum below is not 0."""

    def of(rows: np.ndarray) -> tuple[np.ndarray, Statistic]:
        counted = rows[below[rows] > 0]
        return counted, ratio(above[counted], below[counted])

    return Measure(name, of, None, lower_is_better)


def _of_findings(reports: Reports) -> Iterator[Measure]:
    """Yield the micro F1 of the findings, unless it is undefined."""
    if not why_undefined(list(filter(None, reports.references)), reports.labeller):
        found, counts = reports.agreement, np.zeros((2, len(reports.references)))
        counts[0, reports.rows] = 2 * found.true_positive.sum(1)
        counts[1, reports.rows] = counts[0, reports.rows] + (found.hallucinated | found.false_negative).sum(1)
        yield _share("finding_f1", counts[0], counts[1])


def _of_label(
    label: str, targets: np.ndarray, logits: np.ndarray, probabilities: np.ndarray, points: Points
) -> Iterator[Measure]:
    """Yield AUROC, ECE, and sensitivity and specificity at the first operating point that has a threshold."""

    def on_known(build: Callable[[np.ndarray, np.ndarray], Statistic], values: np.ndarray, fewest: int) -> Any:
        def of(rows: np.ndarray) -> tuple[np.ndarray, Statistic]:
            counted = rows[~np.isnan(targets[rows])]
            counted = counted[: len(counted) if len(counted) >= fewest else 0]
            return counted, build(targets[counted], values[counted])

        return of

    yield Measure(f"auroc {label}", on_known(probability.auroc, ranked(logits), 2), targets)
    ece = on_known(probability.expected_calibration_error, probabilities, probability.BINS)
    yield Measure(f"ece {label}", ece, None, True)
    thresholds = [row["threshold"]["value"] for row in list(points.get(label, {}).values())[:1]]
    if thresholds and thresholds[0] is not None:
        called = np.round(probabilities, DIGITS) >= thresholds[0]
        for name, among, hits in (("sensitivity", targets == 1, called), ("specificity", targets == 0, ~called)):
            yield _share(f"{name} {label}", (among & hits) * 1.0, among * 1.0)


def titles(subgroups: Mapping[str, Any]) -> dict[str, str]:
    """Name the measures of the subgroups for a table, key → title."""
    keys = [key for grouping in subgroups.values() for key in grouping["gaps"]]
    words = {key: key.partition(" ") for key in dict.fromkeys(keys)}
    return {
        key: f"{NAMES.get(kind, kind)} {label}".strip().replace("_", " ") for key, (kind, _, label) in words.items()
    }
