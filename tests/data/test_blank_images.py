"""Images that show nothing or cannot be read are said before a step is made, by every path, with their number."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from tests.cells import first_images
from vlm.config import Config
from vlm.data.blank_images import check_sample
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.data.prepare.check import CheckOptions, check_table
from vlm.data.prepare.pack import PackOptions, pack
from vlm.errors import UserError
from vlm.inference.features import keep_features
from vlm.training.run import build_model, case_dataset, try_step

SPEC = ImageSpec(32)


@pytest.fixture
def blanks(tiny_config: Config, table_root: Path, tmp_path: Path) -> Config:
    """The job on a copy of its table in which two images are one grey value and one is not there by intention."""
    import shutil

    root = tmp_path / "data"
    shutil.copytree(table_root, root)
    frame = pd.read_csv(root / "cases.csv", dtype=str, keep_default_na=False)
    train = [name for name, split in zip(frame["image"], frame["split"], strict=True) if name and split == "train"]
    for name, value in zip(train[:2], (0, 200), strict=True):
        cv2.imwrite(str(root / "images" / name), np.full((40, 50), value, np.uint8))
    return replace(tiny_config, data=replace(tiny_config.data, root=str(root)))


def test_the_sample_check_counts_the_blank_and_names_the_first(blanks: Config) -> None:
    rows = load_cohort(blanks.data).dataset
    images = sum(cell is not None for cell in first_images(rows))
    (line,) = check_sample(rows, SPEC)
    assert line.startswith(f"2 of {images} images looked at show one grey value alone") and ".png" in line
    assert check_sample(rows, SPEC, most=images) == [line] and len(check_sample(rows, SPEC, most=3)) <= 1
    assert check_sample(rows, SPEC, seconds=-1) == [] and check_sample(rows.select([]), SPEC) == []


def test_the_sample_check_names_a_file_that_cannot_be_read(blanks: Config) -> None:
    rows = load_cohort(blanks.data).dataset
    path = next(cell["path"] for cell in first_images(rows) if cell)
    Path(path).write_bytes(Path(path).read_bytes()[:60])
    with pytest.raises(UserError, match=rf"{path}: not a readable image: it is cut off"):
        check_sample(rows, SPEC)


def test_an_empty_file_is_said_when_the_table_is_loaded(blanks: Config) -> None:
    path = Path(next(cell["path"] for cell in first_images(load_cohort(blanks.data).dataset) if cell))
    path.write_bytes(b"")
    assert any(f"1 image files are empty and cannot be read; the first: {path.name}" in warning
               for warning in load_cohort(blanks.data).warnings)  # fmt: skip


def test_the_dry_run_the_features_the_check_and_the_packing_say_it(blanks: Config, tmp_path: Path, capsys) -> None:
    try_step(blanks)
    assert "2 of" in (said := capsys.readouterr().err) and "images looked at show one grey value alone" in said
    frozen = replace(blanks, model=replace(blanks.model, vision=replace(blanks.model.vision, train=False)))
    cohort = load_cohort(frozen.data)
    model = build_model(frozen, cohort, torch.device("cpu"), torch.float32)
    dataset = case_dataset(frozen, model.spec, cohort, "train")
    images = sum(cell is not None for cell in first_images(dataset.rows))
    keep_features(model, frozen, [dataset])
    assert f"warning: 2 of {images} images looked at show one grey value alone" in capsys.readouterr().err
    lines = pack(blanks.data, tmp_path / "pack", PackOptions())
    assert "warning: 2 images show one grey value alone and count as no image" in lines
    root = Path(blanks.data.root)
    notices = check_table(root / "cases.csv", CheckOptions(root / "images")).notices
    assert [notice.message for notice in notices if notice.check == "blank"] == [
        "2 images of one grey value: taken as no image"
    ]


def test_training_says_the_first_blank_image_that_it_meets(blanks: Config, capsys) -> None:
    cohort = load_cohort(blanks.data)
    model = build_model(blanks, cohort, torch.device("cpu"), torch.float32)
    dataset = case_dataset(blanks, model.spec, cohort, "train")
    shown = [bool(dataset[index]["has_image"]) for index in range(len(dataset))]
    assert not all(shown)
    assert capsys.readouterr().err.count("shows one grey value alone and counts as no image") == 1


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("broken"), ValueError("odd"), RuntimeError("of a library")])
def test_whatever_goes_wrong_in_reading_names_the_file_in_one_line(error, blanks: Config, monkeypatch) -> None:
    rows = load_cohort(blanks.data).dataset

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("vlm.data.dataset.to_square", fail)
    with pytest.raises(UserError, match=r"\.png: cannot read the image: \w+$"):
        check_sample(rows, SPEC)
