"""The public COVID-19 image data collection (Cohen et al., 2020, arXiv:2006.11988), in its own layout.

`root` holds `metadata.csv` and `images/`. Headers of the early and of the final table are read.
"""

import re
from pathlib import Path

import pandas as pd

from vlm.config import DataConfig, SectionConfig
from vlm.data.cohort import Cohort, build_dataset, doubt_warnings, image_cells, rows_to_columns
from vlm.data.ingest.read import read_table, reading_notes
from vlm.data.splits import assign_splits
from vlm.data.vitals.catalog import CATALOG
from vlm.data.vitals.schema import VitalsSchema
from vlm.errors import UserError

VITALS = [CATALOG[name] for name in ("age", "sex", "temperature", "spo2", "leukocytes", "neutrophils", "lymphocytes",
                                     "days_since_onset")]  # fmt: skip
COLUMNS = {
    "age": ("age",),
    "sex": ("sex",),
    "temperature": ("temperature",),
    "spo2": ("pO2_saturation", "pO2 saturation"),
    "leukocytes": ("leukocyte_count",),
    "neutrophils": ("neutrophil_count", "neutrophil count"),
    "lymphocytes": ("lymphocyte_count", "lymphocyte count"),
    "days_since_onset": ("offset",),
}
"""Vital → its header, in any version of the table."""
LABEL = "COVID-19"
UNLABELLED = frozenset({"", "todo", "unknown"})


def load_covid_cxr(data: DataConfig) -> Cohort:
    """Read the chest X-rays; label COVID-19 against every other finding, `todo` unlabelled.

    Raises `UserError` if `root` or a needed column is missing. Rows of another modality, and rows whose
    image is not in `images/`, are left out, and their number is among the warnings.
    """
    root = Path(data.root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set data.root to the collection's folder (metadata.csv, images/)")
    path = root / "metadata.csv"
    frame = read_table(path)
    for column in ("patientid", "finding", "filename", "clinical_notes", "modality"):
        if column not in frame.columns:
            raise UserError(f"{path}: no column {column}; is this the collection's metadata.csv?")
    frame, warnings = _usable_rows(frame, root)
    schema = VitalsSchema(tuple(VITALS))
    vitals_frame = pd.DataFrame({name: _column(frame, headers) for name, headers in COLUMNS.items()}, index=frame.index)
    vitals, _, doubts = rows_to_columns(vitals_frame, str(path), schema, schema.names, [])
    notes = [image_sentences(note) if data.covid_cxr.report == "image_sentences" else _clean(note)
             for note in frame["clinical_notes"]]  # fmt: skip
    patients = [str(patient).strip() for patient in frame["patientid"]]
    columns = {
        "id": list(frame["filename"]),
        "patient": patients,
        "split": assign_splits(patients, data.split),
        "image": image_cells(frame["filename"], root / "images", str(path)),
        "vitals": vitals,
        "labels": [[_label(finding)] for finding in frame["finding"]],
        "sections": [[note] for note in notes],
        "context": [""] * len(frame),
        "probability": [None] * len(frame),
    }
    sections = (SectionConfig("clinical_notes", ["image"]),)
    dataset = build_dataset(columns, schema, 1, len(sections))
    warnings = [*reading_notes(path), *warnings, *doubt_warnings(str(path), schema, doubts, dataset)]
    return Cohort(dataset, schema, (LABEL,), sections, warnings=tuple(warnings))


def _usable_rows(frame: pd.DataFrame, root: Path) -> tuple[pd.DataFrame, list[str]]:
    frontal = frame["modality"].str.strip().str.lower() == "x-ray"
    if "view" in frame:
        frontal &= ~frame["view"].str.strip().str.upper().isin(["L"])
    present = frame["filename"].map(lambda name: (root / "images" / name).is_file())
    keep = frontal & present
    counts = {"of another modality or a lateral view": ~frontal, "without their image file": frontal & ~present}
    warnings = [
        f"{root / 'metadata.csv'}: {mask.sum()} rows {reason} left out" for reason, mask in counts.items() if mask.any()
    ]
    if not keep.any():
        raise UserError(f"{root}: no chest X-ray of metadata.csv is in images/")
    return frame[keep].drop_duplicates("filename"), warnings


def _column(frame: pd.DataFrame, headers: tuple[str, ...]) -> pd.Series:
    for header in headers:
        if header in frame.columns:
            return frame[header]
    return pd.Series([""] * len(frame), index=frame.index)


def _label(finding: str) -> float:
    if finding.strip().lower() in UNLABELLED:
        return float("nan")
    return float("COVID-19" in finding)


# ------------------------------------------------------------------------------- sentences of a note

_SEES = re.compile(
    r"opaci|consolidat|infiltrat|ground[- ]?glass|interstitial|reticul|nodul|cavit|effusion|pneumothora|"
    r"pneumomediast|atelecta|collapse|air[- ]?space|bronchogram|white-?out|shadow|haz[ey]|silhouet|costophren|"
    r"hemidiaphragm|diaphragm|cardiomediast|cardiac (?:border|contour|silhouette)|heart (?:size|border|is|was)|"
    r"hil(?:ar|um|a)\b|"
    r"\bzones?\b|lung fields?|\blungs\b|(?:right|left) lung|radiograph|radiolog|x-?ray|\bcxr\b|chest film|"
    r"\bett\b|et tube|endotracheal|\bngt?\b|nasogastric|jugular|\bcvc\b|catheter|"
    r"intercostal drain|pleural|fissure|lobe|perihilar|resolution|regression|improvement",
    re.IGNORECASE,
)
"""Words of what a picture shows."""
_OTHER_IMAGE = re.compile(
    r"\bCT\b|\bHRCT\b|tomograph|ultrasound|biops|histolog|\bMRI\b|bronchoscop|lavage|\bPCR\b|culture", re.IGNORECASE
)
_XRAY = re.compile(r"radiograph|x-?ray|\bcxr\b|chest film", re.IGNORECASE)
_HEADING = re.compile(r"\b(Presentation|Imaging (?:Notes|Findings)|(?:Case )?Discussion)\s*:\s*", re.IGNORECASE)


def image_sentences(note: str) -> str:
    """The sentences of a clinical note that speak of the radiograph; most of a note is history.

    A sentence stays if it names what a picture shows and does not speak of another examination alone. A part
    headed Discussion is left out whole, and one headed Presentation where another is headed Imaging.
    """
    kept = []
    parts = _parts(_clean(note))
    headed = any(heading.startswith("imaging") for heading, _ in parts)
    for heading, text in parts:
        if "discussion" in heading or (heading == "presentation" and headed):
            continue
        for sentence in re.split(r"(?<=[.!?])\s+", text):
            sentence = sentence.strip(" .;")
            if _SEES.search(sentence) and (_XRAY.search(sentence) or not _OTHER_IMAGE.search(sentence)):
                kept.append(sentence + ".")
    return " ".join(kept)


def _parts(note: str) -> list[tuple[str, str]]:
    """(heading, text) of each headed part; the text before the first heading has none."""
    pieces = _HEADING.split(note)
    return [("", pieces[0]), *zip((p.lower() for p in pieces[1::2]), pieces[2::2], strict=True)]


def _clean(note: str) -> str:
    """One line, single spaces, no doubled full stops."""
    return re.sub(r"(\s*\.)+", ".", " ".join(str(note).split())).strip()
