"""A user's own table: what is read, and what each mistake says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.cells import first_image
from tests.conftest import table_config
from vlm.config import DataConfig, SectionConfig, SplitConfig, VitalConfig
from vlm.data.ingest.table import load_table
from vlm.data.splits import assign_splits
from vlm.errors import UserError


def test_a_table_is_read_as_declared(table_root: Path) -> None:
    cohort = load_table(table_config(table_root))
    row = cohort.dataset[1]
    assert row["id"] == "c1" and row["patient"] == "p1" and first_image(row)["path"].endswith("1.png")
    assert row["vitals"][1:] == [121, 71, 0] and row["labels"] == [1, 0]
    assert cohort.dataset[5]["images"] == [] and np.isnan(cohort.dataset[3]["labels"][0])
    assert cohort.labels == ("pathology", "effusion")


def test_parquet_gives_the_same_cases(table_root: Path, tmp_path: Path) -> None:
    data = table_config(table_root)
    pd.read_csv(table_root / "cases.csv", dtype=str).to_parquet(table_root / "cases.parquet")
    parquet = replace(data, table=replace(data.table, file="cases.parquet"))
    assert load_table(parquet).dataset.to_dict().__repr__() == load_table(data).dataset.to_dict().__repr__()


def test_a_table_without_images_labels_or_report_is_still_a_table(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("age\n50\n60\n")
    data = DataConfig(source="table", root=str(tmp_path))
    cohort = load_table(replace(data, table=replace(data.table, image=None, vitals=[VitalConfig("age")])))
    assert (
        cohort.dataset["id"] == ["row-2", "row-3"]
        and cohort.dataset[0]["labels"] == []
        and cohort.dataset[0]["images"] == []
    )


def test_a_patient_is_in_one_split_whatever_is_added() -> None:
    patients = [f"p{number // 2}" for number in range(2000)]
    splits = assign_splits(patients, SplitConfig(0.1, 0.2))
    assert all(
        len({s for p, s in zip(patients, splits, strict=True) if p == name}) == 1 for name in set(patients[:200])
    )
    assert assign_splits(patients[::-1], SplitConfig(0.1, 0.2)) == splits[::-1]
    assert abs(splits.count("test") / 2000 - 0.2) < 0.03 and abs(splits.count("validation") / 2000 - 0.1) < 0.03
    assert assign_splits(patients, SplitConfig(0.1, 0.2, seed=1)) != splits


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("glucose,", "sugar,"), "no column for the vital glucose"),
        (lambda text: text.replace("findings", "notes"), "no column findings; the table has"),
        (lambda text: text.replace("121/71", "71-121"), "row 3: blood_pressure: '71-121' is no blood pressure"),
        (lambda text: text.replace("0.png", "zero.png", 1), "row 2: no image file"),
        (lambda text: text.replace("0.png", "../../0.png", 1), "row 2: image '../../0.png' leads outside"),
        (lambda text: text.replace("c1,", "c0,"), "two rows have the id 'c0'"),
        (lambda text: text.replace(",p1,", ",p0,").replace("c4,p4", "c4,p0"), "patients are in two splits"),
        (lambda text: text.replace("c0,p0,", "c0,,"), "row 2: patient is empty"),
        (lambda text: text.splitlines()[0] + "\n", "the table has no rows"),
        (lambda text: text.replace(",train", ",learn", 1), "row 2: split 'learn' is none of"),
        (lambda text: text.replace(",0,0,No", ",2,0,No", 1), "row 2: pathology: '2' is no label"),
    ],
)
def test_a_mistake_names_file_row_and_column(edit, message: str, table_root: Path, tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to(table_root / "images")
    (tmp_path / "cases.csv").write_text(edit((table_root / "cases.csv").read_text()))
    with pytest.raises(UserError) as error:
        load_table(table_config(tmp_path))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "none.csv"}, "none.csv: no such table; set data.root and data.table.file"),
        ({"file": "cases.xls"}, "cases.xls: a table is .csv, .tsv or .parquet"),
        ({"report": [SectionConfig("findings", ["glukose"])]}, "unknown vital glukose; did you mean glucose?"),
    ],
)
def test_a_wrong_description_says_so(change: dict, message: str, table_root: Path) -> None:
    (table_root / "cases.xls").touch()
    data = table_config(table_root)
    with pytest.raises(UserError) as error:
        load_table(replace(data, table=replace(data.table, **change)))
    assert message in str(error.value)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such folder; set data\.root"):
        load_table(table_config(tmp_path / "nowhere"))
