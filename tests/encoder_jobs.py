"""Jobs of the tests on another image encoder: the model, a batch for it, and all that a family must do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.conftest import public
from vlm.adapter import load, save
from vlm.config import Config, DropoutConfig, VisionConfig
from vlm.data.collate import Collator
from vlm.data.ingest.sources import load_cohort
from vlm.inference.engine import ReportEngine
from vlm.training.run import build_model, case_dataset

CPU = torch.device("cpu")


def job(config: Config, size: int, **vision: Any) -> Config:
    """`tiny_config` with another encoder, nothing dropped out."""
    data = replace(config.data, image_size=size, dropout=DropoutConfig(0, 0, 0))
    given = VisionConfig(**{"weights": "pretrained", "grid": 2, "summary_grid": 1, **vision})
    return replace(config, data=data, model=replace(config.model, vision=given))


def built(config: Config) -> Any:
    return public(build_model(config, load_cohort(config.data), CPU, torch.float32))


def batch_of(config: Config, model: Any, count: int = 4) -> Any:
    dataset = case_dataset(config, model.spec, load_cohort(config.data), "train")
    return Collator(model.prompt)([dataset[index] for index in range(count)])


def check_family(config: Config, folder: Path) -> None:
    """Train a step, compare cached features with pixels, save, load and draft."""
    model = built(config)
    batch = batch_of(config, model)
    model.train()
    model(**batch).loss.backward()
    ours = dict(model.vision.cnn.named_parameters())
    trained = {name for name, value in ours.items() if value.requires_grad}
    assert trained and all(ours[name].grad is not None and ours[name].grad.isfinite().all() for name in trained)
    assert sum(bool(ours[name].grad.any()) for name in trained) > len(trained) / 4  # some start behind a gain of 0
    assert all(ours[name].grad is None for name in ours.keys() - trained)
    model.eval()
    with torch.no_grad():
        pixels, there = batch["pixel_values"], batch["has_image"]
        kept = model.vision.features(pixels)
        for seen, known in zip(model.vision(pixels, there), model.vision(kept, there), strict=True):
            torch.testing.assert_close(seen, known)
        alone = torch.cat([model.vision.features(image[None]) for image in pixels])
        torch.testing.assert_close(alone, kept, rtol=1e-3, atol=1e-4)
    again = load(save(model, folder / "adapter"), device=CPU, dtype=torch.float32)
    state, loaded = model.state_dict(), again.state_dict()
    assert state.keys() == loaded.keys() and all(torch.equal(state[name], loaded[name]) for name in state)
    picture = str(next((Path(config.data.root) / "images").glob("*.png")))
    cases = [(picture, {"glucose": 7.0}), (None, {})]
    first, second = (ReportEngine(one).predict(cases, max_new_tokens=4) for one in (model, again))
    assert [(r.text, r.probabilities) for r in first] == [(r.text, r.probabilities) for r in second]
