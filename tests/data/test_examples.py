"""Training examples: dropout, augmentation and the reports that the remaining evidence allows."""

from dataclasses import replace
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
import torch

from tests.examples import same
from vlm.config import AugmentConfig, Config, DropoutConfig, SectionConfig
from vlm.data.case import CaseSpec
from vlm.data.dataset import CaseDataset
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.data.shown_evidence import available_evidence, compose_report
from vlm.data.study import image_cell

SECTIONS = [
    SectionConfig("a", ["image"], "No image."),
    SectionConfig("b", ["glucose"]),
    SectionConfig("c", [], "never used"),
]


@pytest.mark.parametrize(
    ("available", "report"),
    [
        ({"image", "vitals", "glucose"}, "Opacity. Sugar. History."),
        ({"vitals", "glucose"}, "No image. Sugar. History."),
        ({"image"}, "Opacity. History."),
        (set(), "No image. History."),
    ],
)
def test_a_report_states_what_its_evidence_allows(available: set, report: str) -> None:
    assert compose_report(["Opacity.", "Sugar.", "History."], SECTIONS, available) == report


def test_available_evidence() -> None:
    assert available_evidence(["a", "b"], np.array([1.0, np.nan]), {""}) == {"image", "vitals", "a"}
    assert available_evidence(["a", "b"], np.array([np.nan, np.nan]), set()) == set()


@pytest.fixture
def dataset(tiny_config: Config) -> CaseDataset:
    cohort = load_cohort(tiny_config.data)
    return CaseDataset(cohort.dataset, CaseSpec.fit(cohort, ImageSpec(32), 3), cohort.sections)


def test_draws_depend_on_seed_epoch_and_row_alone(dataset: CaseDataset) -> None:
    """So that they are the same with any number of workers or processes, and after a resume."""
    train = replace(dataset, dropout=DropoutConfig(0.3, 0.2, 0.2), augment=AugmentConfig(5, 0.1, 0.1, 0.1))
    again = replace(train)
    order = [3, 1, 2, 0]
    first = {index: train[index] for index in order}
    assert all(same(first[index], again[index]) for index in sorted(order))
    again.set_epoch(1)
    assert not all(same(first[index], again[index]) for index in order)
    assert not all(same(first[index], replace(train, seed=5)[index]) for index in order)


def test_a_lost_image_takes_its_statement_with_it(dataset: CaseDataset) -> None:
    lossy = replace(dataset, dropout=DropoutConfig(image=0.999, vitals=0, value=0))
    for index in range(len(dataset)):
        assert not lossy[index]["has_image"] and lossy[index]["report"] == "No image was available."
        assert torch.equal(torch.isnan(lossy[index]["vitals"]), torch.isnan(dataset[index]["vitals"]))


def test_dropout_rates_are_those_asked_for(dataset: CaseDataset) -> None:
    lossy = replace(dataset, dropout=DropoutConfig(image=0.25, vitals=0.2, value=0.1))
    had = [index for index in range(len(dataset)) if dataset[index]["has_image"]]
    images, lost_all, lost_one = [], [], []
    for epoch in range(60):
        lossy.set_epoch(epoch)
        for index in had[:10]:
            example = lossy[index]
            images.append(example["has_image"])
            present = ~torch.isnan(example["vitals"][1:])  # pressure and sex are always recorded
            lost_all.append(not present.any())
            if present.any():
                lost_one.append(1 - present.float().mean().item())
    assert (
        abs(np.mean(images) - 0.75) < 0.06
        and abs(np.mean(lost_all) - 0.2) < 0.06
        and abs(np.mean(lost_one) - 0.1) < 0.04
    )


def test_vitals_scale_comes_from_the_training_split_alone(tiny_config: Config) -> None:
    cohort = load_cohort(tiny_config.data)
    vitals = np.array(cohort.split("train")["vitals"])
    spec = CaseSpec.fit(cohort, ImageSpec(32), 3)
    assert spec.statistics.centre[1] == np.median(vitals[:, 1])
    assert spec.statistics.centre[1] != np.median(np.array(cohort.dataset["vitals"])[:, 1])


def test_a_report_on_a_blank_image_is_not_taught(dataset: CaseDataset, tmp_path: Path) -> None:
    row = next(index for index in range(len(dataset)) if dataset[index]["has_image"] and dataset[index]["report"])
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((40, 40), np.uint8))
    cells = dataset.rows["images"]
    cells = [[image_cell(str(tmp_path / "black.png"))] if i == row else c for i, c in enumerate(cells)]
    columns = dataset.rows.to_dict() | {"images": cells}
    blank = replace(dataset, rows=datasets.Dataset.from_dict(columns, features=dataset.rows.features))
    assert blank.report(row) == "No image was available.", "nor held against a draft"
    assert not blank[row]["has_image"] and blank[row]["report"] == "No image was available."
    assert blank.shows_image(row) is False and blank.shows_image(row - 1) == dataset[row - 1]["has_image"]
