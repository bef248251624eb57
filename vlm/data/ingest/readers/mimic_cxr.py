"""Read MIMIC-CXR-JPG (Johnson et al., 2019) with its reports and the vitals of MIMIC-IV-ED; credentialed access.

A study's vitals are the last ones charted at or before it within the emergency stay that it falls into. If none
were charted by then, the triage vitals are used. A study outside every stay has none.
"""

from pathlib import Path

import pandas as pd

from vlm.config import DataConfig, SectionConfig, TableConfig, VitalConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.readers.common import (
    CHEXPERT_LABELS,
    cohort_of,
    find_table,
    images_below,
    read_columns,
    read_times,
    refuse,
    report_parts,
    studies_of,
    uncertain,
)

VITALS = {"temperature": "temperature (°F)", "heartrate": "heart_rate", "resprate": "respiratory_rate", "o2sat": "spo2",
          "sbp": "systolic", "dbp": "diastolic"}  # fmt: skip
"""Column of MIMIC-IV-ED → vital; its temperatures are in °F."""
NAMES: list[VitalConfig | str] = ["temperature", "heart_rate", "respiratory_rate", "spo2", "systolic", "diastolic"]
TABLE = TableConfig(images=".", image="image", id="id", patient="patient", split="split", context="indication",
                    labels=list(CHEXPERT_LABELS), vitals=NAMES,
                    report=[SectionConfig("findings"), SectionConfig("impression")])  # fmt: skip
SPLITS = {"train": "train", "validate": "validation", "test": "test"}
STUDY = ["subject_id", "study_id"]


def load_mimic_cxr(data: DataConfig) -> Cohort:
    """Read the tables of MIMIC-CXR-JPG in `data.root`, `files/`, and `data.mimic_cxr.ed` with the ED tables.

    One case a study, with the first of its frontal images that is on disk, or with `data.studies` all of its images and
    those of the study before; its labels are unknown where the labeller's table does not have the study. Raises
    `UserError` if a table or a column is missing, and for a date or a label that cannot be read, with its row.
    """
    root = data.folder
    path = _table(root, "metadata")
    rows = read_columns(path, ("dicom_id", *STUDY, "ViewPosition", "StudyDate", "StudyTime"))
    frontal = rows["ViewPosition"].str.strip().isin(["PA", "AP"]) | data.studies
    left_out = {"of other than frontal views": int((~frontal).sum())}
    rows = rows[frontal]
    rows = rows.assign(split=rows["dicom_id"].map(_splits(_table(root, "split"))))
    left_out["absent from the table of the split"] = int(rows["split"].isna().sum())
    rows = rows[rows["split"].notna()]
    rows = rows.assign(folder="files/p" + rows["subject_id"].str[:2] + "/p" + rows["subject_id"] + "/s" +
                       rows["study_id"])  # fmt: skip
    rows = rows.assign(image=rows["folder"] + "/" + rows["dicom_id"] + ".jpg")
    there = rows["image"].isin(images_below(root, "files/**/*"))
    left_out["without their image file"] = int((~there).sum())
    further = rows[there].duplicated(STUDY) & (not data.studies)
    left_out["of a further image of the same study"] = int(further.sum())
    rows = rows[there][~further]

    frame = rows[["dicom_id", "subject_id", "split", "image"]].set_axis(["id", "patient", "split", "image"], axis=1)
    frame[list(CHEXPERT_LABELS)] = _labels(_table(root, data.mimic_cxr.labeller), rows, data)
    reports = Path(data.mimic_cxr.reports or root)
    parts = [_report(reports / f"{name}.txt") for name in rows["folder"]]
    for section in ("findings", "impression", "indication"):
        frame[section] = [found.get(section, "") for found in parts]
    vitals = _vitals(rows.drop_duplicates(STUDY), path, data.mimic_cxr.ed)  # of a study, once
    frame[list(VITALS.values())] = vitals.reindex(rows.index).fillna("").to_numpy()
    times = rows["StudyTime"].str.split(".").str[0].str.strip()
    frame = frame.assign(study=rows["study_id"], view=rows["ViewPosition"], time=rows["StudyDate"].str.strip() +
                         ("T" + times.str.zfill(6)).where(times != "", ""))  # fmt: skip
    read = [path, *(_table(root, name) for name in ("split", data.mimic_cxr.labeller))]
    read += _ed_tables(data.mimic_cxr.ed) if data.mimic_cxr.ed is not None else []
    table = studies_of(TABLE, time="time") if data.studies else TABLE
    return cohort_of([(path, frame)], table, data, path, left_out, read)


