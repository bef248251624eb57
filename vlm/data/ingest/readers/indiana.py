"""Read the Indiana University chest radiographs (Demner-Fushman et al., 2016): reports in XML, images in PNG."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from vlm.config import DataConfig, SectionConfig, TableConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.readers.common import cohort_of, images_below, read_columns
from vlm.errors import UserError

TABLE = TableConfig(images=".", image="image", id="id", patient="patient", context="indication", labels=["abnormal"],
                    report=[SectionConfig("findings"), SectionConfig("impression")])  # fmt: skip
VIEWS = "indiana_projections.csv"


def load_indiana(data: DataConfig) -> Cohort:
    """Read `ecgen-radiology/*.xml` and `NLMCXR_png/*.png`: one case a report, with the first of its
    frontal images that is on disk, or with `data.studies` all of its images.

    `indiana_projections.csv`, if it exists, says which image is frontal; else the report's first image is used. The
    collection does not say which reports are of one person, so each is a patient of its own. Raises `UserError` that
    names a file that is no report.
    """
    root = data.folder
    folder = root / "ecgen-radiology"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; data.root holds ecgen-radiology/ and NLMCXR_png/")
    views, there = _views(root), images_below(root, "NLMCXR_png/*")
    files = sorted(folder.glob("*.xml"), key=lambda file: (len(file.name), file.name))
    rows = [_read(file, views, there, data.studies) for file in files]
    written = [row for row in rows if row["findings"] or row["impression"]]
    kept = [row for row in written if row["image"]]
    left_out = {
        "without findings and impression": len(rows) - len(written),
        "without an image on disk" if data.studies else "without a frontal image on disk": len(written) - len(kept),
    }
    table = replace(TABLE, view="view") if data.studies and views else TABLE
    return cohort_of([(folder, pd.DataFrame(kept))], table, data, folder, left_out, [root / VIEWS])


def _views(root: Path) -> dict[str, str]:
    """Read the projection of each image; none without their table."""
    table = root / VIEWS
    if not table.is_file():
        return {}
    rows = read_columns(table, ("filename", "projection"))
    names = (Path(name.replace(".dcm", "")).stem for name in rows["filename"])
    return dict(zip(names, rows["projection"].str.strip().str.lower(), strict=True))


def _read(file: Path, views: dict[str, str], there: set[str], whole: bool) -> dict[str, Any]:
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError):
        raise UserError(f"{file}: no readable XML report") from None
    parts = {str(part.get("Label")).lower(): " ".join((part.text or "").split()) for part in root.iter("AbstractText")}
    names = [str(image.get("id")) for image in root.iter("parentImage")]
    of = {name: views.get(name) or views.get(re.sub(r"^CXR\d+_", "", name), "") for name in names}
    names = [name for name in names if whole or not views or of[name] == "frontal"]
    names = [name for name in names if f"NLMCXR_png/{name}.png" in there]
    names = names if whole else names[:1]
    codes = [code.text or "" for code in root.iter("major")]
    known = bool(codes) and codes != ["No Indexing"]
    return {
        "id": file.stem,
        "patient": file.stem,
        "image": [f"NLMCXR_png/{name}.png" for name in names],
        "view": [of[name] for name in names],
        **{name: parts.get(name, "") for name in ("findings", "impression", "indication")},
        "abnormal": str(int(codes != ["normal"])) if known else "",
    }
