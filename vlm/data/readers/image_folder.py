"""The `ImageFolder` layout of Hugging Face datasets: split folders, a metadata table or class folders."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from vlm.config import DataConfig
from vlm.data.cohort import Cohort
from vlm.data.readers.layout import IMAGES, cohort_of
from vlm.data.reading import read_table
from vlm.errors import UserError

SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
          "test": "test"}  # fmt: skip
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def load_image_folder(data: DataConfig) -> Cohort:
    """Read `data.root`, with or without a folder for each split.

    With a metadata table its columns are those of `data.table`, and `file_name` is the image; without one each
    folder of images is a class, and a label. Raises `UserError` if there are neither tables nor images.
    """
    root = Path(data.root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set data.root")
    folders = {child: SPLITS[child.name] for child in sorted(root.iterdir()) if child.is_dir() and child.name in SPLITS}
    parts = [_read(folder, root).assign(split=name) for folder, name in (folders or {root: ""}).items()]
    frame = pd.concat(parts, ignore_index=True).fillna("")
    classes = sorted({name for name in frame.get("class", pd.Series(dtype=str)).unique() if name})
    for name in classes:
        frame[name] = (frame["class"] == name).astype(int).astype(str)
    labels = classes or data.table.labels
    table = replace(data.table, images=".", image="image", id=data.table.id or "image", labels=labels,
                    split="split" if folders else data.table.split)  # fmt: skip
    return cohort_of(frame, table, data, root, {})


def _read(folder: Path, root: Path) -> pd.DataFrame:
    for name in METADATA:
        file = folder / name
        if file.is_file():
            frame = pd.read_json(file, lines=True, dtype=False) if name.endswith("jsonl") else read_table(file)
            if "file_name" not in frame.columns:
                raise UserError(f"{file}: no column file_name")
            here = folder.relative_to(root)
            return frame.assign(image=[str(here / str(image)) for image in frame["file_name"]])
    files = [file for file in sorted(folder.glob("*/*")) if file.suffix.lower() in IMAGES]
    if not files:
        raise UserError(f"{folder}: neither {' nor '.join(METADATA)} nor folders of images")
    return pd.DataFrame({"image": [str(file.relative_to(root)) for file in files],
                         "class": [file.parent.name for file in files]})  # fmt: skip
