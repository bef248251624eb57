"""The plan's terms against this CPU: training steps, longer reports, drafts and memory, predicted and measured.

    python -m benchmarks.plan --json plan.json

The model is the demo's, in fp32. Every rate of a prediction is measured in the same run (`vlm.plan.measured`), before
and after the work, and none is fitted to it. All is CPU time of one thread, which other work on the machine disturbs
least. Arguments that are not its own go to the config.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.train import Recipe
from vlm.config import AugmentConfig, Config, DropoutConfig
from vlm.config.parsing import parse_config
from vlm.data.cohort import Cohort
from vlm.data.collate import Batch, Collator
from vlm.data.ingest.sources import load_cohort
from vlm.inference.engine import ReportEngine
from vlm.model.decoder import length_groups
from vlm.plan.cost import Job, Tokens
from vlm.plan.drafting import pytorch_seconds
from vlm.plan.gpus import Machine
from vlm.plan.measured import measure_cpu, timed
from vlm.plan.shapes import base_of, cnn_of
from vlm.plan.terms import Terms
from vlm.training.dry_run import measure_step
from vlm.training.memory import MIB

CLOCK = time.process_time
Point = tuple[str, float, float, str]
"""What was measured, the prediction, the measurement, and their unit."""


def job_of(config: Config, recipe: Recipe, batch: Batch) -> Job:
    """The job with the tokens of a batch as its layers read them."""
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    reports = (batch["labels"][:, 1:] >= 0).sum(dim=1).float().mean().item()
    whole, groups = sum(lengths) / len(lengths), length_groups(lengths)
    padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in groups) / len(lengths)
    fixed = recipe.model.prompt.fixed_tokens
    tokens = Tokens(fixed, whole - reports, reports, padded / whole - 1, len(groups))
    return Job(config, base_of(config.model.llm), cnn_of(config.model.vision), tokens)


def compare(
    name: str,
    job: Job,
    rows: int,
    cases: int,
    predict: Callable[[Machine], float],
    work: Callable[[], Any],
    repeats: int,
) -> Point:
    """A prediction with the rates before the work and after it, and the work."""
    measure = partial(measure_cpu, job.base, rows, cases, round(job.tokens.whole), job.config.data.image_size, CLOCK)
    before, seconds, after = measure(), timed(work, repeats, clock=CLOCK).median, measure()
    for machine in (before, after):
        rates = (machine.flops, machine.flops * machine.attention, machine.passing, machine.large, machine.bandwidth)
        said = "{:.0f} GFLOP/s in products, {:.0f} in attention, {:.1f} GB/s of values, {:.1f} of large ones, {:.1f} of"
        print(f"{name}: {said.format(*(rate / 1e9 for rate in rates))} memory, {1e6 * machine.call_s:.1f} µs a launch")
    return name, (predict(before) + predict(after)) / 2, seconds, "s"


def step(config: Config, cohort: Cohort, repeats: int, name: str) -> Point:
    """A whole optimizer step of the config's batch."""
    recipe, train = Recipe(config, cohort, plain=False), config.train
    cases, passes = train.micro_batch_size, train.batch_size // train.micro_batch_size
    job = job_of(config, recipe, recipe.batches(cases)[0])

    def predict(machine: Machine) -> float:
        return passes * job.micro_batch(cases, machine).seconds(machine) + job.update().seconds(machine)

    rows = int(job.read_tokens(cases))
    return compare(name, job, rows, cases, predict, lambda: recipe.step(train.batch_size), repeats)


def long_reports(config: Config, cohort: Cohort, repeats: int, cases: int = 8, words: int = 128) -> list[Point]:
    """Forward and backward pass over few cases with long reports, and the memory that each case adds."""
    recipe = Recipe(config, cohort, plain=False)
    examples = [recipe.dataset[index] for index in range(cases)]
    examples = [{**example, "report": " ".join(["opacity"] * 4 * words)} for example in examples]
    collate = Collator(recipe.model.prompt, max_report_tokens=words)
    batch = collate(examples)  # type: ignore[arg-type]
    job = job_of(config, recipe, batch)

    def run() -> None:
        recipe.model(**batch, alpha=0.5).loss.backward()
        recipe.model.zero_grad()

    name, rows = f"{cases} cases with reports of {words} tokens", int(job.read_tokens(cases))
    time_of = compare(name, job, rows, cases, lambda m: job.micro_batch(cases, m).seconds(m), run, repeats)
    memory = measure_step(recipe.model, lambda count: collate((examples * count)[:count]), cases)  # type: ignore[arg-type]
    on_paper = job.case_memory(measure_cpu(job.base, 1, 1, 8, 32))
    return [time_of, ("memory that such a case adds", on_paper / MIB, memory.case / MIB, "MiB")]


def drafts(config: Config, cohort: Cohort, repeats: int, cases: int = 32, words: int = 24) -> Point:
    """Drafts of a batch of cases; an untrained adapter takes as long as a trained one."""
    recipe = Recipe(config, cohort, plain=False)
    recipe.dataset.features = None  # a table's images pass through the CNN
    examples, engine = [recipe.dataset[index] for index in range(cases)], ReportEngine(recipe.model.eval())
    job = job_of(config, recipe, Collator(recipe.model.prompt)(examples))
    job = replace(job, config=replace(config, evaluation=replace(config.evaluation, batch_size=cases)))
    texts = [draft.text for draft in engine.draft(examples, cases, words)]
    longest = min(words, 1 + max(len(recipe.model.prompt.encode_text(text)) for text in texts))
    terms = Terms(cases, 1, longest)
    predict = lambda machine: cases * pytorch_seconds(job, machine, terms, longest=1)  # noqa: E731
    name = f"{cases} drafts of {longest} tokens"
    return compare(name, job, cases, cases, predict, lambda: list(engine.draft(examples, cases, words)), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments, overrides = parser.parse_known_args()
    torch.set_num_threads(1)
    config, _ = parse_config(["--config", arguments.config, *overrides])
    still = replace(config.data, augment=AugmentConfig(0, 0, 0, 0), dropout=DropoutConfig(0, 0, 0))
    config = replace(config, data=still, train=replace(config.train, precision="fp32"))
    vision = replace(config.model.vision, train=False, frozen_stages=0)
    frozen = replace(config, model=replace(config.model, vision=vision))
    cohort = load_cohort(config.data)
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
