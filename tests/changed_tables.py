"""Tables whose cells or images change under the same ids."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import pandas as pd
import pytest

from vlm.config import Config
from vlm.data.case import CaseSpec
from vlm.data.dataset import CaseDataset
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.inference.engine import ReportEngine
from vlm.inference.many import TableColumns, TableJob


def changed_table(tiny_config: Config, tmp_path: Path, edit) -> tuple[Config, CaseDataset]:
    """The test's table with its cells changed, and all its cases as one split."""
    import pandas as pd

    source = Path(tiny_config.data.root)
    frame = edit(pd.read_csv(source / "cases.csv", dtype=str, keep_default_na=False))
    (tmp_path / "changed").mkdir()
    frame.to_csv(tmp_path / "changed" / "cases.csv", index=False)
    (tmp_path / "changed" / "images").symlink_to(source / "images")
    config = replace(tiny_config, data=replace(tiny_config.data, root=str(tmp_path / "changed")))
    cohort = load_cohort(config.data)
    spec = CaseSpec.fit(cohort, ImageSpec(32), 3)
    return config, CaseDataset(cohort.dataset, spec, cohort.sections)


@pytest.fixture
def data(table_root: Path, tmp_path: Path) -> Path:
    """A copy of the table and its images, to change."""
    return Path(shutil.copytree(table_root, tmp_path / "data"))


def edit(root: Path, change: Callable[[pd.DataFrame], object]) -> None:
    frame = pd.read_csv(root / "cases.csv", dtype=str, keep_default_na=False)
    change(frame)
    frame.to_csv(root / "cases.csv", index=False)


def cell(column: str, value: str, row: int = 0) -> Callable[[Path], None]:
    return lambda root: edit(root, lambda frame: frame.__setitem__(column, _with(frame[column], row, value)))


def _with(cells: pd.Series, row: int, value: str) -> list[str]:
    assert cells[row] != value
    return [*cells[:row], value, *cells[row + 1 :]]


def pixel(root: Path) -> None:
    """The same name and, in a BMP, the same size."""
    picture = cv2.imread(str(root / "images" / "0.png"), cv2.IMREAD_UNCHANGED)
    picture[0, 0] ^= 1
    cv2.imwrite(str(root / "images" / "0.png"), picture)


CHANGES: dict[str, Callable[[Path], None]] = {
    "a label": cell("pathology", "1"),
    "a label that was unknown": cell("pathology", "1", 3),
    "a second label": cell("effusion", "1"),
    "a report": cell("findings", "Nothing at all."),
    "a report that was missing": cell("findings", "Nothing at all.", 4),
    "a vital": cell("glucose", "9.9", 1),
    "half a pressure": cell("blood_pressure", "121/70"),
    "a category": cell("sex", "F"),
    "an image's name": cell("image", "1.png"),
    "an image's pixel": pixel,
    "every label": lambda root: edit(
        root, lambda f: f.__setitem__("effusion", [str(1 - int(v)) for v in f["effusion"]])
    ),
    "two reports": lambda root: edit(
        root, lambda f: f.__setitem__("findings", [f["findings"][1], f["findings"][0], *f["findings"][2:]])
    ),
}
HARMLESS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda root: None,
    "times": lambda root: [os.utime(file, (1, 1)) for file in root.rglob("*.png")] and None,
    "the order": lambda root: edit(root, lambda f: f.__setitem__(list(f.columns), f.iloc[::-1].to_numpy())),
    "a column that is not read": lambda root: edit(root, lambda f: f.__setitem__("note", "x")),
}


@pytest.fixture
def job(data: Path, tmp_path: Path) -> TableJob:
    return TableJob(
        data / "cases.csv", tmp_path / "out" / "drafts.jsonl", data / "images", TableColumns(id="case"), 8, 2
    )


def draft(job: TableJob, model, adapter: Path, resume: bool = False) -> list[dict]:
    job.run(ReportEngine(model), job.check(adapter, model.spec.schema, resume))
    return [json.loads(line) for line in job.output.read_text().splitlines()]
