"""NIH ChestX-ray14 (Wang et al., 2017): 112,120 frontal radiographs, labels mined from reports, no reports."""

from pathlib import Path

import numpy as np

from vlm.config import DataConfig, TableConfig
from vlm.data.cohort import Cohort
from vlm.data.readers.layout import cohort_of, find_table, keep_images, read_columns, validation_of

LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
          "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax")  # fmt: skip
TABLE = TableConfig(images=".", image="image", id="id", patient="patient", split="split", labels=list(LABELS),
                    vitals=["age", "sex"])  # fmt: skip


def load_nih_cxr14(data: DataConfig) -> Cohort:
    """Read `Data_Entry_2017*.csv` and `images*/`; `test_list.txt`, where it is there, is the test split.

    Raises `UserError` if the table or a column of it is missing.
    """
    root = Path(data.root)
    path = find_table(root, "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv.gz")
    rows = read_columns(path, ("Image Index", "Finding Labels", "Patient ID", "Patient Age"))
    frame = rows[["Patient ID"]].set_axis(["patient"], axis=1)
    frame["id"] = rows["Image Index"]
    folders = {file.name: str(file.relative_to(root)) for file in root.glob("images*/**/*.png")}
    frame["image"] = rows["Image Index"].map(folders).fillna("")
    frame["age"] = rows["Patient Age"].str.rstrip("Yy").str.lstrip("0")
    frame["sex"] = rows["Patient Gender" if "Patient Gender" in rows else "Patient Sex"]
    found = rows["Finding Labels"].str.get_dummies("|")
    for name in LABELS:
        frame[name] = found[name].astype(str) if name in found else "0"
    test_list, columns = root / "test_list.txt", TABLE
    if test_list.is_file():
        test = frame["id"].isin(test_list.read_text(encoding="utf-8").split())
        frame["split"] = np.where(test, "test", validation_of(frame["patient"], data))
    else:
        columns = TableConfig(**{**vars(TABLE), "split": None})
    frame, lost = keep_images(frame, root, "images*/**/*")
    return cohort_of(frame, columns, data, path, {"without their image file": lost})
