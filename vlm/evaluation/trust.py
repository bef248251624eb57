"""Measure on unseen cases what the adapter says of its own reliability: label sets, contradictions, unlike pictures."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlm.data.case import CaseSpec
from vlm.evaluation.confidence import confidence_measures
from vlm.evaluation.measures import Bootstrap, Reports
from vlm.findings.labeller import Labeller
from vlm.findings.structure import findings_of_labels
from vlm.reliability.contradictions import find_contradictions
from vlm.reliability.label_sets import ABSENT, PRESENT, LabelThresholds
from vlm.reliability.thresholds import Reliability
from vlm.report import KINDS
from vlm.statistics.estimate import undefined
from vlm.statistics.intervals import mean


def reliability_measures(
    kept: Reliability,
    spec: CaseSpec,
    targets: np.ndarray,
    probabilities: np.ndarray,
    reports: Reports,
    vitals: np.ndarray,
    distances: np.ndarray,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Measure what an adapter keeps to judge its drafts, on N drafts with N × K targets and N × m vitals.

    `distances` are those of the pictures from those of training, N, NaN without one.
    """
    unlike = (distances > kept.unlike_above) & (kept.unlike_above > 0)  # N; NaN is above nothing
    as_at_use = replace(reports, labeller=Labeller.of_adapter(spec.findings))
    return {
        "unlike_pictures": unlike_measure(kept, distances, bootstrap),
        "label_sets": label_set_measures(kept, targets, probabilities, spec.labels, bootstrap),
        "contradictions": contradiction_measures(kept, spec, reports.drafts, probabilities, vitals, bootstrap),
        **confidence_measures(kept, spec, as_at_use, probabilities, vitals, unlike, bootstrap),
    }


def unlike_measure(kept: Reliability, distances: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Measure the share of pictures that are called unlike those of training; N distances, NaN without a picture."""
    shown = np.flatnonzero(~np.isnan(distances))
    if not kept.unlike_above:
        return undefined("the adapter does not know the pictures of its training")
    if not len(shown):
        return undefined("no test case has a picture")
    return bootstrap(mean(distances[shown] > kept.unlike_above), shown) | {"cases": len(shown)}


def label_set_measures(
    kept: Reliability, targets: np.ndarray, probabilities: np.ndarray, labels: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Measure the coverage and the mean size of the label sets, over all labels and for each; N × K, NaN unknown."""
    each, held, sizes = {}, np.full(targets.shape, np.nan), np.full(targets.shape, np.nan)
    for k, label in enumerate(labels):
        known = ~np.isnan(targets[:, k])
        if label not in kept.label_sets or not known.any():
            continue
        thresholds = kept.label_sets[label]
        held[known, k], sizes[known, k] = _held(thresholds, targets[known, k], probabilities[known, k])
        each[label] = {
            "coverage": bootstrap(mean(held[:, k])),
            "coverage_present": _among(held[:, k], targets[:, k] == 1, bootstrap, f"{label} is in no test case"),
            "coverage_absent": _among(held[:, k], targets[:, k] == 0, bootstrap, f"{label} is in every test case"),
            "size": bootstrap(mean(sizes[:, k])),
            "by_class": thresholds.by_class,
            "cases": int(known.sum()),
        }
    if not each:
        why = "no label with a set is known in a test case" if kept.label_sets else "the adapter keeps no label sets"
        return {"coverage": undefined(why), "size": undefined(why), "wanted": kept.coverage, "each": {}}
    with np.errstate(invalid="ignore"):
        counts = (~np.isnan(held)).sum(axis=1)
        of_case = [np.where(counts > 0, np.nansum(x, axis=1) / np.maximum(counts, 1), np.nan) for x in (held, sizes)]
    coverage, size = (bootstrap(mean(values)) for values in of_case)
    return {"coverage": coverage, "size": size, "wanted": kept.coverage, "each": each}


def _held(thresholds: LabelThresholds, truth: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check whether each set holds the truth, and count its answers; N of 0 or 1, N of 0 to 2."""
    sets = [thresholds.answers(float(p)) for p in probabilities]
    held = [(PRESENT if y == 1 else ABSENT) in answers for answers, y in zip(sets, truth, strict=True)]
    return np.array(held, dtype=np.float64), np.array([len(answers) for answers in sets], dtype=np.float64)


def _among(values: np.ndarray, among: np.ndarray, bootstrap: Bootstrap, why: str) -> dict[str, Any]:
    """Estimate the mean of N values over some rows; undefined for the reason `why` if there are none."""
    rows = np.flatnonzero(among)
    return bootstrap(mean(values[rows]), rows) if len(rows) else undefined(why)


def contradiction_measures(
    kept: Reliability,
    spec: CaseSpec,
    drafts: Sequence[str],
    probabilities: np.ndarray,
    vitals: np.ndarray,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Measure the share of drafts with a contradiction, of any kind and of each, as a reader is shown them.

    `probabilities` are N × K, calibrated; `vitals` N × m, NaN where missing.
    """
    if not len(drafts):
        return {"share": undefined("there is no draft"), "kinds": {}}
    labeller = Labeller.of_adapter(spec.findings)  # as at use
    named = findings_of_labels(spec.labels, labeller.names, spec.label_findings)
    found = [
        find_contradictions(draft, dict(zip(spec.labels, row, strict=True)), named, kept, labeller, values, spec.schema)
        for draft, row, values in zip(drafts, probabilities.tolist(), vitals.tolist(), strict=True)
    ]
    kinds = {kind: np.array([any(flag.kind == kind for flag in flags) for flags in found]) for kind in KINDS}
    shares = {kind: bootstrap(mean(flagged)) for kind, flagged in kinds.items()}
    return {"share": bootstrap(mean(np.array([bool(flags) for flags in found]))), "kinds": shares}
