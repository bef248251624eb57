"""Read VinDr-CXR (Nguyen et al., 2022): frontal radiographs of two hospitals, read by radiologists; no reports.

In training each image has three radiologists, one a row; the test has one row an image, their consensus.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from vlm.config import DataConfig, TableConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.readers.common import cohort_of, find_table, images_by_stem, read_columns, refuse, validation_of
from vlm.errors import UserError

LABELS = ("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation",
          "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst",
          "Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax",
          "Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis",
          "Other disease")  # fmt: skip
"""The 22 findings and 5 diagnoses, without `No finding`, which is the absence of the others."""
TABLE = TableConfig(images=".", image="image", id="id", patient="id", split="split", labels=list(LABELS))
NO_PATIENTS = "VinDr-CXR names no patient, so each image counts as one; images of a patient may lie in two splits"


def load_vindr_cxr(data: DataConfig) -> Cohort:
    """Read `annotations/image_labels_{train,test}.csv` and the images in `train/` and `test/`.

    A label is what most radiologists of the image say, unknown where they are divided equally; notes say how often they
    differ. Raises `UserError` if there is no table, a column of it is missing, a cell is not 0, 1 or empty, and if a
    radiologist reads an image twice.
    """
    root = data.folder
    tables = {split: [f"annotations/image_labels_{split}.csv", f"image_labels_{split}.csv"]
              for split in ("train", "test")}  # fmt: skip
    found = {split: names for split, names in tables.items() if any((root / name).is_file() for name in names)}
    paths = {split: find_table(root, *names) for split, names in (found or tables).items()}
    there = images_by_stem(root)
    parts, notes, lost = [], [], 0
    for split, path in paths.items():
        frame, said = _read(path)
        frame["image"] = (f"{split}/" + frame["id"]).map(there).fillna("")
        frame["split"] = "test" if split == "test" else validation_of(frame["id"], data)
        parts.append((path, frame[frame["image"] != ""]))
        notes += said
        lost += int((frame["image"] == "").sum())
    cohort = cohort_of(parts, TABLE, data, root, {"without their image file": lost}, list(paths.values()))
    return replace(cohort, warnings=(f"{root}: {NO_PATIENTS}", *notes, *cohort.warnings))


def _read(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """Read a table as one row an image, with id and labels, and notes on how its radiologists differ."""
    rows = read_columns(path, ("image_id",)).rename(columns={"Other diseases": "Other disease"})
    for name in LABELS:
        if name not in rows:
            raise UserError(f"{path}: no column {name}; is this the collection's own table?")
    who = rows["rad_id"] if "rad_id" in rows else pd.Series("", rows.index)
    twice = pd.DataFrame({"image": rows["image_id"], "who": who}).duplicated()
    refuse(rows["image_id"], twice, path, "read twice by one radiologist, or twice in the table")
    said = pd.DataFrame({name: _votes(rows[name], path) for name in LABELS}).groupby(rows["image_id"], sort=False)
    yes, known = said.sum(), said.count()  # images × 27
    labels = np.select([2 * yes > known, 2 * yes < known], ["1", "0"], "")  # none known, or as many: unknown
    first = rows.index[~rows["image_id"].duplicated()]
    frame = pd.DataFrame(labels, index=first, columns=list(LABELS))
    return frame.assign(id=yes.index), _differences(path, yes, known, said.size())


def _votes(cells: pd.Series, path: Path) -> pd.Series:
    """Convert cells to 1, 0 and NaN for an empty one."""
    votes = pd.to_numeric(cells.str.strip(), errors="coerce")
    refuse(cells, (cells.str.strip() != "") & ~votes.isin([0, 1]), path, "no label; 1, 0 or nothing")
    return votes


def _differences(path: Path, yes: pd.DataFrame, known: pd.DataFrame, readers: pd.Series) -> list[str]:
    """Describe how often the radiologists of an image differ, if any image has several."""
    if readers.max() < 2:
        return []
    differ = (yes > 0) & (yes < known)
    notes = [f"{path}: a label is that of most radiologists of its image, unknown where they are divided equally; "
             f"they differ on a label of {differ.any(axis=1).sum():,} of {len(yes):,} images"]  # fmt: skip
    if (readers != 3).any():
        notes.append(f"{path}: {(readers != 3).sum():,} images have other than three radiologists")
    if differ.any(axis=None):
        seen = (yes > 0).sum()
        worst = [str(name) for name, count in differ.sum().nlargest(3).items() if count]
        lists = [f"{name} {seen[name] - differ[name].sum():,} of {seen[name]:,}" for name in worst]
        notes.append(f"{path}: images with a finding of which all agree, where any sees it: {', '.join(lists)}")
    return notes
