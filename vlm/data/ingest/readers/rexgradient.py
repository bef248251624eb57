"""Read ReXGradient-160K (Zhang et al., 2025): a study a row, with several images and a report."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from vlm.config import DataConfig, SectionConfig, TableConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.column_names import find_column, has_column
from vlm.data.ingest.readers.common import cohort_of, images_below, read_columns
from vlm.errors import UserError

TABLE = TableConfig(images=".", image="image", id="id", patient="patient", split="split", context="indication",
                    vitals=["age", "sex"], report=[SectionConfig("findings"), SectionConfig("impression")])  # fmt: skip
SPLITS = {"train": "train", "valid": "validation", "test": "test"}
PARTS = {"id": "id", "patient": "PatientID", "image": "ImagePath", "findings": "Findings", "impression": "Impression",
         "indication": "Indication"}  # fmt: skip
OPTIONAL = {"age": "PatientAge", "sex": "PatientSex", "time": "StudyDate", "view": "ImageViewPosition"}


def load_rexgradient(data: DataConfig) -> Cohort:
    """Read `metadata/{train,valid,test}_metadata.csv` and the images that they name, below `data.root`.

    One case a study: its first image, or with `data.studies` all of them, with the patient's study before where the
    table has `StudyDate`. Raises `UserError` if there is no table, or a column of it is missing.
    """
    root = data.folder
    paths = {split: root / "metadata" / f"{name}_metadata.csv" for name, split in SPLITS.items()}
    parts = {split: path for split, path in paths.items() if path.is_file()}
    if not parts:
        raise UserError(f"{root}: no file metadata/train_metadata.csv; is this the collection's folder?")
    there = {name.lstrip("./"): name for name in images_below(root)}
    frames = [(path, _read(path, split, there)) for split, path in parts.items()]
    left_out = {"without an image file": sum(int((frame["image"].map(len) == 0).sum()) for _, frame in frames)}
    frames = [(path, frame[frame["image"].map(len) > 0]) for path, frame in frames]
    table = TABLE
    if data.studies:
        dated, seen = (all(name in frame for _, frame in frames) for name in ("time", "view"))
        table = replace(TABLE, view="view" if seen else None, time="time" if dated else None, priors=int(dated))
    else:
        for _, frame in frames:
            frame["image"] = frame["image"].str[0]
    return cohort_of(frames, table, data, root, left_out, list(parts.values()))


def _read(path: Path, split: str, there: dict[str, str]) -> pd.DataFrame:
    rows = read_columns(path, ())
    names = PARTS | {name: column for name, column in OPTIONAL.items() if has_column(rows.columns, column)}
    frame = pd.DataFrame({name: rows[find_column(rows.columns, column, str(path))] for name, column in names.items()})
    found = frame["image"].map(lambda cell: [there.get(_tail(name, there), "") for name in _several(cell)])
    if "view" in frame:  # the view of an image that is not there goes with it
        views = frame["view"].map(_several)
        pairs = [list(zip(some, of, strict=True)) if len(some) == len(of) else [(name, "") for name in some]
                 for some, of in zip(found, views, strict=True)]  # fmt: skip
        frame["view"] = [[view for name, view in some if name] for some in pairs]
    frame["image"] = found.map(lambda some: list(filter(None, some)))
    for name, allowed in (("age", r"^0*(\d+)\s*Y?$"), ("sex", r"^([MF])")):
        if name in frame:
            frame[name] = frame[name].str.strip().str.extract(allowed, expand=False).fillna("")
    return frame.assign(**{name: "" for name in ("age", "sex") if name not in frame}, split=split)


def _several(cell: str) -> list[str]:
    """Split a list written as text, `['a.png', 'b.png']`; a plain text is one."""
    return re.findall(r"['\"]([^'\"]*)['\"]", cell) or [cell.strip()]


def _tail(name: str, there: dict[str, str]) -> str:
    """Find a path by its end: tables name the folders of the original download, such as `../deid_png/`."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return next((tail for start in range(len(parts)) if (tail := "/".join(parts[start:])) in there), "")
