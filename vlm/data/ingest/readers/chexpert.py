"""Read CheXpert (Irvin et al., 2019): 224,316 radiographs with labels that may be uncertain, age and sex."""

from pathlib import Path

import numpy as np
import pandas as pd

from vlm.config import DataConfig, TableConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.readers.common import (
    CHEXPERT_LABELS,
    cohort_of,
    find_table,
    images_below,
    read_columns,
    studies_of,
    uncertain,
    validation_of,
)

TABLE = TableConfig(images=".", image="image", id="id", patient="patient", split="split", labels=list(CHEXPERT_LABELS),
                    vitals=["age", "sex"])  # fmt: skip


def load_chexpert(data: DataConfig) -> Cohort:
    """Read `train.csv` and `valid.csv`; the official validation set is the test split. Frontal views only, or with
    `data.studies` all views of a study and those of the patient's study before, in the order of their numbers.

    Raises `UserError` if a table or a column of it is missing, and for a cell that is no label, with its row.
    """
    root = data.folder
    find_table(root, "train.csv")
    there = images_below(root)
    parts, lateral, lost = [], 0, 0
    for path in (root / "train.csv", root / "valid.csv"):
        if path.is_file():
            frame, views = _read(path, data)
            lateral += views
            lost += int((~frame["image"].isin(there)).sum())
            parts.append((path, frame[frame["image"].isin(there)]))
    left_out = {"of lateral views": lateral, "without their image file": lost}
    table = studies_of(TABLE, order="order") if data.studies else TABLE
    return cohort_of(parts, table, data, root, left_out, [path for path, _ in parts])


def _read(path: Path, data: DataConfig) -> tuple[pd.DataFrame, int]:
    """Read the wanted rows of one table; return them and the number of other rows."""
    rows = read_columns(path, ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS))
    side = rows["Frontal/Lateral"].str.strip().str.lower()
    wanted = (side == "frontal") | data.studies
    # Paths in the table begin with the collection's original folder name, which may differ here.
    image = rows["Path"].str.replace(r"^CheXpert-v1\.0[^/]*/", "", regex=True)
    frame = pd.DataFrame({"id": image, "image": image, "age": rows["Age"].replace("0", ""), "sex": rows["Sex"]})
    frame["sex"] = frame["sex"].where(frame["sex"].isin(["Male", "Female"]), "")
    frame["patient"] = image.str.extract(r"(patient\d+)", expand=False).fillna("")
    test = path.name == "valid.csv"
    frame["split"] = np.where(test, "test", validation_of(frame["patient"], data))
    for name in CHEXPERT_LABELS:
        frame[name] = uncertain(rows[name], path, data.chexpert.uncertain, data.chexpert.blank)
    place = image.str.extract(r"(?P<study>.*patient\d+/study(?P<order>\d+))", expand=True).fillna("")
    view = side.where((side != "frontal") | (rows["AP/PA"].str.strip() == ""), rows["AP/PA"])
    frame = frame.assign(study=place["study"], order=place["order"], view=view)
    return frame[wanted], int((~wanted).sum())
