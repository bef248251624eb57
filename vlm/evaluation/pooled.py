"""Pool the measures of several runs of one config: seeds on the same patients, or folds of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm.atomic import make_folder, replace_file, writing
from vlm.evaluation.compare import labeller_of, read_predictions, run_measures
from vlm.resources import render
from vlm.statistics.estimate import Estimate, described
from vlm.statistics.intervals import FEWEST_PATIENTS, MOST_WEIGHTS


def pool_runs(folders: Sequence[Path], draws: int, seed: int = 0) -> dict[str, Any]:
    """Average each measure over the runs, with an interval that holds both runs and patients.

    Each draw resamples the patients of all runs, alike in each that tested them, and the runs. Raises `UserError` for a
    folder without predictions.
    """
    labeller = labeller_of(str(folders[0]))
    rows = [list(read_predictions(folder).values()) for folder in folders]
    measures = [run_measures(some, labeller) for some in rows]
    names, of_case = np.unique([str(row["patient"]) for some in rows for row in some], return_inverse=True)
    places = np.split(of_case, np.cumsum([len(some) for some in rows])[:-1])
    titles = [title for title in measures[0] if all(title in one for one in measures)]
    values = {title: [float(one[title](np.ones((1, len(some))))[0]) for one, some in zip(measures, rows, strict=True)]
              for title in titles}  # fmt: skip
    rng, drawn = np.random.default_rng(seed), {title: [] for title in titles}  # type: ignore[var-annotated]
    most = max(1, MOST_WEIGHTS // len(of_case))
    for start in range(0, draws, most):
        count = min(most, draws - start)
        weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), count).astype(np.float64)
        chosen = rng.integers(0, len(rows), (count, len(rows)))  # D × R
        for title in titles:
            each = np.stack([one[title](weights[:, p]) for one, p in zip(measures, places, strict=True)], axis=1)
            drawn[title].append(np.take_along_axis(each, chosen, axis=1).mean(axis=1))
    return {
        "runs": [str(folder) for folder in folders],
        "cases": len({row["id"] for some in rows for row in some}),
        "patients": len(names),
        "measures": {title: _pooled(values[title], drawn[title] if _enough(rows, title) else []) for title in titles},
    }


def _enough(rows: list[list[dict[str, Any]]], title: str) -> bool:
    """Check for patients enough for an interval, as `patient_bootstrap` does: in all, and in each class of a label."""
    label = title.removeprefix("AUROC ")
    classes: dict[Any, set[str]] = {}
    for row in (row for some in rows for row in some):
        known = row["labels"].get(label) if label != title else 0
        classes.setdefault(known, set()).add(str(row["patient"]))
    return min(len(patients) for known, patients in classes.items() if known is not None) >= FEWEST_PATIENTS


def _pooled(values: list[float], drawn: list[np.ndarray]) -> dict[str, Any]:
    finite = np.concatenate([np.empty(0), *drawn])
    finite = finite[np.isfinite(finite)]
    known = bool(np.isfinite(values).all())
    low, high = np.quantile(finite, [0.025, 0.975]).tolist() if known and len(finite) else (None, None)
    plain = [value if np.isfinite(value) else None for value in values]
    return {"pooled": Estimate(float(np.mean(values)) if known else None, low, high)._asdict(), "runs": plain}


def write_pooled(pooled: dict[str, Any], folder: Path, title: str) -> list[str]:
    """Write pooled.json and pooled.html to a folder; returns lines that summarize them."""
    with writing(folder):
        make_folder(folder)
    replace_file(folder / "pooled.json", json.dumps(pooled, indent=2, allow_nan=False) + "\n")
    replace_file(
        folder / "pooled.html", render("vlm.evaluation", "pooled.html.j2", title=title, show=described, **pooled)
    )
    lines = [f"{len(pooled['runs'])} runs on {pooled['patients']} patients; 95 % intervals over runs and patients"]
    for name, row in pooled["measures"].items():
        each = ", ".join("–" if value is None else f"{value:.3f}" for value in row["runs"])
        lines.append(f"  {name:<22} {described(row['pooled'])}; each: {each}")
    return [*lines, f"page: {folder / 'pooled.html'}"]
