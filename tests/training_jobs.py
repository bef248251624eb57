"""Short trainings, whole and changed."""

from dataclasses import replace
from pathlib import Path

import torch

from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.training.run import build_loop, build_model
from vlm.training.run_folder import RunFolder


def trained(config: Config, resume_from: str | None = None):
    """Train without the test at the end; returns the loop."""
    folder, cohort = RunFolder(config), load_cohort(config.data)
    if resume_from is None:
        folder.create(config, cohort.fingerprint)
    model = build_model(config, cohort, torch.device("cpu"), torch.float32)
    loop = build_loop(config, model, cohort, folder)
    checkpoint = Path(resume_from) if resume_from else None
    if checkpoint:
        loop.resume(checkpoint)
    loop.run(checkpoint)
    return loop


def with_train(config: Config, name: str, **options) -> Config:
    return replace(config, run=replace(config.run, name=name), train=replace(config.train, **options))


def one_thread(config: Config) -> Config:
    return replace(config, train=replace(config.train, threads=1))
