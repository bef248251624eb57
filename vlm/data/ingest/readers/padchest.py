"""Read PadChest (Bustos et al., 2020): radiographs of one hospital with Spanish reports, findings and dates."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from vlm.config import DataConfig, SectionConfig, TableConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.readers.common import as_cases, cohort_of, find_table, images_below, read_columns
from vlm.errors import UserError

TABLE = TableConfig(images=".", image="image", patient="patient", vitals=["age", "sex"],
                    report=[SectionConfig("report")])  # fmt: skip
NAMES = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19"
COLUMNS = ("ImageID", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM", "StudyDate_DICOM", "Projection",
           "Report", "Labels")  # fmt: skip
NO_FINDINGS = frozenset({"", "normal", "exclude", "unchanged", "suboptimal study"})
FREQUENT = 0.01
"""Smallest share of images with a finding for it to be a label, unless `data.table.labels` names it."""


def load_padchest(data: DataConfig) -> Cohort:
    """Read the table of labels and the images below `data.root`, in any folder.

    One case a study: its first frontal image, or with `data.studies` all of them and those of the patient's study
    before. Rows whose projection is EXCLUDE or of the ribs are left out. Raises `UserError` if the table, a column or
    a label of it is missing.
    """
    root = data.folder
    path = find_table(root, f"{NAMES}.csv.gz", f"{NAMES}.csv", "PADCHEST.csv")
    rows = read_columns(path, COLUMNS)
    there = {Path(name).name: name for name in images_below(root)}
    chest = ~rows["Projection"].str.strip().str.upper().isin(["EXCLUDE", "COSTAL"])
    image = rows["ImageID"].map(there).fillna("")
    left_out = {"of other than chest views": int((~chest).sum()),
                "without their image file": int((chest & (image == "")).sum())}  # fmt: skip
    born, taken = (pd.to_numeric(rows[name].str[:4], errors="coerce") for name in ("PatientBirth", "StudyDate_DICOM"))
    frame = pd.DataFrame({
        "image": image,
        "study": rows["StudyID"],
        "patient": rows["PatientID"],
        "time": rows["StudyDate_DICOM"],
        "view": rows["Projection"].str.strip().replace("L", "lateral"),
        "report": rows["Report"],
        "age": (taken - born).map(lambda years: f"{years:.0f}" if years >= 0 else ""),
        "sex": rows["PatientSex_DICOM"].where(rows["PatientSex_DICOM"].isin(["M", "F"]), ""),
    })[chest & (image != "")]  # fmt: skip
    found = rows["Labels"][frame.index].map(lambda cell: {name.strip() for name in re.findall(r"'([^']*)'", cell)})
    counts = found.explode().value_counts()
    frequent = sorted(str(name) for name in counts.index[counts >= FREQUENT * len(frame)])
    labels = data.table.labels or [name for name in frequent if name not in NO_FINDINGS]
    for name in labels:
        if name not in counts:
            raise UserError(f"data.table.labels: {name} is none of the labels of {path}")
        frame[name] = [str(int(name in some)) if some else "" for some in found]
    frame, table = as_cases(frame, replace(TABLE, labels=labels), data, left_out)
    return cohort_of([(path, frame)], table, data, path, left_out, [path])
