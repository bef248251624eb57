"""How the time and the memory of a training step grow with the batch, the report's length and the image tokens.

    python -m benchmarks.scale --json scale.json --figure benchmarks/growth.png

Each point is one forward and backward pass of the demo's model over real cases; a straight line is fitted to each
row of points, and how far the worst of them is from it is said. Growth with the number of rows is in
`benchmarks.loader`. The dry run's prediction is compared with the step it predicts.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import micro_batch, timed
from vlm.config import Config
from vlm.config.parsing import parse_config
from vlm.data.cohort import Cohort
from vlm.data.collate import Batch, Collator
from vlm.data.ingest.sources import load_cohort
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.dry_run import measure_step, step_peak
from vlm.training.micro_batch import longest_cases
from vlm.training.monitor.throughput import MIB
from vlm.training.run import build_model, case_dataset

BATCHES, REPORTS, GRIDS = (4, 8, 16, 32), (16, 64, 128, 256), (2, 4, 6, 8)
CASES = 8
"""Cases in a step where it is not their number that grows."""


def model_of(config: Config, cohort: Cohort, grid: int) -> ClinicalVLM:
    vision = replace(config.model.vision, grid=grid)
    changed = replace(config, model=replace(config.model, vision=vision))
    return build_model(changed, cohort, torch.device("cpu"), torch.float32).train()


def batch_of(model: ClinicalVLM, config: Config, cohort: Cohort, cases: int, report: int | None = None) -> Batch:
    """Training cases; with reports of so many tokens, where a number is given."""
    dataset = case_dataset(config, model.spec, cohort, "train")
    examples = [dataset[index] for index in range(cases)]
    if report:
        words = " ".join(["opacity"] * 4 * report)
        examples = [{**example, "report": words} for example in examples]
    return Collator(model.prompt, max_report_tokens=report or 1024)(examples)


def point(model: ClinicalVLM, batch: Batch) -> tuple[float, float]:
    """Seconds and MiB of one forward and backward pass."""

    def step() -> None:
        model(**batch, alpha=0.5).loss.backward()
        model.zero_grad()

    return timed(step, repeats=2).median, step_peak(model, batch) / MIB


def line_error(x: np.ndarray, y: np.ndarray) -> float:
    """The largest distance of a point from the straight line through all, as a share of the largest value."""
    fitted = np.polyval(np.polyfit(x, y, 1), x)
    return float(np.abs(fitted - y).max() / np.abs(y).max())


def measure(config: Config, cohort: Cohort) -> dict[str, list[tuple[int, float, float]]]:
    """Name of what grows → (its value, seconds, MiB) of each point."""
    model = model_of(config, cohort, config.model.vision.grid)
    rows = {
        "batch": [(n, *point(model, batch_of(model, config, cohort, n))) for n in BATCHES],
        "report_tokens": [(n, *point(model, batch_of(model, config, cohort, CASES, n))) for n in REPORTS],
        "image_tokens": [],
    }
    for grid in GRIDS:
        other = model_of(config, cohort, grid)
        rows["image_tokens"].append((grid**2, *point(other, batch_of(other, config, cohort, CASES))))
    return rows


def dry_run_error(config: Config, cohort: Cohort) -> float:
    """How far the predicted peak of the demo's batch is from the measured one, as a share of it."""
    model, cases = model_of(config, cohort, config.model.vision.grid), micro_batch(config.train)
    batches = longest_cases(model, case_dataset(config, model.spec, cohort, "train"))
    memory = measure_step(model, batches, cases)
    predicted = memory.peak(cases) - memory.weights - memory.training * 2 / 3
    return abs(predicted / step_peak(model, batches(cases)) - 1)


def draw(rows: dict[str, list[tuple[int, float, float]]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(rows), figsize=(10, 5), sharex="col", layout="constrained")
    for column, (name, points) in enumerate(rows.items()):
        x, seconds, memory = (np.array(values, dtype=float) for values in zip(*points, strict=True))
        for axis, y, unit in ((axes[0, column], seconds, "seconds a step"), (axes[1, column], memory, "MiB a step")):
            axis.plot(x, y, "o", color="#1f4e79")
            axis.plot(x, np.polyval(np.polyfit(x, y, 1), x), color="#c55a11", linewidth=1)
            axis.set_ylim(0, 1.08 * y.max())
            axis.set_ylabel(unit if column == 0 else "")
        axes[1, column].set_xlabel(name.replace("_", " "))
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--figure", type=Path, help="file for the figure")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments = parser.parse_args()
    config, _ = parse_config(["--config", arguments.config])
    cohort = load_cohort(config.data)
    rows = measure(config, cohort)
    flat: dict[str, Any] = {}
    print("| what grows | values | seconds | MiB | off the line: seconds | MiB |\n" + "| --- " * 6 + "|")
    for name, points in rows.items():
        x, seconds, memory = (np.array(values, dtype=float) for values in zip(*points, strict=True))
        off = line_error(x, seconds), line_error(x, memory)
        cells: list[Any] = [" ".join(f"{v:{form}}" for v in values)
                            for values, form in ((x, ".0f"), (seconds, ".2f"), (memory, ".0f"))]  # fmt: skip
        print(f"| {name.replace('_', ' ')} | {' | '.join(cells)} | {off[0]:.0%} | {off[1]:.0%} |")
        flat |= {f"scale.{name}_seconds_off_line": off[0], f"scale.{name}_memory_off_line": off[1]}
    flat["dry_run.memory_error"] = dry_run_error(config, cohort)
    print(f"dry run: predicted peak off by {flat['dry_run.memory_error']:.1%}")
    if arguments.figure:
        draw(rows, arguments.figure)
    if arguments.json:
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
