"""CheXpert (Irvin et al., 2019): 224,316 radiographs with labels that may be uncertain, age and sex."""

from pathlib import Path

import numpy as np
import pandas as pd

from vlm.config import DataConfig, TableConfig
from vlm.data.cohort import Cohort
from vlm.data.readers.layout import (
    CHEXPERT_LABELS,
    cohort_of,
    find_table,
    keep_images,
    read_columns,
    uncertain,
    validation_of,
)

TABLE = TableConfig(images=".", image="image", id="id", patient="patient", split="split", labels=list(CHEXPERT_LABELS),
                    vitals=["age", "sex"])  # fmt: skip


def load_chexpert(data: DataConfig) -> Cohort:
    """Read `train.csv` and `valid.csv`; the official validation set is the test split. Frontal views only.

    Raises `UserError` if a table or a column of it is missing.
    """
    root = Path(data.root)
    path = find_table(root, "train.csv")
    needed = ("Path", "Sex", "Age", "Frontal/Lateral", *CHEXPERT_LABELS)
    parts = [read_columns(root / name, needed).assign(official=name)
             for name in ("train.csv", "valid.csv") if (root / name).is_file()]  # fmt: skip
    rows = pd.concat(parts, ignore_index=True)
    frontal = rows["Frontal/Lateral"].str.strip().str.lower() == "frontal"
    lateral = int((~frontal).sum())
    rows = rows[frontal].reset_index(drop=True)
    # The table's paths begin with the name of the collection's folder, whatever it is called here.
    image = rows["Path"].str.replace(r"^CheXpert-v1\.0[^/]*/", "", regex=True)
    frame = pd.DataFrame({"id": image, "image": image, "age": rows["Age"].replace("0", ""), "sex": rows["Sex"]})
    frame["sex"] = frame["sex"].where(frame["sex"].isin(["Male", "Female"]), "")
    frame["patient"] = image.str.extract(r"(patient\d+)", expand=False).fillna("")
    test = rows["official"] == "valid.csv"
    frame["split"] = np.where(test, "test", validation_of(frame["patient"], data))
    for name in CHEXPERT_LABELS:
        frame[name] = uncertain(rows[name], data.chexpert.uncertain, data.chexpert.blank)
    frame, lost = keep_images(frame, root)
    return cohort_of(frame, TABLE, data, path, {"of lateral views": lateral, "without their image file": lost})
