"""Compare a test at another site with the adapter's own test: who the patients are, and what the model does there."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm.data.dataset import CaseDataset, load_pictures
from vlm.data.storage import matrix
from vlm.evaluation.scoring import CaseScores
from vlm.statistics.estimate import Estimate, described, undefined
from vlm.statistics.intervals import FEWEST_PATIENTS
from vlm.untrusted import read_json

MOST_PICTURES = 500
"""Most cases whose pictures are decoded for their statistics, the first of the test."""
NOTABLE = 0.2
"""Standardised mean difference from which a shift is named in the summary; 0.2 is small in Cohen's words (1988)."""
LARGEST = 1e30
"""Limit of a stranger's numbers, so that no difference or square of them is infinite."""
Profile = dict[str, dict[str, dict[str, float]]]
"""Kind (`vitals`, `missing`, `labels`, `images`) → quantity → mean, standard deviation and number of patients."""


def profile(test: CaseDataset, scores: CaseScores) -> Profile:
    """Describe the test cases by means alone: vitals, what is missing, label prevalences and pictures.

    A quantity that fewer than ten patients have is left out: the profile is shared with the adapter.
    """
    patients = np.array(test.rows["patient"], dtype=object)
    found: dict[str, dict[str, np.ndarray]] = {"vitals": {}, "missing": {}, "labels": {}, "images": _pictures(test)}
    vitals = matrix(test.rows, "vitals", len(test.spec.schema)).astype(np.float64)
    for place, vital in enumerate(test.spec.schema.vitals):
        values = vitals[:, place]
        known = np.isnan(values)
        found["missing"][vital.name] = known.astype(np.float64)
        words = [f"{vital.name} {word}" for word in vital.categories] or [vital.name]
        columns = [np.where(known, np.nan, values == k) for k in range(len(words))] if vital.categories else [values]
        found["vitals"] |= dict(zip(words, columns, strict=True))
    found["labels"] = {label: scores.targets[:, k] for k, label in enumerate(test.spec.labels)}
    described = {kind: {name: _moments(values, patients) for name, values in columns.items()}
                 for kind, columns in found.items()}  # fmt: skip
    return {kind: {name: row for name, row in rows.items() if row} for kind, rows in described.items()}


def _moments(values: np.ndarray, patients: np.ndarray) -> dict[str, float]:
    known = values[~np.isnan(values)]
    people = len(set(patients[~np.isnan(values)]))
    if people < FEWEST_PATIENTS:
        return {}
    return {"mean": float(known.mean()), "sd": float(known.std(ddof=1)), "patients": people}


def _pictures(test: CaseDataset) -> dict[str, np.ndarray]:
    """Measure the first picture of each case, NaN without one: mean and spread of its grey values, share of black."""
    names = ("brightness", "contrast", "share of black")
    result = np.full((len(names), len(test)), np.nan)
    cells = [] if "image" in test.withhold else test.rows["images"][:MOST_PICTURES]
    for index, images in enumerate(cells):
        if pictures := load_pictures(images, test.spec):
            grey = pictures[0].picture.astype(np.float64) / 255
            result[:, index] = grey.mean(), grey.std(), (grey < 0.02).mean()
    return dict(zip(names, result, strict=True))


def saved_metrics(folder: Path) -> Mapping[str, Any]:
    """Read the metrics of an adapter's own test; empty where it was saved without."""
    file = folder / "metrics.json"
    values = read_json(file, "the adapter's metrics") if file.is_file() else {}
    return values if isinstance(values, dict) else {}


