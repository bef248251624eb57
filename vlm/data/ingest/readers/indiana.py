"""Read the Indiana University chest radiographs (Demner-Fushman et al., 2016): reports in XML, images in PNG."""

import re
from pathlib import Path
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
    frontal images that is on disk.

    `indiana_projections.csv`, if it exists, says which image is frontal; else the report's first image is used. The
    collection does not say which reports are of one person, so each is a patient of its own. Raises `UserError` that
    names a file that is no report.
    """
    root = Path(data.root)
    folder = root / "ecgen-radiology"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; data.root holds ecgen-radiology/ and NLMCXR_png/")
    frontal, there = _frontal(root), images_below(root, "NLMCXR_png/*")
    files = sorted(folder.glob("*.xml"), key=lambda file: (len(file.name), file.name))
    rows = [_read(file, frontal, there) for file in files]
    written = [row for row in rows if row["findings"] or row["impression"]]
    kept = [row for row in written if row["image"]]
    left_out = {
        "without findings and impression": len(rows) - len(written),
        "without a frontal image on disk": len(written) - len(kept),
    }
    return cohort_of([(folder, pd.DataFrame(kept))], TABLE, data, folder, left_out, [root / VIEWS])


def _frontal(root: Path) -> set[str] | None:
    table = root / VIEWS
    if not table.is_file():
        return None
    views = read_columns(table, ("filename", "projection"))
    names = views["filename"][views["projection"].str.strip().str.lower() == "frontal"]
    return {Path(name.replace(".dcm", "")).stem for name in names}


def _read(file: Path, frontal: set[str] | None, there: set[str]) -> dict[str, str]:
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError):
        raise UserError(f"{file}: no readable XML report") from None
    parts = {str(part.get("Label")).lower(): " ".join((part.text or "").split()) for part in root.iter("AbstractText")}
    images = [str(image.get("id")) for image in root.iter("parentImage")]
    if frontal is not None:
        images = [name for name in images if name in frontal or re.sub(r"^CXR\d+_", "", name) in frontal]
    images = [path for path in (f"NLMCXR_png/{name}.png" for name in images) if path in there]
    codes = [code.text or "" for code in root.iter("major")]
    known = bool(codes) and codes != ["No Indexing"]
    return {
        "id": file.stem,
        "patient": file.stem,
        "image": images[0] if images else "",
        **{name: parts.get(name, "") for name in ("findings", "impression", "indication")},
        "abnormal": str(int(codes != ["normal"])) if known else "",
    }
