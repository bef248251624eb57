"""Manage `runs/NAME/`, the folder of a run."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

from vlm.atomic import make_folder, remove_folder, remove_leftovers, replace_file, verify_manifest, writing
from vlm.config import Config
from vlm.config.parsing import dotted, to_yaml
from vlm.config.renamed import rename_keys
from vlm.config.strict import with_defaults
from vlm.errors import UserError
from vlm.locks import LockHeld, acquire, record_lock_holder, try_record_lock
from vlm.untrusted import read_yaml

CHECKPOINT_FILES = (
    "trainable.safetensors", "optimizer.safetensors", "optimizer.json", "scheduler.json", "processes.safetensors",
    "trainer_state.json",
)  # fmt: skip
"""Files of a checkpoint beside its manifest; see `vlm.training.checkpoints`."""


class RunFolder:
    """Paths, lock and checks of one run's folder."""

    def __init__(self, config: Config) -> None:
        self.path = Path(config.run.folder) / config.run.name
        self.config = self.path / "config.yaml"
        self.cases = self.path / "cases.sha256"
        self.log = self.path / "log.jsonl"
        self.metrics = self.path / "metrics.json"
        self.predictions = self.path / "predictions.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.figures = self.path / "figures"
        self.adapter = self.path / "adapter"
        self.lock = self.path / ".lock"
        self.warnings: list[str] = []
        """Problems found by `check` and `locked` that do not stop the run."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other runs within the block; raises `UserError` if another run holds it.

        It is a record lock: the system releases it however the process ends. The data loader workers, which may
        outlive the process for seconds, do not hold it.
        """
        with self._hold():
            try:
                yield
            finally:
                with suppress(FileNotFoundError):  # someone deleted it meanwhile
                    if list(self.path.iterdir()) == [self.lock]:  # the run failed before it wrote anything
                        self.lock.unlink()
                        self.path.rmdir()

    def _hold(self) -> IO[Any]:
        """Lock the folder; closing the file releases the lock."""
        try:
            return acquire(self.lock, self._take)
        except LockHeld as held:
            way_out = "wait for it, or name another run with --run.name"
            raise UserError(f"{self.path}: {held} is writing this run; {way_out}") from None

    def _take(self, file: IO[Any]) -> bool:
        try:
            return try_record_lock(file)
        except OSError as error:
            self.warnings.append(f"{self.path}: cannot be locked ({error.strerror}); start no second run in it")
            return True

    def check(self, config: Config, cases: str, resume: bool, contents: str = "") -> Path | None:
        """Check whether the run may start; changes nothing. Returns the checkpoint to resume from.

        `cases` is the fingerprint of the cases and their split, `contents` the fingerprint of their contents. Raises
        `UserError` if the folder holds an earlier run and neither `--resume` nor `run.overwrite` was given, or if
        there is nothing that this config can resume.
        """
        if resume:
            return self._newest_checkpoint(config, cases, contents)
        files = [path for path in self.path.rglob("[!.]*") if path.is_file()]  # hidden: lock, leftover temporaries
        if files and not config.run.overwrite:
            raise UserError(
                f"{self.path}: holds an earlier run; go on with --resume, name another with --run.name, "
                "or delete it with --run.overwrite true"
            )
        if files and not self.config.is_file():
            raise UserError(f"{self.path}: has files but no config.yaml, so it is no run; it is not overwritten")
        return None

    def create(self, config: Config, cases: str, resume: bool = False, contents: str = "", base: str = "") -> None:
        """Create the folder, replacing an earlier run, and write the resolved config and the fingerprints."""
        with writing(self.path):
            make_folder(self.path)
            if not resume:
                self._clear()
            replace_file(self.config, to_yaml(config))  # first: a folder without a config is never overwritten
            replace_file(self.cases, f"{cases}\n{contents}\n{base}".rstrip() + "\n")
            for folder in (self.figures, self.checkpoints):
                make_folder(folder)
            remove_leftovers(self.checkpoints)

    def _clear(self) -> None:
        """Delete an earlier run: first all its checkpoints at once, so that none of them is ever resumed."""
        if self.checkpoints.is_dir():
            remove_folder(self.checkpoints)
        for path in set(self.path.iterdir()) - {self.lock, self.config}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _newest_checkpoint(self, config: Config, cases: str, contents: str) -> Path | None:
        """Find the newest valid checkpoint; None if the run has none yet. Adds the broken ones to `warnings`."""
        steps = checkpoints_of(self.checkpoints)
        if not self.config.is_file() or (steps and not self.cases.is_file()):
            raise UserError(f"{self.path}: no checkpoint to resume from; leave --resume away to start the run")
        values = read_yaml(self.config, "the run's config")
        rename_keys(values, str(self.config))
        values.setdefault("data", {}).setdefault("color", "grey")  # earlier versions knew no other
        now = dotted(yaml.safe_load(to_yaml(config)))
        before = dotted(with_defaults(Config, values))  # an earlier version had fewer options
        for key in before.keys() | now.keys():
            if before.get(key) != now.get(key) and not (key.startswith(MAY_CHANGE) or MAY_MOVE.fullmatch(key)):
                raise UserError(
                    f"{key}: was {before.get(key)} when {self.path} began, is {now.get(key)}; a resumed run keeps it"
                )
        self._compare_cases(cases, contents)
        checkpoint, broken = newest_whole(self.checkpoints)
        self.warnings += [f"a checkpoint is not whole and is passed over: {line}" for line in broken]
        if steps and not checkpoint:
            raise UserError(f"{self.path}: no whole checkpoint to resume from; {broken[0]}")
        if not steps:
            self.warnings.append(f"{self.path}: no checkpoint was written yet, so the run starts at its first step")
        return checkpoint

    def compare_base(self, base: str) -> None:
        """Raise `UserError` unless the base has the digests with which the run began."""
        known = self._began_with()[2:], base.split()  # an earlier version wrote fewer
        for what, began, now in zip(("weights", "config or tokenizer"), *known, strict=False):
            if began != now:
                way_out = "put them back, or start a new run"
                raise UserError(f"{self.path}: the {what} of the base changed since the run began; {way_out}")

    def _began_with(self) -> list[str]:
        """Read the fingerprints of the cases, their contents and the base; an earlier version wrote fewer."""
        return self.cases.read_text(encoding="utf-8").split() if self.cases.is_file() else []

    def _compare_cases(self, cases: str, contents: str) -> None:
        """Raise `UserError` unless the cases have the fingerprints with which the run began."""
        began = self._began_with()
        if began and began[0] != cases:
            raise UserError(f"{self.path}: the cases or their split changed since the run began; start a new run")
        if len(began) == 1 and contents:
            what = "whether reports, labels, vitals and images are as they were cannot be checked"
            self.warnings.append(f"{self.path}: begun by an earlier version; {what}")
        elif len(began) > 1 and contents and began[1] != contents:
            what = "reports, labels, vitals, contexts or images changed under the same ids"
            raise UserError(f"{self.path}: {what} since the run began; start a new run")


