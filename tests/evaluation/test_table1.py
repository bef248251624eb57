"""table1.csv: what was given, known, estimated and drafted of every test case; no cell that a spreadsheet computes."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vlm.config import Config
from vlm.data.dataset import CaseDataset
from vlm.data.ingest.sources import load_cohort
from vlm.evaluation.ablation import ArmResult
from vlm.evaluation.figures import correlated_columns
from vlm.evaluation.predictions import write_predictions, write_table1
from vlm.evaluation.scoring import CaseScores
from vlm.plain import spreadsheet_cell


@pytest.fixture
def cases(tiny_model, tiny_config: Config) -> CaseDataset:
    cohort = load_cohort(tiny_config.data)
    return CaseDataset(cohort.dataset, tiny_model.spec, cohort.sections)


def rows_of(cases: CaseDataset, drafts: list[str], folder: Path) -> list[dict]:
    count = len(cases)
    targets = np.array(cases.rows["labels"], dtype=np.float64)
    scores = CaseScores(np.zeros((count, 2)), targets, np.zeros(count), np.ones(count))
    probabilities = np.linspace(0, 1, 2 * count).reshape(count, 2)
    given = ArmResult(drafts, scores.logits, scores.losses)
    return write_predictions(folder, cases, scores, given, drafts, probabilities, np.full(count, np.nan))


def test_a_row_holds_what_was_given_known_and_drafted(cases: CaseDataset, tmp_path: Path) -> None:
    drafts = [f'No opacity, "clear" in {number}.\nGlucose normal; größer.' for number in range(len(cases))]
    rows = rows_of(cases, drafts, tmp_path)
    seen = [bool(images) for images in cases.rows["images"]]
    write_table1(tmp_path, cases, rows, seen)
    table = pd.read_csv(tmp_path / "table1.csv")
    vitals = ["glucose [mmol/L]", "systolic [mmHg]", "diastolic [mmHg]", "sex"]
    of_labels = ["pathology", "pathology probability", "effusion", "effusion probability"]
    assert list(table) == ["case", "image", *vitals, *of_labels, "draft"]
    assert len(table) == 24 and list(table["draft"]) == drafts and list(table["case"]) == [row["id"] for row in rows]
    assert list(table["image"] == "given") == seen and not all(seen)
    given = np.array(cases.rows["vitals"], dtype=np.float64)
    np.testing.assert_allclose(table[vitals[:3]], given[:, :3], atol=1e-4)
    np.testing.assert_array_equal(table[["pathology", "effusion"]], np.array(cases.rows["labels"], dtype=np.float64))
    np.testing.assert_allclose(table["effusion probability"], [row["probabilities"]["effusion"] for row in rows])
    write_table1(tmp_path, replace(cases, withhold=("vitals",)), rows, seen)
    assert pd.read_csv(tmp_path / "table1.csv")["systolic [mmHg]"].isna().all(), "withheld: the model was not given it"


ATTACKS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    " =1",
    "\r\n=1",
    "＝1",
    "Clear.\n=cmd|' /C calc'!A0",
    "Clear; =1",
    ";@x",
]


def test_no_cell_is_computed_by_a_spreadsheet(cases: CaseDataset, tmp_path: Path) -> None:
    """Also where a semicolon ends a cell, as in many locales."""
    cases = replace(cases, rows=cases.rows.select(range(len(ATTACKS))))
    rows = [row | {"id": attack} for row, attack in zip(rows_of(cases, ATTACKS, tmp_path), ATTACKS, strict=True)]
    write_table1(tmp_path, cases, rows, [True] * len(rows))
    text = (tmp_path / "table1.csv").read_text(encoding="utf-8-sig")
    for separator in ",;\t":
        for row in csv.reader(text.splitlines(), delimiter=separator):
            assert not [cell for cell in row if cell.strip().strip('"').strip().startswith(tuple("=+-@＝＋－＠"))]
    assert spreadsheet_cell("No opacity in either lung: 3 - 4 cm = small.") == (
        "No opacity in either lung: 3 - 4 cm = small."
    )
    assert spreadsheet_cell("=1") == "'=1"


def test_the_model_s_probability_stands_beside_the_known_label(tiny_config: Config) -> None:
    """In the matrix of Figure 1: in the rows of the cases tested, and nowhere else."""
    from vlm.data.storage import hashes

    cohort = load_cohort(tiny_config.data)
    test = cohort.split("test")
    probabilities = np.arange(2 * len(test), dtype=np.float64).reshape(-1, 2)
    columns = correlated_columns(cohort, hashes(test, "id"), probabilities)
    assert list(columns) == ["glucose", "systolic", "diastolic", "sex", "pathology, known", "pathology, model",
                             "effusion, known", "effusion, model"]  # fmt: skip
    for row, name in enumerate(cohort.dataset["id"]):
        tested = list(test["id"]).index(name) if name in list(test["id"]) else None
        found = columns["effusion, model"][row]
        assert np.isnan(found) if tested is None else found == probabilities[tested, 1]
    np.testing.assert_array_equal(columns["effusion, known"], [labels[1] for labels in cohort.dataset["labels"]])
