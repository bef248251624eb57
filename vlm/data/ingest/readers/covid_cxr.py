"""Read the public COVID-19 image data collection (Cohen et al., 2020, arXiv:2006.11988), in its own layout.

`root` holds `metadata.csv` and `images/`. Headers of the early and of the final table are read.
"""

import re
from dataclasses import replace

import pandas as pd

from vlm.config import DataConfig, SectionConfig, TableConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.readers.common import cohort_of, find_table, images_below, read_columns, studies_of

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
TABLE = TableConfig(images="images", image="filename", id="filename", patient="patientid", labels=[LABEL],
                    vitals=list(COLUMNS), report=[SectionConfig("clinical_notes", ["image"])])  # fmt: skip
UNLABELLED = frozenset({"", "todo", "unknown"})


def load_covid_cxr(data: DataConfig) -> Cohort:
    """Read the chest X-rays; label COVID-19 against every other finding, `todo` unlabelled.

    Raises `UserError` if `root` or a needed column is missing. Rows of another modality, and rows whose
    image is not in `images/`, are left out, and their number is among the warnings. With `data.studies` laterals are
    read too, rows of a patient that agree in day, note and values are one study, and earlier days become priors.
    """
    path = find_table(data.folder, "metadata.csv")
    rows = read_columns(path, ("patientid", "finding", "filename", "clinical_notes", "modality"))
    frontal = rows["modality"].str.strip().str.lower() == "x-ray"
    if "view" in rows and not data.studies:
        frontal &= rows["view"].str.strip().str.upper() != "L"
    present = rows["filename"].isin(images_below(path.parent / "images"))
    left_out = {"of another modality or a lateral view": int((~frontal).sum()),
                "without their image file": int((frontal & ~present).sum())}  # fmt: skip
    rows = rows[frontal & present].drop_duplicates("filename")
    frame = rows[["filename", "patientid"]].assign(**{name: _column(rows, names) for name, names in COLUMNS.items()})
    found = rows["finding"]
    frame[LABEL] = ["" if text.strip().lower() in UNLABELLED else str(int(LABEL in text)) for text in found]
    read = image_sentences if data.covid_cxr.report == "image_sentences" else _clean
    frame["clinical_notes"] = [read(note) for note in rows["clinical_notes"]]
    table = TABLE
    if data.studies:
        frame, table = _studies(frame, rows), replace(studies_of(TABLE, time="time"), time_unit="d")
    return cohort_of([(path, frame)], table, data, path, left_out, [path])


def _studies(frame: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Add the study, view and day of each image; without a day an image is a study of its own."""
    day = pd.to_numeric(frame["days_since_onset"].str.strip(), errors="coerce")
    same = frame.drop(columns="filename").assign(one=frame["filename"].where(day.isna(), ""))
    first = frame["filename"].groupby([same[name] for name in same]).transform("first")
    view = _column(rows, ("view",)).str.strip().replace("L", "lateral")
    return frame.assign(study=first, view=view, time=day.map(str).where(day.notna(), ""))


def _column(frame: pd.DataFrame, headers: tuple[str, ...]) -> pd.Series:
    return next((frame[header] for header in headers if header in frame), pd.Series("", index=frame.index))


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
"""Words for radiographic findings."""
_OTHER_IMAGE = re.compile(
    r"\bCT\b|\bHRCT\b|tomograph|ultrasound|biops|histolog|\bMRI\b|bronchoscop|lavage|\bPCR\b|culture", re.IGNORECASE
)
_XRAY = re.compile(r"radiograph|x-?ray|\bcxr\b|chest film", re.IGNORECASE)
_HEADING = re.compile(r"\b(Presentation|Imaging (?:Notes|Findings)|(?:Case )?Discussion)\s*:\s*", re.IGNORECASE)


def image_sentences(note: str) -> str:
    """Extract the sentences of a clinical note about the radiograph; most of a note is history.

    A sentence is kept if it names a radiographic finding and is not about another examination alone. A part headed
    Discussion is dropped, and so is one headed Presentation if another is headed Imaging.
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
    """Split a note into (heading, text) parts; the text before the first heading has none."""
    pieces = _HEADING.split(note)
    return [("", pieces[0]), *zip((p.lower() for p in pieces[1::2]), pieces[2::2], strict=True)]


def _clean(note: str) -> str:
    """Normalise to one line, single spaces and single full stops."""
    return re.sub(r"(\s*\.)+", ".", " ".join(str(note).split())).strip()
