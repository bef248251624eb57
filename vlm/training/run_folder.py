"""`runs/NAME/`: the files of a run."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from vlm.atomic import make_folder, remove_folder, replace_file, sweep, verify, writing
from vlm.config import Config
from vlm.config.parsing import dotted, to_yaml
from vlm.config.renamed import rename_keys
from vlm.errors import UserError
from vlm.locks import Held, hold, holder_of, take_record
from vlm.untrusted import read_yaml

CHECKPOINT_FILES = (
    "trainable.safetensors", "optimizer.safetensors", "optimizer.json", "scheduler.json", "processes.safetensors",
    "trainer_state.json",
)  # fmt: skip
"""What a checkpoint holds beside its manifest; see `vlm.training.checkpoints`."""


class RunFolder:
    """Paths of one run."""

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
        """What `check` and `locked` found that does not keep the run from starting."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder while the block runs; raises `UserError` if one is in it.

        A record lock: the system takes it back however the process ends, and the children that read images, which
        may outlive it for seconds, do not hold it.
        """
        with self._hold():
            try:
                yield
            finally:
                if list(self.path.iterdir()) == [self.lock]:  # a mistake was found before anything was written
                    self.lock.unlink()
                    self.path.rmdir()

    def _hold(self) -> IO[Any]:
        """Lock the folder; closing the file gives the lock back."""
        try:
            return hold(self.lock, self._take)
        except Held as held:
            way_out = "wait for it, or name another run with --run.name"
            raise UserError(f"{self.path}: {held} is writing this run; {way_out}") from None

    def _take(self, file: IO[Any]) -> bool:
        try:
            return take_record(file)
        except OSError as error:
            self.warnings.append(f"{self.path}: cannot be locked ({error.strerror}); start no second run in it")
            return True

    def check(self, config: Config, cases: str, resume: bool, contents: str = "") -> Path | None:
        """Whether the run may start; changes nothing. Returns the checkpoint to resume from.

        `cases` is the fingerprint of the cases and their split, `contents` that of all they hold. Raises `UserError`
        if an earlier run is there and neither `--resume` nor `run.overwrite` was given, or if there is nothing that
        this config can resume.
        """
        if resume:
            return self._newest_checkpoint(config, cases, contents)
        files = [path for path in self.path.rglob("[!.]*") if path.is_file()]  # hidden: the lock, and what deaths left
        if files and not config.run.overwrite:
            raise UserError(
                f"{self.path}: holds an earlier run; go on with --resume, name another with --run.name, "
                "or delete it with --run.overwrite true"
            )
        if files and not self.config.is_file():
            raise UserError(f"{self.path}: has files but no config.yaml, so it is no run; it is not overwritten")
        return None

    def create(self, config: Config, cases: str, resume: bool = False, contents: str = "", base: str = "") -> None:
        """Make the folder, in place of an earlier run, and write the resolved config and what the run is made from."""
        with writing(self.path):
            make_folder(self.path)
            if not resume:
                self._clear()
            replace_file(self.config, to_yaml(config))  # first: what has no config is no run, and is not overwritten
            replace_file(self.cases, f"{cases}\n{contents}\n{base}".rstrip() + "\n")
            for folder in (self.figures, self.checkpoints):
                make_folder(folder)
            sweep(self.checkpoints)

    def _clear(self) -> None:
        """Delete an earlier run: its checkpoints first and at once, so that none of them is ever resumed."""
        if self.checkpoints.is_dir():
            remove_folder(self.checkpoints)
        for path in set(self.path.iterdir()) - {self.lock, self.config}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _newest_checkpoint(self, config: Config, cases: str, contents: str) -> Path | None:
        """The newest whole checkpoint; None if the run began and has none yet. The broken ones are in `warnings`."""
        steps = checkpoints_of(self.checkpoints)
        if not self.config.is_file() or (steps and not self.cases.is_file()):
            raise UserError(f"{self.path}: no checkpoint to resume from; leave --resume away to start the run")
        now, defaults = (dotted(yaml.safe_load(to_yaml(values))) for values in (config, Config()))
        values = read_yaml(self.config, "the run's config")
        rename_keys(values, str(self.config))
        written = dotted(values)
        before = {key: defaults.get(key) for key in now} | written  # an earlier version had fewer options
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
        """Raise `UserError` unless the digests of the base are those of the base which the run began with."""
        known = self._began_with()[2:], base.split()  # fewer of an earlier version
        for what, began, now in zip(("weights", "config or tokenizer"), *known, strict=False):
            if began != now:
                way_out = "put them back, or start a new run"
                raise UserError(f"{self.path}: the {what} of the base changed since the run began; {way_out}")

    def _began_with(self) -> list[str]:
        """Fingerprints of the cases, of their contents and of the base; fewer in a run of an earlier version."""
        return self.cases.read_text(encoding="utf-8").split() if self.cases.is_file() else []

    def _compare_cases(self, cases: str, contents: str) -> None:
        """Raise `UserError` unless the cases are those that the run began with."""
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
    """The newest checkpoint that is what was written, and what is wrong with each one after it."""
    broken: list[str] = []
    for step in checkpoints_of(checkpoints):
        checkpoint = checkpoint_folder(checkpoints, step)
        try:
            verify(checkpoint, CHECKPOINT_FILES)
            return checkpoint, broken
        except UserError as error:
            broken.append(str(error))
    return None, broken


def writer_of(lock: Path) -> str | None:
    """What a run's lock file says of the process that holds it; None if none does."""
    return holder_of(lock)


def checkpoints_of(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, whole or not, the newest first."""
    found = (re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*"))
    return sorted((int(match[1]) for match in found if match), reverse=True)


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"checkpoint-{step}"


MAY_CHANGE = (
    "run.", "evaluation.", "train.max_steps", "train.epochs", "train.micro_batch_size", "train.workers",
    "train.threads", "train.log_steps", "train.eval_steps", "train.patience", "train.keep_checkpoints",
    "train.report_to",
)  # fmt: skip
"""Options that a resumed run may have otherwise: none of them changes what the steps already made have learned."""
MAY_MOVE = re.compile(r"data\.(sources\.\d+\.)?(root|mimic_cxr\.(reports|ed))")
"""Folders that may have moved since; that the cases are the same is checked by themselves."""


def read_log(file: Path) -> list[dict[str, Any]]:
    """All rows of a log.jsonl; none if there is no such file. A last row cut off by a crash is left out."""
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
