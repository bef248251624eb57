"""MIMIC-CXR-JPG (Johnson et al., 2019) with its reports and the vitals of MIMIC-IV-ED; credentialed access.

A study's vitals are the last ones charted at or before it within the emergency stay that it falls into; where none
were charted by then, those of triage. A study outside every stay has none.
"""

from pathlib import Path

import pandas as pd

from vlm.config import DataConfig, SectionConfig, TableConfig, VitalConfig
from vlm.data.cohort import Cohort
from vlm.data.readers.layout import (
    CHEXPERT_LABELS,
    cohort_of,
    find_table,
    keep_images,
    read_columns,
    report_parts,
    uncertain,
)
from vlm.errors import UserError

VITALS = {"temperature": "temperature (°F)", "heartrate": "heart_rate", "resprate": "respiratory_rate", "o2sat": "spo2",
          "sbp": "systolic", "dbp": "diastolic"}  # fmt: skip
"""Column of MIMIC-IV-ED → ours; its temperatures are in °F."""
NAMES: list[VitalConfig | str] = ["temperature", "heart_rate", "respiratory_rate", "spo2", "systolic", "diastolic"]
TABLE = TableConfig(images=".", image="image", id="id", patient="patient", split="split", context="indication",
                    labels=list(CHEXPERT_LABELS), vitals=NAMES,
                    report=[SectionConfig("findings"), SectionConfig("impression")])  # fmt: skip
SPLITS = {"train": "train", "validate": "validation", "test": "test"}


def load_mimic_cxr(data: DataConfig) -> Cohort:
    """Read the tables of MIMIC-CXR-JPG in `data.root`, `files/`, and `data.mimic_cxr.ed` with the ED tables.

    One case a study, with its first frontal image. Raises `UserError` if a table or a column is missing.
    """
    root = Path(data.root)
    path = _table(root, "metadata")
    images = read_columns(path, ("dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"))
    frontal = images["ViewPosition"].str.strip().isin(["PA", "AP"])
    lateral = int((~frontal).sum())
    study = ["subject_id", "study_id"]
    rows = images[frontal].drop_duplicates(study).reset_index(drop=True)
    more = int(frontal.sum()) - len(rows)
    split = read_columns(_table(root, "split"), ("dicom_id", "split"))
    labels = read_columns(_table(root, "chexpert"), (*study, *CHEXPERT_LABELS))
    rows = rows.merge(split[["dicom_id", "split"]], on="dicom_id", how="left").merge(labels, on=study, how="left")
    folder = "files/p" + rows["subject_id"].str[:2] + "/p" + rows["subject_id"] + "/s" + rows["study_id"]
    frame = pd.DataFrame({"id": rows["dicom_id"], "patient": rows["subject_id"], "split": rows["split"].map(SPLITS)})
    frame["image"] = folder + "/" + rows["dicom_id"] + ".jpg"
    for name in CHEXPERT_LABELS:
        frame[name] = uncertain(rows[name].fillna(""), data.chexpert.uncertain, data.chexpert.blank)
    reports = Path(data.mimic_cxr.reports or root)
    parts = [_report(reports / f"{name}.txt") for name in folder]
    for section in ("findings", "impression", "indication"):
        frame[section] = [found.get(section, "") for found in parts]
    frame[list(VITALS.values())] = _vitals(rows, data.mimic_cxr.ed).to_numpy()
    frame, lost = keep_images(frame, root, "files/**/*")
    return cohort_of(frame, TABLE, data, path, {
        "of other than frontal views": lateral, "of a further image of the same study": more,
        "without their image file": lost,
    })  # fmt: skip


def _table(root: Path, name: str) -> Path:
    return find_table(root, f"mimic-cxr-2.0.0-{name}.csv.gz", f"mimic-cxr-2.0.0-{name}.csv",
                      f"mimic-cxr-2.1.0-{name}.csv.gz", f"mimic-cxr-2.1.0-{name}.csv")  # fmt: skip


def _report(file: Path) -> dict[str, str]:
    return report_parts(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else {}


def _vitals(studies: pd.DataFrame, ed: str | None) -> pd.DataFrame:
    """N × 6 texts, empty where nothing was charted."""
    nothing = pd.DataFrame("", index=studies.index, columns=list(VITALS))
    if ed is None:
        return nothing
    folder = Path(ed)
    names = ("subject_id", "stay_id")
    stays = read_columns(find_table(folder, "edstays.csv.gz", "edstays.csv"), (*names, "intime", "outtime"))
    triage = read_columns(find_table(folder, "triage.csv.gz", "triage.csv"), (*names, *VITALS))
    charted = read_columns(find_table(folder, "vitalsign.csv.gz", "vitalsign.csv"), (*names, "charttime", *VITALS))
    when = pd.to_datetime(studies["StudyDate"] + studies["StudyTime"].str.split(".").str[0].str.zfill(6),
                          format="%Y%m%d%H%M%S", errors="coerce")  # fmt: skip
    if when.isna().all():
        raise UserError(f"{folder}: no study has a readable StudyDate and StudyTime")
    at = pd.DataFrame({"subject_id": studies["subject_id"], "when": when, "row": studies.index}).dropna()
    stays = stays.assign(intime=pd.to_datetime(stays["intime"]), outtime=pd.to_datetime(stays["outtime"]))
    within = at.merge(stays, on="subject_id")
    within = within[(within["intime"] <= within["when"]) & (within["when"] <= within["outtime"])]
    begun = within.merge(triage[["stay_id", *VITALS]], on="stay_id").assign(charttime=lambda f: f["intime"])
    later = within.merge(charted.assign(charttime=pd.to_datetime(charted["charttime"])).drop(columns="subject_id"),
                         on="stay_id")  # fmt: skip
    known = pd.concat([begun, later[later["charttime"] <= later["when"]]]).sort_values("charttime", kind="stable")
    known[list(VITALS)] = known[list(VITALS)].replace("", pd.NA)  # `last` passes over what was not measured then
    last = known.groupby("row")[list(VITALS)].last().fillna("")
    nothing.loc[last.index] = last
    return nothing
