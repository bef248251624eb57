"""Read CheXpert Plus (Chambon et al., 2024): CheXpert with the sections of its reports."""

import numpy as np
import pandas as pd

from vlm.config import DataConfig, SectionConfig, TableConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.readers.common import (
    as_cases,
    cohort_of,
    find_table,
    images_by_stem,
    read_columns,
    validation_of,
)

TABLE = TableConfig(images=".", image="image", patient="patient", split="split", context="context",
                    vitals=["age", "sex"], report=[SectionConfig("findings"), SectionConfig("impression")])  # fmt: skip
CONTEXT = ("section_clinical_history", "section_history", "section_narrative")
"""Sections that say why the image was taken; the first with words is shown in the prompt."""


def load_chexpert_plus(data: DataConfig) -> Cohort:
    """Read `df_chexpert_plus_240401.csv`, and the images beside it or in `PNG/`; its `valid` is the test split.

    One case a study: its first frontal image, or with `data.studies` all of them and those of the patient's report
    before, whose days are not known. Raises `UserError` if the table or a column of it is missing.
    """
    root = data.folder
    path = find_table(root, "df_chexpert_plus_240401.csv", "df_chexpert_plus_240401.csv.gz")
    rows = read_columns(path, ("path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "section_findings",
                               "patient_report_date_order", "section_impression", "split"))  # fmt: skip
    there = images_by_stem(root)
    stems = rows["path_to_image"].str.rpartition(".")[0]
    image = stems.map(there).fillna(("PNG/" + stems).map(there)).fillna("")
    side = rows["frontal_lateral"].str.strip().str.lower()
    frame = pd.DataFrame({
        "image": image,
        "study": stems.str.rpartition("/")[0],
        "patient": rows["deid_patient_id"],
        "order": rows["patient_report_date_order"],
        "view": side.where((side != "frontal") | (rows["ap_pa"].str.strip() == ""), rows["ap_pa"]),
        "split": np.where(rows["split"].str.strip() == "valid", "test", validation_of(rows["deid_patient_id"], data)),
        "context": _first(rows, CONTEXT),
        "findings": rows["section_findings"],
        "impression": rows["section_impression"],
        "age": _first(rows, ("age",)),
        "sex": _first(rows, ("sex",)).where(lambda sex: sex.isin(["Male", "Female"]), ""),
    })  # fmt: skip
    left_out = {"without their image file": int((image == "").sum())}
    frame, table = as_cases(frame[image != ""], TABLE, data, left_out)
    return cohort_of([(path, frame)], table, data, path, left_out, [path])


def _first(rows: pd.DataFrame, names: tuple[str, ...]) -> pd.Series:
    """Take the first of several columns that is not empty."""
    found = pd.Series("", index=rows.index)
    for name in names:
        found = found.where(found != "", rows[name].str.strip()) if name in rows else found
    return found
