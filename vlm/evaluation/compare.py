"""Compare runs on the same test cases: `clinical-vlm compare runs/a runs/b …`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm.errors import UserError
from vlm.evaluation.ablation import minus
from vlm.evaluation.agreement import Agreement, why_undefined
from vlm.evaluation.naming import macro, naming
from vlm.evaluation.text import RougeL
from vlm.findings.labeller import Labeller
from vlm.findings.vocabulary import DEFAULT
from vlm.statistics import probability
from vlm.statistics.estimate import Estimate
from vlm.statistics.intervals import Statistic, patient_bootstrap, ratio
from vlm.untrusted import read_json, read_yaml

Rows = dict[str, dict[str, Any]]
"""Rows of predictions.jsonl by case id."""


def compare(folders: Sequence[str], draws: int = 2000) -> str:
    """Build a Markdown table of each run's measures and paired differences from the first run.

    Raises `UserError` for a folder without predictions, or runs that were tested on other cases or references.
    """
    runs = {str(folder): read_predictions(Path(folder)) for folder in folders}
    if len(runs) < 2:
        raise UserError("compare: name at least two different runs")
    (first_name, first), *others = runs.items()
    for name, run in others:
        _check_same(first_name, first, name, run)
    ids = list(first)
    patients = [first[case]["patient"] for case in ids]
    labeller = labeller_of(first_name)
    measures = {}
    for name, run in runs.items():
        rows = [run[case] for case in ids]
        measures[name] = run_measures(rows, labeller) | decision_measures(rows, read_thresholds(Path(name)))
    titles = list(dict.fromkeys(title for run in measures.values() for title in run))  # runs may have other labels
    lines = [
        f"{len(ids)} test cases of {len(set(patients))} patients; 95 % intervals by bootstrap over patients. "
        f"Below each value: its paired difference from {first_name}.",
        "",
        f"| run | changed options | {' | '.join(titles)} |",
        f"| --- | --- | {' | '.join('---' for _ in titles)} |",
    ]
    for name in runs:
        cells = []
        for title in titles:
            statistic, reference = measures[name].get(title), measures[first_name].get(title)
            cell = str(patient_bootstrap(statistic, patients, draws)) if statistic else "–"
            if name != first_name and statistic and reference:
                cell += f"<br>{_signed(patient_bootstrap(minus(statistic, reference), patients, draws))}"
            cells.append(cell)
        lines.append(f"| {name} | {_changed(first_name, name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def read_predictions(folder: Path) -> Rows:
    """Read the predictions of a run by case id; raises `UserError` for a folder without them."""
    file = folder / "predictions.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return {row["id"]: row for row in rows}
    except OSError:
        raise UserError(f"{file}: no such file; a run that was tested has one") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not the predictions of a run: {error}") from None


def _check_same(first: str, a: Rows, second: str, b: Rows) -> None:
    if a.keys() != b.keys():
        odd = min(a.keys() ^ b.keys())
        raise UserError(f"{second}: tested on other cases than {first}, such as {odd}; compare runs of one split")
    for case, row in a.items():
        if row["tokens"] != b[case]["tokens"] or row["reference"] != b[case]["reference"]:
            raise UserError(f"{second}: case {case} has another reference than in {first}; compare runs of one report")


def run_measures(rows: list[dict[str, Any]], labeller: Labeller) -> dict[str, Statistic]:
    """Build the statistics of a run's predictions by title."""
    drafts, references = [row["report"] for row in rows], [row["reference"] for row in rows]
    written = np.array([bool(text) for text in references])
    shown = [draft if has else "" for draft, has in zip(drafts, written, strict=True)]
    metric = RougeL()
    f1, rouge = Agreement.of(shown, references, labeller).f1(), metric.statistic(shown, references)
    read = not why_undefined([text for text in references if text], labeller), metric.reads(references)
    measures: dict[str, Statistic] = {
        "text loss per token": ratio(
            *(np.array([row[name] for row in rows], dtype=np.float64) for name in ("text_loss", "tokens"))
        ),
        "finding F1": lambda weights: f1(weights * written * (1 if read[0] else np.nan)),
        "ROUGE-L": lambda weights: rouge(weights * written * (1 if read[1] else np.nan)),
    }
    labels = list(rows[0]["labels"])
    truth = np.array([[row["labels"][label] for label in labels] for row in rows], dtype=np.float64)
    stands_for = {label: label for label in labels if label in labeller.names}
    if named := naming(drafts, truth.reshape(len(rows), -1), labels, stands_for, labeller):
        measures["labels named"] = macro(named)
    for label in labels:
        targets = np.array([row["labels"][label] for row in rows], dtype=np.float64)  # None becomes NaN
        known = np.flatnonzero(~np.isnan(targets))
        # An earlier version kept no logits. Its probabilities near 0 and 1 are ties.
        scores = np.array([row.get("logits", {}).get(label, row["probabilities"][label]) for row in rows], np.float64)
        if len(np.unique(targets[known])) == 2 and np.isfinite(scores[known]).all():
            area = probability.auroc(targets[known], scores[known].round(4))
            measures[f"AUROC {label}"] = lambda weights, area=area, known=known: area(weights[:, known])  # type: ignore[misc]
    return measures


