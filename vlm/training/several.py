"""Train one config with several seeds, or on several folds of the patients, one run after another; pool the results."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vlm.config import Config
from vlm.distributed import log_rank0, world_size
from vlm.errors import UserError
from vlm.evaluation.pooled import pool_runs, write_pooled
from vlm.training.run import train

MOST_RUNS = 100


def train_several(config: Config, seeds: int = 1, folds: int = 0, resume: bool = False) -> Path:
    """Train and test each run, then write their pooled measures; returns the folder of these.

    With `resume` a run that was tested is kept, one that was begun goes on, and the others start. Raises `UserError`
    as `train` does, and for numbers that make no several runs.
    """
    if world_size() > 1:
        raise UserError("--seeds and --folds: one run follows another in one process; start them without accelerate")
    configs = list(runs_of(config, seeds, folds))
    folders = []
    for number, one in enumerate(configs, start=1):
        folder = Path(one.run.folder) / one.run.name
        log_rank0(f"run {number} of {len(configs)}: {folder}")
        if not (resume and (folder / "metrics.json").is_file()):
            train(one, resume and (folder / "config.yaml").is_file())
        folders.append(folder)
        gc.collect()  # the model of a run is large, and has circles
    pooled = Path(config.run.folder) / f"{config.run.name}-pooled"
    lines = write_pooled(pool_runs(folders, config.evaluation.bootstrap_draws), pooled, config.run.name)
    log_rank0(*lines)
    return pooled


def runs_of(config: Config, seeds: int, folds: int) -> Iterator[Config]:
    """Yield the config of each run, in a folder of its own."""
    if seeds < 1 or seeds > MOST_RUNS or folds == 1 or not 0 <= folds <= MOST_RUNS:
        raise UserError(f"--seeds: 1 to {MOST_RUNS}; --folds: 2 to {MOST_RUNS}")
    if folds and seeds > 1:
        raise UserError("--seeds and --folds: choose one; the folds have seeds of their own")
    if folds and config.data.table.split:
        raise UserError("--folds: the table has a fixed split; leave data.table.split away")
    for number in range(folds or seeds):
        name = f"{config.run.name}-{'fold' if folds else 'seed'}{number}"
        split = replace(config.data.split, folds=folds, fold=number) if folds else config.data.split
        yield replace(
            config,
            run=replace(config.run, name=name),
            data=replace(config.data, split=split),
            train=replace(config.train, seed=config.train.seed + number),
        )
