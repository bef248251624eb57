"""What training must reach: a model of minutes reads image and vitals of cases it never saw, by floors that hold."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from tests.conftest import tiny_model_config
from vlm.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    RunConfig,
    SectionConfig,
    SplitConfig,
    TableConfig,
    TrainConfig,
    VitalConfig,
)
from vlm.training.run import train

REPORTS = {
    "none": "No opacity in either lung.",
    "left": "Patchy opacities in the left lower zone.",
    "right": "Mild infiltration in the right upper zone.",
}
CASES, TESTED = 360, 72
AUROC, FINDINGS, NUMBERS = 0.9, 0.8, 0.65
"""Floors: what the head ranks, F1 of the findings written, share of the statements on glucose that fit."""


def draw(kind: str, rng: np.random.Generator) -> np.ndarray:
    """32 × 32: noise, and a bright disc at the bottom of one half or the top of the other."""
    picture = rng.normal(70, 15, (32, 32))
    column, row = (8, 23) if kind == "left" else (23, 8)
    if kind != "none":
        centre = (column + int(rng.integers(-2, 3)), row + int(rng.integers(-2, 3)))
        cv2.circle(picture, centre, int(rng.integers(5, 7)), 200 + float(rng.normal(0, 10)), -1)
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_cases(root: Path, seed: int, shuffled: bool) -> None:
    """A table of drawn images and glucose; `shuffled` gives each case the image of another."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    kinds = [list(REPORTS)[number % 3] for number in range(CASES)]
    shown = rng.permutation(kinds) if shuffled else kinds
    lines = ["case,image,glucose,opacity,findings,chemistry,split"]
    for number, kind in enumerate(kinds):
        cv2.imwrite(str(root / "images" / f"{number}.png"), draw(shown[number], rng))
        elevated = bool(rng.random() < 0.5)
        glucose = rng.uniform(9, 14) if elevated else rng.uniform(4.2, 7.2)
        split = "test" if number < TESTED else "validation" if number < TESTED + 36 else "train"
        level = "elevated" if elevated else "normal"
        lines.append(f"c{number},{number}.png,{glucose:.1f},{int(kind != 'none')},{REPORTS[kind]},"
                     f"Glucose is {level}.,{split}")  # fmt: skip
    (root / "cases.csv").write_text("\n".join(lines) + "\n")


def measured(tiny_llm: str, folder: Path, seed: int, shuffled: bool = False) -> dict[str, float]:
    """Train and test; returns AUROC, finding F1 and share of right statements on the unseen cases."""
    write_cases(folder / "data", seed, shuffled)
    table = TableConfig(
        images="images", id="case", split="split", labels=["opacity"],
        vitals=[VitalConfig("glucose", "mmol/L", plausible=[1, 50], reference=[3.9, 7.8])],
        report=[SectionConfig("findings", ["image"]), SectionConfig("chemistry", ["glucose"])],
    )  # fmt: skip
    model = tiny_model_config(tiny_llm)
    config = Config(
        run=RunConfig(name="run", folder=str(folder)),
        data=DataConfig(source="table", root=str(folder / "data"), image_size=32, table=table, split=SplitConfig()),
        model=replace(model, llm=replace(model.llm, lora_rank=8, lora_targets=["all-linear"])),
        loss=LossConfig(alpha=0.3, head_only_steps=40),
        train=TrainConfig(
            max_steps=240, batch_size=16, micro_batch_size=16, log_steps=40, eval_steps=40, warmup_steps=10,
            learning_rate=3e-3, lora_learning_rate=3e-3, vision_learning_rate=3e-3, precision="fp32", threads=1,
            seed=seed,
        ),
        evaluation=EvaluationConfig(batch_size=36, max_new_tokens=40, bootstrap_draws=0, ablation=False),
    )  # fmt: skip
    threads = torch.get_num_threads()
    try:
        metrics = json.loads((train(config) / "metrics.json").read_text())
    finally:
        torch.set_num_threads(threads)
    return {
        "auroc": metrics["labels"]["opacity"]["auroc"]["value"],
        "findings": metrics["findings"]["f1"]["value"],
        "numbers": metrics["numbers"]["consistent"]["value"] or 0.0,
        "side_flips": metrics["findings"]["side_flip_rate"]["value"],
    }


def test_a_trained_model_reads_what_it_is_shown(tiny_llm: str, tmp_path: Path) -> None:
    found = measured(tiny_llm, tmp_path, seed=0)
    assert found["auroc"] > AUROC and found["findings"] > FINDINGS and found["numbers"] > NUMBERS, found


def test_the_floors_cannot_be_reached_without_the_images(tiny_llm: str, tmp_path: Path) -> None:
    found = measured(tiny_llm, tmp_path, seed=0, shuffled=True)
    assert found["auroc"] < AUROC - 0.15 and found["findings"] < FINDINGS - 0.05, found
