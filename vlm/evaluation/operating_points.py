"""Fix a threshold for each label on the validation split, and measure its decisions on the test split."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm.config import OperatingPointConfig
from vlm.errors import UserError
from vlm.evaluation.measures import Bootstrap
from vlm.evaluation.scoring import CaseScores
from vlm.statistics import probability
from vlm.statistics.estimate import Estimate, described, undefined
from vlm.statistics.intervals import FEWEST_PATIENTS, Statistic, mean, ratio
from vlm.untrusted import read_json

DIGITS = 6
"""Digits of a probability, as predictions.jsonl has them: equal inputs, which may differ in the last bits, are ties."""
RATES = {"sensitivity": "Sensitivity", "specificity": "Specificity", "ppv": "PPV", "npv": "NPV",
         "lr_positive": "LR+", "lr_negative": "LR−", "aurc": "AURC"}  # fmt: skip
"""Measure of an operating point → its short name in tables."""

COUNTS = ("positives", "negatives", "patients", "sensitivity", "specificity")
"""What is kept of the validation cases that a threshold was fixed on."""

Points = dict[str, dict[str, dict[str, Any]]]
"""Label → name of the operating point → plain values: the threshold, what it was fixed on, and later the measures."""


def fewest_patients(wanted: float) -> int:
    """Count the patients of a class that a threshold needs: ten, and so many that one in them may be misjudged."""
    return max(FEWEST_PATIENTS, math.ceil(round(1 / (1 - wanted), 6)))


def fix_thresholds(
    validation: CaseScores,
    probabilities: np.ndarray,
    labels: Sequence[str],
    patients: Sequence[str],
    points: Sequence[OperatingPointConfig],
) -> Points:
    """Fix each label's thresholds on the calibrated probabilities (N × K) of the N cases of the validation split.

    A threshold is undefined, with the reason, where too few validation patients have the label, or lack it.
    """
    named = np.asarray(patients, dtype=object)
    fixed: Points = {}
    for k, label in enumerate(labels):
        known = ~np.isnan(validation.targets[:, k])
        y, p = validation.targets[known, k], np.round(probabilities[known, k], DIGITS)
        fixed[label] = {point.name: _fix(label, y, p, named[known], point) for point in points}
    return fixed


def _fix(label: str, y: np.ndarray, p: np.ndarray, patients: np.ndarray, point: OperatingPointConfig) -> dict[str, Any]:
    of_class = y == (1 if point.measure == "sensitivity" else 0)
    found, needed = len(set(patients[of_class])), fewest_patients(point.wanted)
    has = "have" if point.measure == "sensitivity" else "lack"
    why = f"{found} validation patients {has} {label}; a {point.measure} of {point.wanted:g} needs {needed}"
    threshold = threshold_for(y, p, point) if found >= needed else None
    if found >= needed and threshold is None:
        why = f"too many validation cases without {label} have a probability of 1"
    reached = [None, None] if threshold is None else [_share(p >= threshold, y == 1), _share(p < threshold, y == 0)]
    counts = [int((y == 1).sum()), int((y == 0).sum()), len(set(patients))]
    fixed = undefined(why) if threshold is None else Estimate(threshold)._asdict()
    return {"threshold": fixed, "validation": dict(zip(COUNTS, [*counts, *reached], strict=True))}


def _share(hits: np.ndarray, among: np.ndarray) -> float | None:
    return float(hits[among].mean()) if among.any() else None


def threshold_for(y: np.ndarray, p: np.ndarray, point: OperatingPointConfig) -> float | None:
    """Find the threshold that reaches the wanted share and costs the other class least; N targets, probabilities.

    It lies in the middle between two probabilities, so that no case is at it. None where no threshold up to 1 does.
    """
    of_class = np.sort(p[y == (1 if point.measure == "sensitivity" else 0)])
    count = math.ceil(round(point.wanted * len(of_class), 6))
    if point.measure == "sensitivity":
        upper = of_class[-count]  # the last that must be called
        lower = p[p < upper].max(initial=0.0)
    else:
        lower = of_class[count - 1]  # the last that must not be called
        upper = p[p > lower].min(initial=1.0)
    return float(lower + upper) / 2 if lower < 1 else None


def saved_thresholds(folder: Path, labels: Sequence[str], points: Sequence[OperatingPointConfig]) -> Points | None:
    """Read the thresholds that an adapter was saved with; None unless it has all of them.

    Raises `UserError` for a threshold that is no probability.
    """
    file = folder / "metrics.json"
    metrics = read_json(file, "the adapter's metrics") if file.is_file() else None
    saved = metrics.get("operating_points") if isinstance(metrics, dict) else None
    found: Points = {}
    for label, point in ((label, point) for label in labels for point in points):
        try:
            row = saved[label][point.name]  # type: ignore[index]
            threshold, counts = row["threshold"], {key: row["validation"].get(key) for key in COUNTS}
            value, why = threshold["value"], threshold.get("why", "")
        except (KeyError, TypeError, AttributeError):
            return None
        if any(type(number) not in (int, float, type(None)) for number in (value, *counts.values())):
            raise UserError(f"{file}: operating_points: {label}: {point.name}: not of numbers")
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{file}: operating_points: {label}: {point.name}: no probability")
        fixed = undefined(str(why)) if value is None else Estimate(float(value))._asdict()
        found.setdefault(label, {})[point.name] = {"threshold": fixed, "validation": counts}
    return found


def operating_measures(
    fixed: Points,
    scores: CaseScores,
    probabilities: np.ndarray,
    labels: Sequence[str],
    bootstrap: Bootstrap,
) -> Points:
    """Add to fixed thresholds what they do on the test split: N × K targets and calibrated probabilities."""
    measured: Points = {}
    for k, label in enumerate(labels):
        known = np.flatnonzero(~np.isnan(scores.targets[:, k]))
        y, p = scores.targets[known, k] == 1, np.round(probabilities[known, k], DIGITS)
        measured[label] = {
            name: row if row["threshold"]["value"] is None else row | _measure(label, y, p, row, known, bootstrap)
            for name, row in fixed.get(label, {}).items()
        }
    return measured


def _measure(
    label: str, y: np.ndarray, p: np.ndarray, row: Mapping[str, Any], known: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Measure the decisions at a threshold over the cases `known` (n, bool targets and probabilities)."""
    threshold = row["threshold"]["value"]
    called = p >= threshold
    cells = {"true_positives": y & called, "false_positives": ~y & called,
             "false_negatives": y & ~called, "true_negatives": ~y & ~called}  # fmt: skip
    tp, fp, fn, tn = (cell.astype(np.float64) for cell in cells.values())
    rates: dict[str, tuple[Statistic, np.ndarray, str]] = {  # with the classes that it rests on
        "sensitivity": (ratio(tp, tp + fn), _only(y), f"no test case has {label}"),
        "specificity": (ratio(tn, tn + fp), _only(~y), f"no test case is known to lack {label}"),
        "ppv": (ratio(tp, tp + fp), _only(called), f"no test case is called {label}"),
        "npv": (ratio(tn, tn + fn), _only(~called), f"every test case is called {label}"),
        "lr_positive": (quotient(ratio(tp, tp + fn), ratio(fp, tn + fp)), y * 1.0, "no test case is a false positive"),
        "lr_negative": (quotient(ratio(fn, tp + fn), ratio(tn, tn + fp)), y * 1.0, "no test case is a true negative"),
    }
    wrong, certain = fp + fn, probability.certainty(p, threshold)
    measured = {name: _or_why(bootstrap(one, known, classes), why) for name, (one, classes, why) in rates.items()}
    errors = {"error": mean(wrong), "aurc": probability.risk_coverage_area(wrong, certain)}
    unknown = f"{label} is unknown in every test case"
    measured |= {name: _or_why(bootstrap(one, known), unknown) for name, one in errors.items()}
    return {**measured, **{name: int(cell.sum()) for name, cell in cells.items()}}


