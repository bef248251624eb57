"""The pointing game: whether the heat lies on a drawn opacity more often than a random point."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.explained import DRAFT, model
from tests.forks import PROJECT
from vlm.adapter import load
from vlm.config import Config, DataConfig, PhantomConfig
from vlm.config.parsing import parse_config
from vlm.data.case import make_example
from vlm.data.images.image import to_square
from vlm.data.ingest.phantom_image import SIZE, draw_chest
from vlm.data.study import StudyPicture
from vlm.errors import UserError
from vlm.explanation.phrases import finding_spans
from vlm.explanation.pointing_game import Case, check, dilated, find_cases, points_at, shuffle_weights, table
from vlm.model.clinical_vlm import ClinicalVLM

__all__ = ["model"]  # a fixture

DEMO = PROJECT / "runs" / "demo" / "adapter"


@pytest.fixture
def pointed(model: ClinicalVLM) -> list[Case]:
    """Phantom cases as the small model sees them, and a draft that fits."""
    cases = []
    for number in range(4):
        picture, mask = draw_chest("patchy", "left", "lower", np.random.default_rng([7, number]))
        square = to_square(picture.astype(np.float32), model.spec.image)
        example = make_example(model.spec, [StudyPicture(square)], np.full(4, np.nan))
        small = cv2.resize(mask.astype(np.uint8), (64, 64), interpolation=cv2.INTER_NEAREST) > 0
        cases.append(Case(example, small, DRAFT, finding_spans(DRAFT)[0]))
    return cases


def test_the_check_counts_what_it_says(model: ClinicalVLM, pointed: list[Case], monkeypatch) -> None:
    """With a map that is the mask itself every case is hit; with one that is nowhere none is."""
    for shown, wanted in ((lambda case: case.mask.astype(float), 4), (lambda case: -case.mask.astype(float), 0)):
        maps = {
            "finding words": [shown(case) for case in pointed],
            "label pathology": [shown(case) for case in pointed],
        }
        monkeypatch.setattr("vlm.explanation.pointing_game.heats", lambda *_, maps=maps: maps)
        rates = check(model, pointed)["rates"]["as drawn"]
        assert rates["finding words"]["hits"] == rates["label pathology"]["hits"] == wanted
        assert rates["a random point"] == pytest.approx(np.mean([case.mask.mean() for case in pointed]))
    with pytest.raises(UserError, match="no draft asserts an opacity"):
        check(model, [])


def test_the_check_runs_on_a_real_model(model: ClinicalVLM, pointed: list[Case]) -> None:
    results = check(model, pointed)
    margins = {name: row["pixels"] for name, row in results["rates"].items()}
    assert margins == {"as drawn": 0, "map cell": 16, "last cell": 32, "token cell": 32} and results["map"] == [4, 4]
    row = results["rates"]["map cell"]["label pathology, shuffled weights"]
    assert row["cases"] == 4 and 0 <= row["low"] <= row["hits"] / 4 <= row["high"] <= 1
    said = table(results).splitlines()
    assert len(said) == 8 and said[1].startswith("a random point") and "token cell (32 px)" in said[0]


def test_only_drawn_opacities_can_be_checked(model: ClinicalVLM, tiny_config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source: only the built-in cohort"):
        find_cases(model, tiny_config.data, "test", None, 8)
    data = DataConfig(root=str(tmp_path / "phantom"), phantom=PhantomConfig(cases=4))
    with pytest.raises(UserError, match="trained on other vitals or labels"):
        find_cases(model, data, "test", None, 8)


@pytest.mark.soak
@pytest.mark.skipif(not DEMO.is_dir(), reason="needs the adapter that `make demo` trains")
def test_the_demos_heat_lies_on_the_opacity_and_not_by_chance() -> None:
    """On all test cases; with shuffled weights it lies there hardly more often than a random point."""
    config, _ = parse_config(["--config", str(PROJECT / "configs" / "demo.yaml")])
    demo = load(DEMO)
    cases = find_cases(demo, replace(config.data, root=str(PROJECT / config.data.root)), "test", None, 40)
    rates = check(demo, cases)["rates"]
    for name in ("finding words", "label pathology"):
        assert rates["last cell"][name]["hits"] >= 0.9 * len(cases)
        assert rates["map cell"][name]["low"] > rates["map cell"][f"{name}, another case's"]["high"]
        assert rates["map cell"][name]["low"] > rates["map cell"][f"{name}, shuffled weights"]["high"]


def test_the_pointing_game() -> None:
    mask = np.zeros((224, 224), bool)
    mask[150:170, 60:90] = True
    heat = np.zeros((7, 7))
    heat[4, 2] = 1  # its middle is at 144, 80
    assert not points_at(heat, mask) and points_at(heat, dilated(mask, 8))
    assert not points_at(-heat, dilated(mask, 300)), "what speaks against the words points nowhere"
    assert dilated(mask, 0).sum() == mask.sum() and dilated(mask, 10)[140, 70] and not dilated(mask, 10)[139, 70]
    _, drawn = draw_chest("dense", "right", "lower", np.random.default_rng([7, 53]))
    assert drawn.shape == (SIZE, SIZE) and 0.01 < drawn.mean() < 0.15


def test_shuffled_weights_are_the_same_numbers_in_another_order(tiny_model: ClinicalVLM) -> None:
    before = {name: value.clone() for name, value in tiny_model.named_parameters()}
    shuffle_weights(tiny_model)
    after = dict(tiny_model.named_parameters())
    assert not torch.equal(before["vision.cnn.conv_stem.weight"], after["vision.cnn.conv_stem.weight"])
    for name, value in after.items():
        torch.testing.assert_close(value.flatten().sort().values, before[name].flatten().sort().values)
        if "lora" not in name and name.startswith("llm."):
            assert torch.equal(value, before[name]), "the base is not ours to shuffle"
