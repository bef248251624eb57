"""What a run is expected to cost, phase by phase."""

from dataclasses import replace

import pytest

from vlm.config import Config, LossConfig
from vlm.data.case import CaseSpec
from vlm.data.dataset import CaseDataset
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.data.splits import SPLITS
from vlm.training.phases import DRAFT, ENCODE, LEARN_IMAGE, LEARN_TEXT, READ, expected_phases, training_phase


@pytest.fixture
def splits(tiny_config: Config) -> dict[str, CaseDataset]:
    cohort = load_cohort(tiny_config.data)
    spec = CaseSpec.fit(cohort, ImageSpec(32), tiny_config.model.vitals.bins, 1, [])
    return {name: CaseDataset(cohort.split(name), spec, cohort.sections) for name in SPLITS}


def ablated(config: Config, cases: int) -> Config:
    return replace(config, evaluation=replace(config.evaluation, ablation=True, ablation_cases=cases))


def test_a_step_costs_by_what_it_trains(tiny_config: Config) -> None:
    config = replace(tiny_config, loss=LossConfig(head_only_steps=2))  # batches of 4, validation every 2 steps
    phase = training_phase(config, 0.5, 10, 1.0, steps=6)
    head = 4 * 0.5 * LEARN_IMAGE + 5 * ENCODE
    assert phase.cost(2 / 6) == pytest.approx(2 * head)
    assert phase.cost() == pytest.approx(6 * head + 4 * (4 * LEARN_TEXT + 5 * READ))
    alone = replace(config, loss=LossConfig(alpha=1.0))
    assert training_phase(alone, 0.5, 10, 1.0, steps=6).cost() == pytest.approx(6 * head)
    frozen = replace(config.model, vision=replace(config.model.vision, train=False))
    assert training_phase(replace(config, model=frozen), 0.5, 10, 1.0, 6).cost(2 / 6) == 0, "the features are kept"


def test_each_arm_drafts_and_scores_its_cases(tiny_config: Config, splits: dict[str, CaseDataset]) -> None:
    phases = expected_phases(ablated(tiny_config, 3), splits, 4)
    costs = {phase.title: phase.cost() for phase in phases}
    assert costs["drafting: image swapped"] == pytest.approx(3 * DRAFT)
    assert costs["scoring: both withheld"] == pytest.approx(3 * READ)
    assert costs["drafting: as given"] == pytest.approx(len(splits["test"]) * DRAFT)
    every = {phase.title: phase.cost() for phase in expected_phases(ablated(tiny_config, 0), splits, 4)}
    assert every["drafting: image swapped"] == pytest.approx(len(splits["test"]) * DRAFT)
    assert len(expected_phases(tiny_config, splits, 4)) == len(phases) - 2 * 6, "without the ablation"


def test_a_picture_that_is_not_kept_is_read_again(tiny_config: Config, splits: dict[str, CaseDataset]) -> None:
    kept, again = ({phase.title: phase.cost() for phase in expected_phases(tiny_config, splits, 4, kept)}
                   for kept in (True, False))  # fmt: skip
    pictures = sum(len(images) for images in splits["train"].rows["images"])
    assert kept["features for retrieval"] == 0 < again["features for retrieval"] == pytest.approx(pictures * ENCODE)
    assert sum(kept.values()) < sum(again.values())


def test_an_empty_split_costs_nothing(tiny_config: Config, splits: dict[str, CaseDataset]) -> None:
    empty = {name: replace(split, rows=split.rows.select([])) for name, split in splits.items() if name != "train"}
    phases = expected_phases(ablated(tiny_config, 0), splits | empty, 4)
    of_cases = ("scoring", "drafting", "fluency", "measures")
    costly = {phase.title for phase in phases if phase.title.startswith(of_cases) and phase.cost()}
    assert costly == {"scoring: train cases"}
