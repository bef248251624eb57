"""Write report.html: one self-contained page for a reviewer, without scripts or network access."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vlm.atomic import replace_file
from vlm.data.dataset import CaseDataset, load_picture
from vlm.estimate import described
from vlm.evaluation.learned import LEARNED
from vlm.evaluation.text import METRICS, RougeL
from vlm.resources import data_uri, render

CASES_IN_A_GROUP = 4
"""Number of cases shown in each group."""
NAMES = {metric().key: name for metric, name in zip(METRICS, ("BLEU-4", "chrF", "ROUGE-L", "METEOR without synonyms",
                                                             "CIDEr-D"), strict=True)}  # fmt: skip
NAMES |= {name: title for name, title in zip(LEARNED, ("BERTScore", "RadGraph F1", "CheXbert F1"), strict=True)}
FINDING_ROWS = {"f1": "Finding F1", "precision": "Finding precision", "recall": "Finding recall",
                "hallucination_rate": "Drafts that invent a finding", "miss_rate": "Findings missed",
                "negation_flip_rate": "Negation flips", "side_flip_rate": "Side flips",
                "zone_flip_rate": "Zone flips"}  # fmt: skip


def write_page(
    folder: Path, test: CaseDataset, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], title: str
) -> None:
    """Write report.html from the metrics and figures of an evaluation."""
    figures = {name: _data(folder / "figures" / f"{name}.png") for name in
               ("ablation", "probability", "losses", "correlation")}  # fmt: skip
    page = render(
        "vlm.evaluation",
        "page.html.j2",
        title=title,
        metrics=metrics,
        figures=figures,
        tiles=_tiles(metrics),
        facts=_facts(metrics),
        reports=_reports(metrics),
        findings=_findings(metrics),
        labels=_labels(metrics),
        calibration=_calibration(metrics["calibration"]),
        missingness=_missingness(metrics),
        groups=_groups(test, rows),
    )
    replace_file(folder / "report.html", page)


def show(estimate: Mapping[str, Any] | None) -> str:
    """Format an estimate with its interval, or a dash."""
    if not estimate or estimate.get("value") is None:
        return "–"
    return described(estimate).replace(" to ", "–")


def _tiles(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    tiles = [("Text loss per token", metrics["text_loss"], "nats on the reference")]
    if metrics.get("findings"):
        tiles.append(("Finding F1", metrics["findings"]["f1"], "draft against reference"))
    for label, values in list(metrics["labels"].items())[:1]:
        tiles.append((f"AUROC {label.replace('_', ' ')}", values["auroc"], f"{values['positives']} positive cases"))
    if metrics["labels"]:
        tiles.append(("ECE, all labels", metrics["calibration"]["ece"], "0 is perfectly calibrated"))
    if metrics["numbers"]["statements"]:
        count = metrics["numbers"]["statements"]
        tiles.append(("Vitals stated right", metrics["numbers"]["consistent"], f"of {count} statements"))
    if metrics.get("cut_drafts", {}).get("cases"):
        tiles.append(("Drafts cut", metrics["cut_drafts"], f"at {metrics['cut_drafts']['max_new_tokens']} tokens"))
    tiles.append(("Distinct drafts", {"value": metrics["distinct_ratio"], "low": None, "high": None}, "share of cases"))
    named = []
    for name, estimate, note in tiles:
        value, _, interval = show(estimate).partition(" ")
        named.append({"name": name, "value": value, "note": f"{interval} {note}".strip()})
    return named


def _facts(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"arm": arm.replace("_", " "), "cells": [show(measures[name]) for name in
         ("image_facts_right", "vitals_facts_right", "finding_asserted_without_image")]}
        for arm, measures in metrics.get("facts", {}).items()
    ]  # fmt: skip


def _reports(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tabulate the measures of the model, the constant report and the nearest case."""
    sources = [metrics, *(metrics.get("baselines", {}).get(name, {}) for name in ("constant", "nearest"))]
    rows = [
        {"name": name, "cells": [show(source.get("findings", {}).get(key)) for source in sources]}
        for key, name in FINDING_ROWS.items()
    ]
    return rows + [
        {"name": name, "cells": [show(source.get("text", {}).get(key)) for source in sources]}
        for key, name in NAMES.items()
        if key in metrics.get("text", {}) or key not in LEARNED
    ]


