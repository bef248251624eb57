"""Cost of the images of a study: training steps and drafts with one image and with five, in turn on the same machine.

    python -m benchmarks.study --json study.json

The same reports and vitals; made-up pictures. "One, plain" is a model of one image, "one, study" a model of studies
that gets one image in the same role for every case and must cost the same; "five" gets five. The encoder trains in the
first table and its features are computed before in the second, as a run with a frozen encoder does.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import Timing, in_turn
from vlm.config import Config
from vlm.config.parsing import parse_config
from vlm.data.case import CaseSpec, Example, make_example
from vlm.data.collate import Collator
from vlm.data.ingest.sources import load_cohort
from vlm.data.study import StudyPicture, StudySpec
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.run import build_model

CPU = torch.device("cpu")
VIEWS = ("PA", "lateral")
DRAFTED = 40
"""Tokens of a draft."""
REPORT = "Patchy opacities in the left lower zone. Glucose is elevated. Blood pressure is normal."
ROLES = (("PA", False, 0.0), ("lateral", False, 0.0), ("lateral", False, 0.0), ("PA", True, 30.0), ("PA", True, 90.0))


def models_of(config: Config) -> tuple[ClinicalVLM, ClinicalVLM]:
    """Build a model of one image and one of studies, whose cases all have the only expected role."""
    plain = build_model(config, load_cohort(config.data), CPU, torch.float32)
    spec = replace(plain.spec, study=StudySpec(5, VIEWS, ("PA",)))
    return plain, ClinicalVLM.from_config(config.model, spec, CPU, torch.float32)


def examples_of(spec: CaseSpec, count: int, images: int) -> list[Example]:
    """Make cases of so many images, with one report and the vitals at their training median."""
    rng, vitals = np.random.default_rng(0), np.array(spec.statistics.centre)
    size = spec.image.size

    def study() -> list[StudyPicture]:
        squares = rng.integers(0, 256, (images, size, size), dtype=np.uint8)
        return [StudyPicture(square, *role) for square, role in zip(squares, ROLES, strict=False)]

    return [make_example(spec, study(), vitals, report=REPORT) for _ in range(count)]


def step_of(model: ClinicalVLM, images: int, cases: int, features: bool) -> Callable[[], object]:
    """Make a training step without the optimizer; with `features` the encoder's work is done before."""
    shown: dict[str, Any] = {**Collator(model.prompt)(examples_of(model.spec, cases, images))}
    if features:
        with torch.no_grad():
            shown["pixel_values"] = model.vision.features(shown["pixel_values"])

    def learn() -> None:
        model.train()(**shown, alpha=0.5).loss.backward()
        model.zero_grad(set_to_none=True)

    return learn


def drafts_of(model: ClinicalVLM, images: int, cases: int) -> Callable[[], object]:
    """Make a batch of drafts of equal length."""
    batch = Collator(model.prompt, generation=True)(examples_of(model.spec, cases, images))

    def draft() -> None:
        model.eval().generate(batch, DRAFTED, model.prefix_kv_cache(), min_new_tokens=DRAFTED)

    return draft


def measure(config: Config, cases: int, rounds: int) -> dict[str, Any]:
    """Time steps and drafts of the three kinds in turn; returns medians and their ratios to one image."""
    plain, study = models_of(config)
    kinds = {"one, plain": (plain, 1), "one, study": (study, 1), "five": (study, 5)}
    found: dict[str, Any] = {}
    for title, features in (("step, encoder trains", False), ("step, features kept", True)):
        steps = {name: step_of(model, images, cases, features) for name, (model, images) in kinds.items()}
        found[title] = ratios(in_turn(steps, rounds))
    drafts = {name: drafts_of(model, images, cases) for name, (model, images) in kinds.items()}
    return found | {f"drafts of {DRAFTED} tokens": ratios(in_turn(drafts, rounds))}


def ratios(timings: dict[str, Timing]) -> dict[str, Any]:
    """Return seconds and the ratio to one image of a plain model."""
    base = timings["one, plain"]
    return {name: {"seconds": timing.median, "ratio": timing.median / base.median} for name, timing in timings.items()}


def main() -> None:
    """Run the benchmark; other arguments go to the config."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=8, help="cases of a batch")
    parser.add_argument("--rounds", type=int, default=5, help="times that each takes its turn")
    parser.add_argument("--json", type=Path, help="file of the results")
    own, rest = parser.parse_known_args()
    config, _ = parse_config(rest or ["--config", "configs/demo.yaml"])
    found = measure(config, own.cases, own.rounds)
    for title, kinds in found.items():
        print(title)
        for name, values in kinds.items():
            print(f"  {name:<12} {values['seconds']:7.3f} s  {values['ratio']:.2f}")
    if own.json:
        own.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