def _table(root: Path, name: str) -> Path:
    return find_table(root, f"mimic-cxr-2.0.0-{name}.csv.gz", f"mimic-cxr-2.0.0-{name}.csv",
                      f"mimic-cxr-2.1.0-{name}.csv.gz", f"mimic-cxr-2.1.0-{name}.csv")  # fmt: skip


def _splits(path: Path) -> dict[str, str]:
    """Read the official split of each image."""
    rows = read_columns(path, ("dicom_id", "split"))
    refuse(rows["split"], ~rows["split"].isin(list(SPLITS)), path, f"none of {', '.join(SPLITS)}")
    return dict(zip(rows["dicom_id"], rows["split"].map(SPLITS), strict=True))


def _labels(path: Path, studies: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Read the labels, N × 13 of `1`, `0` and empty; a study missing from the table is unknown, not negative."""
    rows = read_columns(path, (*STUDY, *CHEXPERT_LABELS))
    for name in CHEXPERT_LABELS:
        rows[name] = uncertain(rows[name], path, data.chexpert.uncertain, data.chexpert.blank)
    known = rows.drop_duplicates(STUDY).set_index(STUDY)[list(CHEXPERT_LABELS)]
    return known.reindex(pd.MultiIndex.from_frame(studies[STUDY])).fillna("").set_axis(studies.index)


def _report(file: Path) -> dict[str, str]:
    return report_parts(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else {}


def _ed_tables(ed: str) -> list[Path]:
    names = ("edstays", "triage", "vitalsign")
    return [find_table(Path(ed), f"{name}.csv.gz", f"{name}.csv", option="data.mimic_cxr.ed") for name in names]


def _vitals(studies: pd.DataFrame, path: Path, ed: str | None) -> pd.DataFrame:
    """Read the vitals, N × 6 texts, empty where nothing was charted."""
    nothing = pd.DataFrame("", index=studies.index, columns=list(VITALS))
    if ed is None:
        return nothing
    names = ("subject_id", "stay_id")
    stays_at, triage_at, charted_at = _ed_tables(ed)
    stays = read_columns(stays_at, (*names, "intime", "outtime"))
    triage = read_columns(triage_at, (*names, *VITALS))
    charted = read_columns(charted_at, (*names, "charttime", *VITALS))
    moment = "%Y-%m-%d %H:%M:%S"
    stays = stays.assign(**{name: read_times(stays[name], stays_at, moment) for name in ("intime", "outtime")})
    charted = charted.assign(charttime=read_times(charted["charttime"], charted_at, moment))
    written = studies["StudyDate"].str.strip() + studies["StudyTime"].str.split(".").str[0].str.strip().str.zfill(6)
    when = read_times(written.rename("StudyDate and StudyTime"), path, "%Y%m%d%H%M%S")

    at = pd.DataFrame({"subject_id": studies["subject_id"], "when": when, "row": studies.index}).dropna()
    within = at.merge(stays, on="subject_id")
    within = within[(within["intime"] <= within["when"]) & (within["when"] <= within["outtime"])]
    begun = within.merge(triage[["stay_id", *VITALS]], on="stay_id").assign(charttime=lambda f: f["intime"])
    later = within.merge(charted.drop(columns="subject_id"), on="stay_id")
    known = pd.concat([begun, later[later["charttime"] <= later["when"]]]).sort_values("charttime", kind="stable")
    known[list(VITALS)] = known[list(VITALS)].replace("", pd.NA)  # `last` skips NA
    last = known.groupby("row")[list(VITALS)].last().fillna("")
    nothing.loc[last.index] = last
    return nothing