def _findings(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    each = metrics.get("findings", {}).get("each", {})
    rows = [{"name": name.replace("_", " "), **values, "f1": show(values["f1"])} for name, values in each.items()]
    return sorted(rows, key=lambda row: -row["in_references"])


def _labels(metrics: Mapping[str, Any]) -> list[list[str]]:
    baselines = metrics.get("baselines", {})
    return [
        [
            label.replace("_", " "), show(values["auroc"]), show(baselines.get("vitals", {}).get(label)),
            show(baselines.get("missingness", {}).get(label)), show(values["auprc"]),
            "–" if values["prevalence"] is None else f"{values['prevalence']:.2f}", show(values["brier"]),
            show(values["ece"]), show(values["calibration_slope"]),
            f"{values['positive_patients']}/{values['negative_patients']}",
        ]
        for label, values in metrics["labels"].items()
    ]  # fmt: skip


def _calibration(values: Mapping[str, Any]) -> str:
    if not values["patients"]:
        return "The probabilities are not calibrated: no validation patient had a known label."
    return (
        f"Calibrated by one temperature, {values['temperature']:.2f}, fitted on {values['cases']} cases of "
        f"{values['patients']} validation patients."
    )


def _missingness(metrics: Mapping[str, Any]) -> str:
    """Describe the labels that the pattern of missing values alone predicts."""
    sentences = []
    for label, values in metrics["labels"].items():
        guess, ours = metrics["baselines"].get("missingness", {}).get(label, {}).get("value"), values["auroc"]["value"]
        if guess is not None and ours is not None and guess >= 0.6:
            sentences.append(
                f"Which values were recorded already predicts {label.replace('_', ' ')} with an AUROC of {guess:.2f} "
                f"(the model: {ours:.2f}): that part is how the data were collected, not what the patients have, and "
                "will not hold elsewhere."
            )
    return " ".join(sentences)


def _groups(test: CaseDataset, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Select the best, the worst and the most contradictory cases."""
    written = [index for index, row in enumerate(rows) if row["reference"]]
    likeness = np.zeros(len(rows))
    for index in written:
        row = rows[index]
        likeness[index] = RougeL().statistic([row["report"]], [row["reference"]])(np.ones((1, 1)))[0]
    order = sorted(written, key=lambda index: likeness[index])
    doubts = [len(row["inconsistent_numbers"]) + bool(row["head_against_text"]) for row in rows]
    doubtful = sorted((index for index, count in enumerate(doubts) if count), key=lambda index: -doubts[index])
    groups = [
        ("Worst drafts", "Least like their reference (ROUGE-L).", order[:CASES_IN_A_GROUP]),
        ("Best drafts", "Most like their reference.", order[::-1][:CASES_IN_A_GROUP]),
        ("Contradictions", "The draft says of the vitals what was not given, or denies what the head asserts.",
         doubtful[:CASES_IN_A_GROUP]),
    ]  # fmt: skip
    return [
        {"title": title, "note": note, "cases": [_case(test, rows[index], index) for index in chosen]}
        for title, note, chosen in groups
        if chosen
    ]


def _case(test: CaseDataset, row: Mapping[str, Any], index: int) -> dict[str, Any]:
    picture = load_picture(test.rows[index]["image"], test.spec) if "image" not in test.withhold else None
    truth = {1: " (true)", 0: "", None: " (unknown)"}
    return {
        **row,
        "image": _encode(picture) if picture is not None else "",
        "vitals": ", ".join(f"{name} {value}" for name, value in row["vitals"].items()),
        "probabilities": ", ".join(f"{name.replace('_', ' ')} {value:.0%}{truth[row['labels'][name]]}"
                                   for name, value in row["probabilities"].items()),
        "wrong": [*row["inconsistent_numbers"], *(["head and text disagree"] if row["head_against_text"] else [])],
    }  # fmt: skip


def _encode(picture: np.ndarray) -> str:
    """Encode an image (S × S uint8) as a data URI."""
    return data_uri("image/jpeg", cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())


def _data(file: Path) -> str:
    return data_uri("image/png", file.read_bytes()) if file.is_file() else ""
