"""The kept features of a frozen CNN: the same numbers as from the pixels, whatever is dropped or withheld."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vlm.config import AugmentConfig, Config, DropoutConfig
from vlm.data.collate import Collator
from vlm.data.ingest.sources import load_cohort
from vlm.data.sampling import CaseSampler
from vlm.evaluation.baselines import image_features
from vlm.evaluation.evaluate import plain_splits
from vlm.evaluation.split_measures import score_splits
from vlm.inference import features
from vlm.inference.features import choose_features, keep_features, keep_for_test
from vlm.training.fit_reliability import image_summaries
from vlm.training.run import build_model, case_dataset

ROWS = np.arange(3)


@pytest.fixture
def frozen(tiny_config: Config) -> Config:
    vision = replace(tiny_config.model.vision, train=False)
    return replace(tiny_config, model=replace(tiny_config.model, vision=vision))


@pytest.fixture
def made(frozen: Config):
    cohort = load_cohort(frozen.data)
    return cohort, build_model(frozen, cohort, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("withhold", [[], ["image"]])
def test_the_loss_is_that_of_the_pixels(withhold: list, frozen: Config, made) -> None:
    cohort, model = made
    config = replace(frozen, data=replace(frozen.data, withhold=withhold, dropout=DropoutConfig(0.3, 0.2, 0.1)))
    pixels, kept = (case_dataset(config, model.spec, cohort, "train") for _ in range(2))
    keep_features(model, config, [kept], batch_size=5)
    values = kept.features.values
    assert values.shape == (len(kept.features.roles), *model.vision.feature_shape) and np.isfinite(values).all()
    collate = Collator(model.prompt)
    for epoch in range(3):
        pixels.set_epoch(epoch), kept.set_epoch(epoch)
        a, b = (collate([dataset[index] for index in range(len(dataset))]) for dataset in (pixels, kept))
        assert torch.equal(a["has_image"], b["has_image"]) and torch.equal(a["input_ids"], b["input_ids"])
        with torch.no_grad():
            from_pixels, from_features = model(**a), model(**b)
        torch.testing.assert_close(from_pixels.logits, from_features.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(from_pixels.case_losses, from_features.case_losses, rtol=1e-5, atol=1e-5)
    assert pixels.reports == kept.reports


def test_an_image_is_read_once(frozen: Config, made, monkeypatch) -> None:
    cohort, model = made
    dataset = case_dataset(frozen, model.spec, cohort, "train")
    keep_features(model, frozen, [dataset])
    monkeypatch.setattr("vlm.data.dataset.read_image_bytes", lambda path: pytest.fail(f"{path} was read again"))
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert len([dataset[index] for index in range(len(dataset))]) == len(dataset.reports)


def test_the_test_reads_a_training_picture_once(tiny_config: Config, tiny_model, monkeypatch) -> None:
    """Fits, scores and retrieval after the training share the features of one pass, unless there are many pictures."""
    splits = plain_splits(tiny_model, load_cohort(tiny_config.data), tiny_config)
    monkeypatch.setattr(features, "MOST_BYTES", 1)
    keep_for_test(tiny_model, tiny_config, splits)
    assert splits["train"].features is None
    monkeypatch.undo()
    pictures = image_features(tiny_model, splits["train"], 4), image_summaries(tiny_model, splits["train"], ROWS, 4)
    scores = score_splits(tiny_model, splits, tiny_config)["train"].scores
    keep_for_test(tiny_model, tiny_config, splits)
    monkeypatch.setattr("vlm.data.dataset.read_image_bytes", lambda path: pytest.fail(f"{path} was read again"))
    known = image_features(tiny_model, splits["train"], 4), image_summaries(tiny_model, splits["train"], ROWS, 4)
    np.testing.assert_allclose(known[0], pictures[0], atol=1e-5)
    np.testing.assert_allclose(known[1][0], pictures[1][0], atol=1e-4)
    assert known[1][1].tolist() == pictures[1][1].tolist()
    again = score_splits(tiny_model, splits, tiny_config)["train"].scores
    np.testing.assert_allclose(again.losses, scores.losses, rtol=1e-4)
    before = splits["train"].features
    keep_for_test(tiny_model, tiny_config, splits)
    assert splits["train"].features is before, "those of a frozen encoder are there already"


def test_features_are_kept_only_where_they_cannot_change(frozen: Config, tiny_config: Config) -> None:
    assert choose_features(frozen).value
    moving = replace(frozen, data=replace(frozen.data, augment=AugmentConfig(rotate=3)))
    assert choose_features(moving) == (False, "augmentation changes the images")
    assert choose_features(tiny_config) == (False, "the CNN trains")


def test_a_step_holds_the_cases_it_would_hold_unsorted(tiny_config: Config, tiny_model) -> None:
    dataset = case_dataset(tiny_config, tiny_model.spec, load_cohort(tiny_config.data), "train")
    dataset.set_epoch(2)
    sampler = CaseSampler(dataset, 4)
    order, shuffled = list(sampler), np.random.default_rng([dataset.seed, 2]).permutation(len(dataset))
    assert sorted(order) == list(range(len(dataset))) and list(sampler) == order
    for start in range(0, len(order), 4):
        step = order[start : start + 4]
        assert set(step) == set(shuffled[start : start + 4])
        lengths = dataset.report_lengths[step]
        assert (np.diff(lengths) <= 0).all()
    assert dataset.report_lengths[0] == len("".join(dataset.rows[0]["sections"]))