def newest_whole(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that matches its manifest, and the error of each broken one after it."""
    broken: list[str] = []
    for step in checkpoints_of(checkpoints):
        checkpoint = checkpoint_folder(checkpoints, step)
        try:
            verify_manifest(checkpoint, CHECKPOINT_FILES)
            return checkpoint, broken
        except UserError as error:
            broken.append(str(error))
    return None, broken


def writer_of(lock: Path) -> str | None:
    """Describe the process that holds a run's lock file; None if none does."""
    return record_lock_holder(lock)


def checkpoints_of(folder: Path) -> list[int]:
    """List the steps of the checkpoints in a folder, valid or broken, the newest first."""
    found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*"))
    return sorted((int(match[1]) for match in found if match), reverse=True)


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return checkpoints / f"checkpoint-{step}"


MAY_CHANGE = (
    "run.", "evaluation.", "train.max_steps", "train.epochs", "train.micro_batch_size", "train.workers",
    "train.threads", "train.log_steps", "train.eval_steps", "train.patience", "train.keep_checkpoints",
    "train.report_to", "train.attention", "train.packing", "train.liger", "train.compile",
)  # fmt: skip
"""Options that a resumed run may change: none affects the steps already made."""
MAY_MOVE = re.compile(r"data\.(sources\.\d+\.)?(root|mimic_cxr\.(reports|ed))")
"""Folder options that a resumed run may change; the fingerprints check that the cases are the same."""


def read_log(file: Path) -> list[dict[str, Any]]:
    """Read all rows of a log.jsonl; none if the file is missing. Skips a last row cut off by a crash."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines) - 1:
                raise UserError(f"{file}: line {number + 1} is no JSON") from None
    return rows
