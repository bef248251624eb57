"""Read the `ImageFolder` layout of Hugging Face datasets: split folders, a metadata table or class folders."""

from dataclasses import replace
from pathlib import Path, PurePath

import pandas as pd

from vlm.config import DataConfig
from vlm.data.cohort import Cohort
from vlm.data.images.find import EXTENSIONS, text_cell
from vlm.data.ingest.read import TableOptions, read_table, reading_notes
from vlm.data.ingest.readers.common import cohort_of
from vlm.data.ingest.table import Part
from vlm.errors import UserError

SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
          "test": "test"}  # fmt: skip
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
IMAGE, SPLIT, CLASS = "(image)", "(split)", "(class)"
"""Names of added columns; in brackets, for a user's own column may be called `image`."""


def load_image_folder(data: DataConfig) -> Cohort:
    """Read `data.root`, with or without a folder for each split.

    With a metadata table, in each split's folder or in the root, its columns are those of `data.table`, and
    `file_name` is the image; without one each folder of images is a class, and a label. Raises `UserError` if there
    are neither tables nor images.
    """
    root = data.folder
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set data.root")
    folders = [child for child in sorted(root.iterdir()) if child.is_dir() and child.name in SPLITS]
    if not folders or any((root / name).is_file() for name in METADATA):
        folders = [root]
    options = TableOptions(data.table.encoding, data.table.sheet)
    parts = [_read(folder, root, options) for folder in folders]
    classes = sorted({name for _, frame in parts if CLASS in frame for name in frame[CLASS]})
    for _, frame in parts:
        for name in classes:
            frame[name] = (frame[CLASS] == name).astype(int).astype(str) if CLASS in frame else ""
    has_splits = all(frame[SPLIT].all() for _, frame in parts)
    table = replace(data.table, images=".", image=IMAGE, id=data.table.id or (None if data.table.study else IMAGE),
                    labels=classes or data.table.labels, split=SPLIT if has_splits else data.table.split)  # fmt: skip
    notes = [note for path, _ in parts for note in reading_notes(path, options)]
    cohort = cohort_of(parts, table, data, root, {})
    return replace(cohort, warnings=(*notes, *cohort.warnings))


def _read(folder: Path, root: Path, options: TableOptions) -> Part:
    here = folder.relative_to(root)
    for name in METADATA:
        file = folder / name
        if file.is_file():
            frame = read_table(file, options)
            if "file_name" not in frame.columns:
                raise UserError(f"{file}: no column file_name")
            names = map(text_cell, frame["file_name"])
            return file, _placed(frame, [str(here / name) if name else "" for name in names], here)
    files = [file for file in sorted(folder.glob("*/*")) if file.suffix.lower() in EXTENSIONS]
    if not files:
        raise UserError(f"{folder}: neither {' nor '.join(METADATA)} nor folders of images")
    classes = pd.DataFrame({CLASS: [file.parent.name for file in files]})
    return folder, _placed(classes, [str(file.relative_to(root)) for file in files], here)


def _placed(frame: pd.DataFrame, images: list[str], here: Path) -> pd.DataFrame:
    """Add each row's image path below the root, and its split from the folder or the image's first folder."""
    firsts = [PurePath(here / image).parts[:1] if here == Path() else here.parts for image in images]
    return frame.assign(**{IMAGE: images, SPLIT: [SPLITS.get("".join(first[:1]), "") for first in firsts]})
