"""Write report.html: one self-contained page for a reviewer, without scripts or network access."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vlm.atomic import replace_file
from vlm.data.dataset import CaseDataset, load_pictures
from vlm.data.images.color import bgr
from vlm.evaluation.learned import LEARNED
from vlm.evaluation.operating_points import RATES, table_rows
from vlm.evaluation.subgroups import titles
from vlm.evaluation.text import METRICS, RougeL
from vlm.resources import data_uri, render
from vlm.statistics.estimate import described

CASES_IN_A_GROUP = 4
"""Number of cases shown in each group."""
NAMES = {metric().key: name for metric, name in zip(METRICS, ("BLEU-4", "chrF", "ROUGE-L", "METEOR without synonyms",
                                                             "CIDEr-D"), strict=True)}  # fmt: skip
NAMES |= {name: metric.short for name, metric in LEARNED.items()}
FINDING_ROWS = {"f1": "Finding F1", "precision": "Finding precision", "recall": "Finding recall",
                "hallucination_rate": "Drafts that invent a finding", "miss_rate": "Findings missed",
                "negation_flip_rate": "Negation flips", "side_flip_rate": "Side flips",
                "zone_flip_rate": "Zone flips"}  # fmt: skip


def write_page(
    folder: Path, test: CaseDataset, rows: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any], title: str
) -> None:
    """Write report.html from the metrics and figures of an evaluation."""
    figures = {name: _data(folder / "figures" / f"{name}.png") for name in
               ("ablation", "probability", "risk_coverage", "losses", "correlation")}  # fmt: skip
    page = render(
        "vlm.evaluation",
        "page.html.j2",
        title=title,
        metrics=metrics,
        figures=figures,
        tiles=_tiles(metrics),
        sources=[metrics, *(metrics.get("baselines", {}).get(name, {}) for name in ("constant", "nearest"))],
        finding_rows=FINDING_ROWS,
        text_rows={key: name for key, name in NAMES.items() if key in metrics.get("text", {}) or key not in LEARNED},
        points=table_rows(metrics["operating_points"]),
        rates=RATES,
        subgroup_titles=titles(metrics["subgroups"]),
        show=show,
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
    pictures = load_pictures(test.rows[index]["images"], test.spec) if "image" not in test.withhold else []
    truth = {1: " (true)", 0: "", None: " (unknown)"}
    return {
        **row,
        "image": _encode(np.hstack([item.picture for item in pictures])) if pictures else "",
        "vitals": ", ".join(f"{name} {value}" for name, value in row["vitals"].items()),
        "probabilities": ", ".join(f"{name.replace('_', ' ')} {value:.0%}{truth[row['labels'][name]]}"
                                   for name, value in row["probabilities"].items()),
        "wrong": [*row["inconsistent_numbers"], *(["head and text disagree"] if row["head_against_text"] else [])],
    }  # fmt: skip


def _encode(picture: np.ndarray) -> str:
    """Encode an image (S × S or S × S × 3 uint8, RGB) as a data URI."""
    return data_uri("image/jpeg", cv2.imencode(".jpg", bgr(picture), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes())


def _data(file: Path) -> str:
    return data_uri("image/png", file.read_bytes()) if file.is_file() else ""
