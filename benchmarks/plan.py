"""The plan's terms against this CPU: training steps, longer reports, drafts and memory, predicted and measured.

    python -m benchmarks.plan --json plan.json

Every rate of the prediction is measured in the same run (`vlm.plan.measured`), none is fitted to the steps. The model
is the demo's, in fp32. Arguments that are not its own go to the config.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.train import Recipe
from vlm.cli import parse_config
from vlm.config import AugmentConfig, Config, DropoutConfig
from vlm.data.cohort import Cohort
from vlm.data.collate import Batch, Collator
from vlm.data.sources import load_cohort
from vlm.inference.engine import ReportEngine
from vlm.model.trunk import length_groups
from vlm.plan.cost import Job, Tokens
from vlm.plan.gpus import Machine
from vlm.plan.measured import measure_cpu, timed
from vlm.plan.memory import MIB
from vlm.plan.plan import Terms, pytorch_seconds
from vlm.plan.shapes import base_of, cnn_of
from vlm.training.dry_run import measure_step

Point = tuple[str, float, float, str]
"""What was measured, the prediction, the measurement, and their unit."""


def job_of(config: Config, recipe: Recipe, batch: Batch) -> Job:
    """The job with the tokens of a batch as its layers read them."""
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    reports = (batch["labels"][:, 1:] >= 0).sum(dim=1).float().mean().item()
    whole = sum(lengths) / len(lengths)
    padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in length_groups(lengths)) / len(lengths)
    fixed = recipe.model.prompt.fixed_tokens
    tokens = Tokens(fixed, whole - reports, reports, padded / whole - 1)
    return Job(config, base_of(config.model.llm), cnn_of(config.model.vision), tokens)


def step(config: Config, cohort: Cohort, repeats: int, name: str) -> Point:
    """A whole optimizer step of the config's batch."""
    recipe, train = Recipe(config, cohort, plain=False), config.train
    job = job_of(config, recipe, recipe.batches(train.micro_batch_size)[0])
    machine = measure_cpu(job.base, int(job.read_tokens(train.micro_batch_size)), config.data.image_size)
    passes = train.batch_size // train.micro_batch_size
    predicted = passes * job.micro_batch(train.micro_batch_size, machine).seconds(machine)
    predicted += job.update().seconds(machine)
    say(machine)
    return name, predicted, timed(lambda: recipe.step(train.batch_size), repeats).median, "s"


def long_reports(config: Config, cohort: Cohort, repeats: int, cases: int = 8, words: int = 128) -> list[Point]:
    """Forward and backward pass over few cases with long reports, and the memory that each case adds."""
    recipe = Recipe(config, cohort, plain=False)
    examples = [recipe.dataset[index] for index in range(cases)]
    examples = [{**example, "report": " ".join(["opacity"] * 4 * words)} for example in examples]
    collate = Collator(recipe.model.prompt, max_report_tokens=words)
    batch = collate(examples)  # type: ignore[arg-type]
    job = job_of(config, recipe, batch)
    machine = measure_cpu(job.base, int(job.read_tokens(cases)), config.data.image_size)

    def run() -> None:
        recipe.model(**batch, alpha=0.5).loss.backward()
        recipe.model.zero_grad()

    predicted = job.micro_batch(cases, machine).seconds(machine)
    memory = measure_step(recipe.model, partial(_first, collate, examples), cases)
    return [(f"{cases} cases with reports of {words} tokens", predicted, timed(run, repeats).median, "s"),
            ("memory that such a case adds", job.case_memory(machine) / MIB, memory.case / MIB, "MiB")]  # fmt: skip


def _first(collate: Collator, examples: list[Any], count: int) -> Batch:
    return collate((examples * count)[:count])


def drafts(config: Config, cohort: Cohort, repeats: int, cases: int = 32, words: int = 24) -> Point:
    """Drafts of a batch of cases, of one length: an untrained adapter takes as long as a trained one."""
    recipe = Recipe(config, cohort, plain=False)
    recipe.dataset.features = None  # a table's images pass through the CNN
    examples, engine = [recipe.dataset[index] for index in range(cases)], ReportEngine(recipe.model.eval())
    job = job_of(config, recipe, Collator(recipe.model.prompt)(examples))
    job = replace(job, config=replace(config, evaluation=replace(config.evaluation, batch_size=cases)))
    machine = measure_cpu(job.base, cases, config.data.image_size)
    predicted = cases * pytorch_seconds(job, machine, Terms(cases, 1, words), longest=1)
    run: Callable[[], object] = lambda: list(engine.draft(examples, cases, words, min_new_tokens=words))  # noqa: E731
    say(machine)
    return f"{cases} drafts of {words} tokens", predicted, timed(run, repeats).median, "s"


def say(machine: Machine) -> None:
    rates = machine.flops, machine.flops * machine.conv_share, machine.passing, machine.bandwidth
    products, convolutions, passing, memory = (rate / 1e9 for rate in rates)
    print(f"measured: {products:.0f} GFLOP/s in products, {convolutions:.0f} in convolutions, {passing:.1f} GB/s of a "
          f"step's values, {memory:.1f} of memory, {1e6 * machine.call_s:.1f} µs a launch", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments, overrides = parser.parse_known_args()
    config, _ = parse_config(["--config", arguments.config, *overrides])
    still = replace(config.data, augment=AugmentConfig(0, 0, 0, 0), dropout=DropoutConfig(0, 0, 0))
    config = replace(config, data=still, train=replace(config.train, precision="fp32"))
    vision = replace(config.model.vision, train=False, frozen_stages=0)
    frozen = replace(config, model=replace(config.model, vision=vision))
    cohort = load_cohort(config.data)
    with torch.random.fork_rng():
        points = [
            step(config, cohort, arguments.repeats, "a step, CNN trained"),
            step(frozen, cohort, arguments.repeats, "a step, CNN frozen, features kept"),
            *long_reports(config, cohort, arguments.repeats),
            drafts(config, cohort, arguments.repeats),
        ]
    print("| term | predicted | measured | off by |\n| --- | --- | --- | --- |")
    for name, predicted, measured, unit in points:
        print(f"| {name} | {predicted:.2f} {unit} | {measured:.2f} {unit} | {predicted / measured - 1:+.0%} |")
    if arguments.json:
        flat = {f"plan.{name}": {"predicted": p, "measured": m, "error": p / m - 1} for name, p, m, _ in points}
        arguments.json.write_text(json.dumps(flat, indent=2) + "\n")


if __name__ == "__main__":
    main()
