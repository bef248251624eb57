"""Recalibrate an adapter for a site on some of its patients, who are kept apart from those tested."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from vlm.adapter.site_calibration import FARTHEST, SiteCalibration
from vlm.data.cohort import Cohort
from vlm.errors import UserError
from vlm.evaluation.operating_points import Points
from vlm.evaluation.scoring import CaseScores
from vlm.model.calibration import Calibration
from vlm.statistics.intervals import FEWEST_PATIENTS
from vlm.statistics.probability import EPSILON

COOLEST, HOTTEST = 0.05, 50.0
"""Bounds of a fitted temperature, so that classes that are wholly apart have one."""


def set_apart(cohort: Cohort, patients: int) -> Cohort:
    """Move some patients of the test split to the validation split, always the same, whatever rows are added.

    Raises `UserError` where the data have a validation split already, and where nobody would be left to test.
    """
    splits, names = np.array(cohort.dataset["split"], dtype=object), np.array(cohort.dataset["patient"], dtype=object)
    if (splits == "validation").any():
        raise UserError("--recalibrate_on: these data have a validation split; give a table of the site's cases alone")
    tested = sorted(set(names[splits == "test"]), key=_order)
    if not 0 < patients < len(tested):
        most = f"must be 1 to {len(tested) - 1}; the site has {len(tested)} patients to test"
        raise UserError(f"--recalibrate_on {patients}: {most}")
    apart = (splits == "test") & np.isin(names.astype(str), tested[:patients])
    moved = np.where(apart, "validation", splits).tolist()
    return replace(cohort, dataset=cohort.dataset.remove_columns("split").add_column("split", moved))


def _order(patient: str) -> str:
    return hashlib.sha256(f"recalibrate {patient}".encode()).hexdigest()


def fit_site(
    scores: CaseScores, labels: Sequence[str], patients: Sequence[str], own: Calibration, site: str
) -> tuple[SiteCalibration, list[str]]:
    """Fit a temperature and an offset for each label to N cases that were set apart; returns sentences on it as well.

    A label that under ten of the patients have, or lack, keeps the adapter's own temperature.
    """
    named, notes = np.asarray(patients, dtype=object), []
    pairs: list[tuple[float, float]] = []
    for k, label in enumerate(labels):
        known = ~np.isnan(scores.targets[:, k])
        y, x = scores.targets[known, k], scores.logits[known, k].astype(np.float64)
        counts = [len(set(named[known][y == kind])) for kind in (1, 0)]
        if min(counts) < FEWEST_PATIENTS:
            pairs.append((own.temperature, 0.0))
            notes.append(f"{label}: not recalibrated: {counts[0]} of the patients have it, {counts[1]} lack it; "
                         f"{FEWEST_PATIENTS} of each are needed")  # fmt: skip
            continue
        pairs.append(fit_line(x, y))
        notes.append(f"{label}: temperature {pairs[-1][0]:.3f} (own {own.temperature:.3f}), offset {pairs[-1][1]:+.3f}")
    rows = ~np.isnan(scores.targets).all(axis=1)
    temperatures, offsets = (tuple(pair[place] for pair in pairs) for place in (0, 1))
    people, cases = len(set(named[rows])), int(rows.sum())
    return SiteCalibration(own.temperature, people, cases, site, temperatures, offsets), notes


def fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Fit temperature and offset that minimise BCE on logits and targets (n each), as Platt (1999) within bounds."""

    def loss(parameters: np.ndarray) -> float:
        scaled = x / np.exp(parameters[0]) + parameters[1]
        return float(np.mean(np.logaddexp(0, scaled) - y * scaled))

    bounds = [(np.log(COOLEST), np.log(HOTTEST)), (-FARTHEST, FARTHEST)]
    best = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=bounds)
    temperature = float(np.clip(round(float(np.exp(best.x[0])), 4), COOLEST, HOTTEST))
    return temperature, round(float(best.x[1]), 4)


def move_thresholds(points: Points, labels: Sequence[str], site: SiteCalibration) -> Points:
    """Convert thresholds on the adapter's own probabilities to those of the site that make the same decisions."""
    moved: Points = {}
    for label, t, b in zip(labels, site.temperatures, site.offsets, strict=True):
        moved[label] = dict(points.get(label, {}))
        for name, row in moved[label].items():
            value = row["threshold"]["value"]
            if value is not None:
                odds = logit(np.clip(value, EPSILON, 1 - EPSILON)) * site.temperature / t + b
                moved[label][name] = {**row, "threshold": {**row["threshold"], "value": float(expit(odds))}}
    return moved
