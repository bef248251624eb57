"""Write predictions.jsonl and table1.csv: one row a test case. They hold patient text and must stay with the data."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm.atomic import replace_file
from vlm.data.cohort import Cohort
from vlm.data.dataset import CaseDataset
from vlm.data.sections import CONCLUSIONS, section_name
from vlm.data.vitals.schema import describe
from vlm.evaluation.ablation import ArmResult
from vlm.evaluation.measures import claims_of
from vlm.evaluation.scoring import CaseScores
from vlm.plain import spreadsheet_cell


def write_predictions(
    folder: Path,
    test: CaseDataset,
    scores: CaseScores,
    given: ArmResult,
    references: Sequence[str],
    probabilities: np.ndarray,
    disagreements: np.ndarray,
) -> list[dict[str, Any]]:
    """Write and return the rows of the arm `given`.

    Probabilities are N × K, calibrated; disagreements of head and text N, NaN where undefined.
    """
    labels = test.spec.labels
    rows = []
    for index, (draft, reference) in enumerate(zip(given.drafts, references, strict=True)):
        row = test.rows[index]
        vitals = np.array(row["vitals"], dtype=np.float64)
        known = [None if np.isnan(value) else int(value) for value in scores.targets[index]]
        shown, logits = ([_number(value) for value in values[index]] for values in (probabilities, scores.logits))
        wrong = [f"{c.vital}: said {c.stated}, given {c.given}" for c in claims_of(draft, vitals, test.spec.schema)
                 if not c.consistent]  # fmt: skip
        rows.append(
            {
                "id": row["id"],
                "patient": row["patient"],
                "vitals": describe(test.spec.schema, vitals.tolist()),
                "reference": reference,
                "report": draft,
                **({"sections": given.sections[index]} if given.sections else {}),
                "finished": not (given.cut and given.cut[index]),
                "labels": dict(zip(labels, known, strict=True)),
                "probabilities": dict(zip(labels, shown, strict=True)),
                "logits": dict(zip(labels, logits, strict=True)),
                "text_loss": _number(scores.losses[index], 4),
                "tokens": int(scores.tokens[index]),
                "inconsistent_numbers": wrong,
                "head_against_text": None if np.isnan(disagreements[index]) else bool(disagreements[index]),
            }
        )
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    replace_file(folder / "predictions.jsonl", text)
    return rows


def write_table1(folder: Path, test: CaseDataset, rows: Sequence[Mapping[str, Any]], has_image: Iterable[bool]) -> None:
    """Write table1.csv from the rows of the predictions, for a spreadsheet, as the source paper's Table 1.

    Columns: case, whether an image was shown, the vitals given, of each label what is known and the calibrated
    probability, and the draft. An empty cell was not given or is not known.
    """
    vitals, labels, shown = test.spec.schema.vitals, test.spec.labels, "vitals" not in test.withhold
    of_labels = [f"{label}{kind}" for label in labels for kind in ("", " probability")]
    table: list[list[Any]] = [
        ["case", "image", *(f"{v.name} [{v.unit}]" if v.unit else v.name for v in vitals), *of_labels, "draft"]
    ]
    for row, image in zip(rows, has_image, strict=True):
        given = row["vitals"] if shown else {}
        of_case = [row[kind][label] for label in labels for kind in ("labels", "probabilities")]
        seen = "given" if image else "none"
        table.append([row["id"], seen, *(given.get(v.name) for v in vitals), *of_case, row["report"]])
    text = io.StringIO(newline="")
    csv.writer(text).writerows([spreadsheet_cell(x) if isinstance(x, str) else x for x in cells] for cells in table)
    replace_file(folder / "table1.csv", text.getvalue().encode("utf-8-sig"))  # Excel reads UTF-8 by its mark alone


def write_rexrank(folder: Path, cohort: Cohort, root: Path) -> None:
    """Write rexrank.json from the predictions in a folder: study id → image paths, context, reference, prediction.

    Paths are relative to the data's folder `root`. The reference's findings and impression are the sections of these
    names; without them the whole is its findings.
    """
    cases = {case["id"]: case for case in cohort.split("test")}
    names = [section_name(section) for section in cohort.sections]
    studies = {}
    for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        case = cases[row["id"]]
        parts = dict(zip(names, case["sections"], strict=True))
        impression = next((parts[name] for name in CONCLUSIONS if parts.get(name)), None)
        studies[row["id"]] = {
            "image_path": [_below(image["path"], root) for image in case["images"] or () if image["path"]],
            "context": case["context"],
            "report": row["reference"],
            "section_findings": parts.get("findings") if impression or "findings" in parts else row["reference"],
            "section_impression": impression,
            "split": "test",
            "model_prediction": row["report"],
        }
    replace_file(folder / "rexrank.json", json.dumps(studies, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _below(path: str, root: Path) -> str:
    file = Path(path)
    return str(file.relative_to(root) if file.is_relative_to(root) else file.name)


def _number(value: float, digits: int = 6) -> float | None:
    return round(float(value), digits) if np.isfinite(value) else None