def beside(metrics: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Set the results of this test beside those of the adapter's own, and name the shifts; empty without any."""
    results = {name: {"own": _estimate(own, path), "here": _estimate(metrics, path)} for name, path in _paths(metrics)}
    results = {name: pair for name, pair in results.items() if pair["own"]["value"] is not None}
    shifts = shift(metrics.get("profile", {}), own.get("profile", {}))
    if not (results or shifts):
        return {}
    return {"cases": _count(own, "cases"), "patients": _count(own, "patients"), "results": results, "shift": shifts}


def _paths(metrics: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name of each result that is set side by side, and its keys in the metrics."""
    yield "text loss", ("text_loss",)
    yield "finding F1", ("findings", "f1")
    yield "ECE, all labels", ("calibration", "ece")
    for label in metrics.get("labels", {}):
        for key, name in (("auroc", "AUROC"), ("brier", "Brier"), ("calibration_slope", "calibration slope")):
            yield f"{name} {label}", ("labels", label, key)
        for point in metrics.get("operating_points", {}).get(label, {}):
            for key in ("sensitivity", "specificity"):
                yield f"{key} {label} ({point.replace('_', ' ')})", ("operating_points", label, point, key)


def _estimate(metrics: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """Find an estimate in metrics that may be a stranger's; undefined if there is none."""
    found = _at(metrics, path)
    parts = [found.get(key) for key in ("value", "low", "high")] if isinstance(found, Mapping) else []
    if not parts or any(type(part) not in (int, float, type(None)) for part in parts):
        return undefined()
    return Estimate(*parts)._asdict()


def _at(values: Any, path: Sequence[str]) -> Any:
    """Find what is under some keys of nested mappings; None if there is nothing."""
    for key in path:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def _count(metrics: Mapping[str, Any], key: str) -> int | None:
    return metrics[key] if type(metrics.get(key)) is int else None


def shift(here: Mapping[str, Any], own: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the standardised mean differences, this test less the adapter's own, the largest first.

    The interval is that of Hedges and Olkin (1985) with patients for cases. Quantities that either lacks are left out.
    """
    rows = []
    for kind, quantities in here.items():
        for name, row in quantities.items():
            if theirs := _row(_at(own, (kind, name))):
                found = standardised_difference(row, theirs)
                means = {"mean": row["mean"], "own_mean": theirs["mean"]}
                counts = {"patients": row["patients"], "own_patients": theirs["patients"]}
                rows.append({"kind": kind, "name": name, **found, **means, **counts})
    return sorted(rows, key=lambda one: -abs(one["value"]) if one["value"] is not None else 1)


def _row(values: Any) -> dict[str, float]:
    """Check a row of a profile that may be a stranger's; empty if it is none."""
    if not isinstance(values, Mapping) or any(type(values.get(key)) not in (int, float) for key in
                                              ("mean", "sd", "patients")):  # fmt: skip
        return {}
    row = {key: float(values[key]) for key in ("mean", "sd")} | {"patients": int(values["patients"])}
    return row if abs(row["mean"]) < LARGEST and 0 <= row["sd"] < LARGEST and row["patients"] >= 1 else {}


def standardised_difference(here: Mapping[str, float], own: Mapping[str, float]) -> dict[str, Any]:
    """Divide the difference of two means by the root of the mean of their variances, with its interval."""
    spread = np.sqrt((here["sd"] ** 2 + own["sd"] ** 2) / 2)
    if not spread > 0:
        return undefined("it never varies")
    d, n, m = (here["mean"] - own["mean"]) / spread, here["patients"], own["patients"]
    error = np.sqrt((n + m) / (n * m) + d**2 / (2 * (n + m)))
    return Estimate(float(d), float(d - 1.96 * error), float(d + 1.96 * error))._asdict()


def summary(compared: Mapping[str, Any]) -> list[str]:
    """Format the results beside the adapter's own and the notable shifts, a line each."""
    if not compared:
        return []
    lines = [f"beside the adapter's own test ({compared['patients']} patients): here, own"]
    lines += [f"  {name:<40} {described(pair['here'])}, {described(pair['own'])}"
              for name, pair in compared["results"].items()]  # fmt: skip
    for row in compared["shift"]:
        if row["value"] is not None and abs(row["value"]) >= NOTABLE:
            means = f"mean {row['mean']:.4g}, own {row['own_mean']:.4g}; {row['patients']} and {row['own_patients']}"
            name = f"{row['kind']} {row['name']}"
            lines.append(f"  shift of {name}: {described(row)} standard deviations; {means} patients")
    return lines
