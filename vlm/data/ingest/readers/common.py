"""Shared helpers of the readers: build a cohort from a collection's own rows."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from vlm.config import DataConfig, TableConfig
from vlm.data.cohort import Cohort, selected_labels
from vlm.data.images.find import EXTENSIONS
from vlm.data.ingest.read import read_table, reading_notes
from vlm.data.ingest.table import CHUNK, Part, load_frames
from vlm.data.splits import unit_hash
from vlm.errors import UserError
from vlm.faults import Faults

CHEXPERT_LABELS = ("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
                   "Consolidation",
                   "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
                   "Support Devices")  # fmt: skip
"""The observations of the CheXpert labeller, without `No Finding`, which is the absence of the others."""


def find_table(root: Path, *names: str, option: str = "data.root") -> Path:
    """Find the first of the file names that exists; raises `UserError` that names them."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set {option}")
    for name in names:
        if (root / name).is_file():
            return root / name
    raise UserError(f"{root}: no file {' or '.join(names)}; is this the collection's folder?")


def read_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read columns as text, indexed by the row of the file; raises `UserError` for a missing column."""
    frame = read_table(path)
    for column in columns:
        if column not in frame.columns:
            raise UserError(f"{path}: no column {column}; is this the collection's own table?")
    return frame.fillna("").astype(str)


def refuse(cells: pd.Series, wrong: pd.Series, path: Path, meaning: str) -> None:
    """Raise `UserError` for the wrong cells, with their rows and column."""
    faults = Faults()
    for row in cells.index[wrong.to_numpy(bool)]:
        faults.add(f"{path}: row {row + 2}: {cells.name}: {cells[row]!r:.60} is {meaning}")
    faults.raise_any()


def cohort_of(
    parts: Sequence[Part],
    table: TableConfig,
    data: DataConfig,
    where: Path,
    left_out: dict[str, int],
    read: Sequence[Path] = (),
) -> Cohort:
    """Build a cohort from a reader's frames; `data.table.labels`, if set, selects among its labels.

    `read` are the tables that were read, for notes on their encodings.
    Raises `UserError` for a selected label that the collection does not have, and if no row is left.
    """
    chosen = list(selected_labels(data, table.labels))
    if all(frame.empty for _, frame in parts):
        raise UserError(f"{where}: no row is left with an image on disk")
    pieces = (
        (path, frame.iloc[start : start + CHUNK]) for path, frame in parts for start in range(0, len(frame), CHUNK)
    )
    cohort = load_frames(pieces, replace(table, labels=chosen), data, where)
    said = tuple(f"{where}: {count:,} rows {reason} left out" for reason, count in left_out.items() if count)
    notes = tuple(note for path in read for note in reading_notes(path))
    return replace(cohort, warnings=(*notes, *said, *cohort.warnings))


def studies_of(table: TableConfig, **known: str) -> TableConfig:
    """Describe rows that are images of studies, with the columns `study` and `view`, and `known`: time or order."""
    return replace(table, id=None, study="study", view="view", priors=1 if known else 0, **known)  # type: ignore[arg-type]


def as_cases(
    frame: pd.DataFrame, table: TableConfig, data: DataConfig, left_out: dict[str, int]
) -> tuple[pd.DataFrame, TableConfig]:
    """Choose all images of each study with `data.studies`, else its first frontal one.

    The frame has an image a row, with the columns study, view, and time or order where one of them is known.
    """
    if data.studies:
        return frame, studies_of(table, **{name: name for name in ("time", "order") if name in frame})
    frontal = frame["view"].str.strip().str.match(r"(?:PA|AP|FRONTAL)(?:[ _].*)?$", case=False)
    further = frame[frontal].duplicated("study")
    left_out["of other than frontal views"] = int((~frontal).sum())
    left_out["of a further image of the same study"] = int(further.sum())
    return frame[frontal][~further], replace(table, id="study")


def images_by_stem(root: Path) -> dict[str, str]:
    """Map the path of each image on disk, without its extension, to the path itself."""
    return {name.rpartition(".")[0]: name for name in sorted(images_below(root))}


def images_below(root: Path, pattern: str = "**/*") -> set[str]:
    """List the images on disk as paths relative to `root`, in one walk."""
    return {str(path.relative_to(root)) for path in root.glob(pattern) if path.suffix.lower() in EXTENSIONS}


def validation_of(patients: pd.Series, data: DataConfig) -> np.ndarray:
    """Assign `validation` or `train` by a hash of the patient's id, for collections without this split."""
    shares = {name: unit_hash(f"{data.split.seed}/{name}") for name in patients.unique()}
    return np.where(patients.map(shares) < data.split.validation, "validation", "train")


def uncertain(cells: pd.Series, path: Path, uncertain_as: str, blank_as: str) -> pd.Series:
    """Map CheXpert's 1.0, 0.0, -1.0 (uncertain) and empty (not mentioned) → `1`, `0` or empty.

    Raises `UserError` for a cell that is none of these.
    """
    said = {"positive": "1", "negative": "0", "unknown": ""}
    text = cells.str.strip()
    number = pd.to_numeric(text, errors="coerce")
    refuse(cells, (text != "") & ~number.isin([1, 0, -1]), path, "no label; 1, 0, -1 or nothing")
    words = np.select([number == 1, number == 0, number == -1], ["1", "0", said[uncertain_as]], said[blank_as])
    return pd.Series(words, index=cells.index)


def read_times(cells: pd.Series, path: Path, form: str) -> pd.Series:
    """Parse times in the format `form`, NaT if empty; raises `UserError` for any other format."""
    text = cells.str.strip()
    times = pd.to_datetime(text.where(text != ""), format=form, errors="coerce")
    refuse(cells, (text != "") & times.isna(), path, "no date and time")
    return times


_HEADING = re.compile(r"^\s*([A-Z][A-Z /()&-]{2,40}):", re.MULTILINE)


def report_parts(text: str) -> dict[str, str]:
    """Split a free-text report at its upper-case headings; keys are lower-case: `findings`, `impression`."""
    pieces = _HEADING.split(text)
    parts: dict[str, str] = {}
    for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
        parts.setdefault(name.strip().lower(), " ".join(body.split()))
    return parts
