"""A cut of the demo on its real base, in minutes: floors that a change which makes a worse model would fall below."""

import json
from pathlib import Path

import pytest

from vlm.config.parsing import load_config
from vlm.training.run import train

CUT = {
    "data.phantom.cases": 600,
    "data.split.test": 0.15,
    "loss.head_only_steps": 80,
    "train.max_steps": 124,
    "train.eval_steps": 124,
    "train.threads": 1,
    "evaluation.ablation": False,
    "evaluation.sentence_cases": 0,
    "evaluation.bootstrap_draws": 100,
}
IMAGE_FACTS, VITALS_FACTS, AUROC, TEXT_LOSS = 0.8, 0.95, 0.98, 0.08
"""Floors of the shares of drafts with all facts right and of the AUROC of pathology; ceiling of nats a token."""


@pytest.mark.slow
def test_a_cut_of_the_demo_reads_image_and_vitals_of_unseen_cases(tmp_path: Path) -> None:
    folders = {"run.folder": str(tmp_path / "runs"), "data.root": str(tmp_path / "phantom")}
    run = train(load_config("demo", {**CUT, **folders}))
    metrics = json.loads((run / "metrics.json").read_text())
    facts = metrics["facts"]["as_given"]
    found = {
        "image": facts["image_facts_right"]["value"],
        "vitals": facts["vitals_facts_right"]["value"],
        "auroc": metrics["labels"]["pathology"]["auroc"]["value"],
        "text loss": metrics["text_loss"]["value"],
    }
    assert metrics["cases"] > 70, found
    assert found["image"] >= IMAGE_FACTS and found["vitals"] >= VITALS_FACTS, found
    assert found["auroc"] >= AUROC and found["text loss"] <= TEXT_LOSS, found