def read_thresholds(run: Path) -> dict[str, tuple[str, float]]:
    """Read each label's first operating point and its threshold from a run's metrics; a label without one is absent.

    Raises `UserError` for a metrics.json that is none.
    """
    file, found = run / "metrics.json", {}
    if not file.is_file():
        return {}
    try:
        for label, rows in read_json(file, "the run's metrics").get("operating_points", {}).items():
            for name, row in list(rows.items())[:1]:
                if row["threshold"]["value"] is not None:
                    found[label] = name.replace("_", " "), float(row["threshold"]["value"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{file}: operating_points: not the metrics of a run; evaluate it again") from None
    return found


def decision_measures(rows: list[dict[str, Any]], thresholds: dict[str, tuple[str, float]]) -> dict[str, Statistic]:
    """Build the statistics of sensitivity and specificity at each label's threshold, by title."""
    measures: dict[str, Statistic] = {}
    for label, (point, threshold) in thresholds.items():
        if label not in rows[0]["labels"]:
            continue
        targets = np.array([row["labels"][label] for row in rows], dtype=np.float64)
        called = np.array([row["probabilities"][label] for row in rows], dtype=np.float64) >= threshold
        for name, among, hit in (("sensitivity", targets == 1, called), ("specificity", targets == 0, ~called)):
            if among.any():
                measures[f"{name} {label} ({point})"] = ratio((among & hit) * 1.0, among * 1.0)
    return measures


def labeller_of(run: str) -> Labeller:
    """Load the labeller of a run's config."""
    return Labeller.load(str(_options(Path(run)).get("data.findings", DEFAULT)))


def _signed(estimate: Estimate) -> str:
    if estimate.value is None:
        return "not defined"
    interval = f" ({estimate.low:+.3f} to {estimate.high:+.3f})" if estimate.low is not None else ""
    return f"{estimate.value:+.3f}{interval}"


def _changed(first: str, other: str) -> str:
    """List the options in which two runs differ, from their resolved configs."""
    a, b = _options(Path(first)), _options(Path(other))
    changed = [f"{key} {b.get(key)}" for key in sorted(a.keys() | b.keys())
               if a.get(key) != b.get(key) and not key.startswith("run.")]  # fmt: skip
    return ", ".join(changed) or "–"


def _options(folder: Path) -> dict[str, Any]:
    from vlm.config.parsing import dotted
    from vlm.config.renamed import rename_keys

    file = folder / "config.yaml"
    if not file.is_file():
        return {}
    values = read_yaml(file, "the run's config")
    rename_keys(values, str(file))
    return dotted(values)
