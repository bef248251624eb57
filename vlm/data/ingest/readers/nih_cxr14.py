"""Read NIH ChestX-ray14 (Wang et al., 2017): 112,120 frontal radiographs, labels mined from reports, no reports."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from vlm.config import DataConfig, TableConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.readers.common import cohort_of, find_table, images_below, read_columns, refuse, validation_of
from vlm.errors import UserError

LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
          "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax")  # fmt: skip
TABLE = TableConfig(images=".", image="image", id="id", patient="patient", split="split", labels=list(LABELS),
                    vitals=["age", "sex"])  # fmt: skip
NOTHING = "No Finding"
AGE = r"^0*(\d+)\s*([YMD]?)$"
"""Format of an age: `58`, or `058Y`, `013M`, `001D` in the first release."""


def load_nih_cxr14(data: DataConfig) -> Cohort:
    """Read `Data_Entry_2017*.csv` and `images*/`; `test_list.txt`, if it exists, is the test split.

    With `train_val_list.txt` as well, an image in neither list is left out. Raises `UserError` if the table or a
    column of it is missing, and for a finding that the collection does not have, with its row.
    """
    root = data.folder
    path = find_table(root, "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv.gz")
    rows = read_columns(path, ("Image Index", "Finding Labels", "Patient ID", "Patient Age"))
    sexes = [name for name in ("Patient Gender", "Patient Sex") if name in rows]
    if not sexes:
        raise UserError(f"{path}: no column Patient Gender or Patient Sex; is this the collection's own table?")
    frame = pd.DataFrame({"id": rows["Image Index"], "patient": rows["Patient ID"], "sex": rows[sexes[0]]})
    folders = {name.rsplit("/", 1)[-1]: name for name in images_below(root, "images*/**/*")}
    frame["image"] = frame["id"].map(folders).fillna("")
    units = {"": "years", "Y": "years", "M": "months", "D": "days"}
    frame["age"] = rows["Patient Age"].str.replace(AGE, lambda m: f"{m[1]} {units[m[2]]}", regex=True)
    frame[list(LABELS)] = _labels(rows["Finding Labels"], path)
    tests, others = (_listed(root / name) for name in ("test_list.txt", "train_val_list.txt"))
    table, unlisted = replace(TABLE, split=None), pd.Series(False, index=frame.index)
    if tests:
        test = frame["id"].isin(tests)
        frame["split"] = np.where(test, "test", validation_of(frame["patient"], data))
        table, unlisted = TABLE, ~test & ~frame["id"].isin(others) if others else unlisted
    lost = (frame["image"] == "") & ~unlisted
    left_out = {"in none of the lists of the split": int(unlisted.sum()), "without their image file": int(lost.sum())}
    return cohort_of([(path, frame[~unlisted & ~lost])], table, data, path, left_out, [path])


def _listed(file: Path) -> set[str]:
    return set(file.read_text(encoding="utf-8", errors="replace").split()) if file.is_file() else set()


def _labels(cells: pd.Series, path: Path) -> pd.DataFrame:
    """Convert findings to labels, N × 14: `1` for each named finding, `0` for the others, empty if the cell is."""
    found = cells.str.get_dummies("|").rename(columns=str.strip)
    strange = [name for name in found if name not in (*LABELS, NOTHING, "")]
    if strange:
        refuse(cells, found[strange[0]] == 1, path, f"not of this collection: {strange[0]} is none of its findings")
    named = pd.DataFrame({name: found.get(name, 0) for name in LABELS}, index=cells.index).astype(str)
    return named.mask(cells.str.strip() == "", "")