def _only(among: np.ndarray) -> np.ndarray:
    """Make the classes of a rate whose denominator is some cases: 1 for these, NaN for the others."""
    return np.where(among, 1.0, np.nan)


def _or_why(estimate: dict[str, Any], why: str) -> dict[str, Any]:
    return estimate if estimate["value"] is not None else undefined(why)


def quotient(above: Statistic, below: Statistic) -> Statistic:
    """Divide two statistics on the same resample; infinite for a division of more than 0 by 0."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            return above(weights) / below(weights)

    return statistic


def missed_targets(points: Points) -> Iterator[str]:
    """Yield a sentence for each threshold whose wanted share is above the whole interval on the test split."""
    for label, rows in points.items():
        for name, row in rows.items():
            measure, _, wanted = name.partition("_")
            if (row.get(measure) or {}).get("high") is not None and row[measure]["high"] < float(wanted):
                found = described(row[measure])
                yield f"The threshold of {label} for a {measure} of {wanted} has {found} on the test split."


def is_measured(row: Mapping[str, Any]) -> bool:
    """Check whether an operating point has a threshold and test cases."""
    return (row.get("error") or {}).get("value") is not None


def table_rows(points: Points) -> list[dict[str, Any]]:
    """List the operating points of all labels for a table, with the names of label and point in words."""
    return [
        {**row, "label": label.replace("_", " "), "point": name.replace("_", " ")}
        for label, rows in points.items()
        for name, row in rows.items()
    ]
