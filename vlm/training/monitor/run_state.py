"""Read the state of a run from its files, incrementally as they grow.

Needs neither PyTorch nor the run's process: `log.jsonl` is read from the last position, the folder's lock tells
whether a process is running, and the folder names list the checkpoints.
"""

import json
import math
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.errors import UserError
from vlm.training.run_folder import checkpoint_folder, checkpoints_of, writer_of
from vlm.untrusted import read_yaml

RECENT = 5
"""Number of latest log rows for the speed shown."""
LONG_WAIT = 0.2
"""Share of the time spent waiting for data above which a note is shown."""
Row = dict[str, Any]


@dataclass
class LogReader:
    """Read the rows of a log.jsonl incrementally; an incomplete last line waits for the next read."""

    file: Path
    rows: list[Row] = field(default_factory=list)
    _place: int = 0
    _inode: int = 0

    def look(self) -> None:
        """Read the added rows; read a rewritten file, as of a resumed run, from its start."""
        try:
            with self.file.open("rb") as log:
                found = os.fstat(log.fileno())
                if found.st_ino != self._inode or found.st_size < self._place:
                    self._inode, self._place, self.rows = found.st_ino, 0, []
                log.seek(self._place)
                added = log.read()
        except FileNotFoundError:
            return
        whole = added[: added.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                raise UserError(f"{self.file}: line {len(self.rows) + 1} is no JSON") from None
            self.rows.append(row)
        self._place += len(whole)


class Run:
    """State of a run at the last read of its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = LogReader(folder / "log.jsonl")
        self.look()

    def look(self) -> None:
        """Read the folder again."""
        self.train = _read_config(self.folder / "config.yaml").get("train", {})
        self.writer = writer_of(self.folder / ".lock")  # before the log: a run that ends in between is read to its end
        self.log.look()
        steps = checkpoints_of(self.folder / "checkpoints")
        self.checkpoint = steps[0] if steps else None
        self.tested = (self.folder / "metrics.json").is_file()

    # ---------------------------------------------------------------------------------------- rows

    @property
    def training(self) -> list[Row]:
        """Rows of training steps."""
        return [row for row in self.log.rows if "loss" in row]

    @property
    def validation(self) -> list[Row]:
        """Rows of evaluations on the validation split."""
        return [row for row in self.log.rows if "eval_loss" in row]

    @property
    def last(self) -> Row:
        """The newest row of a training step; empty before the first."""
        return next((row for row in reversed(self.log.rows) if "loss" in row), {})

    def series(self, name: str) -> list[float]:
        """List all values of a name, without nulls."""
        return [row[name] for row in self.log.rows if isinstance(row.get(name), (int, float))]

    # ------------------------------------------------------------------------------------ progress

    @property
    def step(self) -> int:
        return max((row["step"] for row in self.log.rows), default=0)

    @property
    def steps(self) -> int | None:
        """Steps of the whole run; None if it is set in epochs and no row tells their length yet."""
        if self.train.get("max_steps", -1) > 0:
            return int(self.train["max_steps"])
        epoch, epochs = self.last.get("epoch"), self.train.get("epochs")
        return math.ceil(epochs * self.last["step"] / epoch - 1e-3) if epoch and epochs else None

    @property
    def state(self) -> str:
        """Phase of the run: starting, training, testing, finished or stopped."""
        trained = any("train_runtime" in row for row in self.log.rows[-1:])
        if self.writer:
            return "testing" if trained else "training" if self.log.rows else "starting"
        return "finished" if self.tested else "stopped"

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds of training left, evaluations included; None if the log has no times yet."""
        if self.steps is None or self.state != "training" or not self.series("step_s"):
            return None
        left = max(self.steps - self.step, 0)
        evaluation = (self.series("eval_runtime") or [0.0])[-1] * (left // self.train.get("eval_steps", left + 1))
        return left * statistics.median(self.series("step_s")[-RECENT:]) + evaluation

    @property
    def checkpoint_age(self) -> float | None:
        """Seconds since the newest checkpoint was written."""
        try:
            return time.time() - checkpoint_folder(self.folder / "checkpoints", self.checkpoint or 0).stat().st_mtime
        except OSError:
            return None

    @property
    def notes(self) -> list[str]:
        """Warnings on the run, in sentences."""
        notes = []
        if self.state == "stopped":
            way = f"go on from step {self.checkpoint} with --resume" if self.checkpoint else "no checkpoint was written"
            notes.append(f"no process writes this run, and it was not tested to its end; {way}")
        waits = self.series("data_wait")[-RECENT:]
        if waits and statistics.median(waits) > LONG_WAIT:
            notes.append(f"{statistics.median(waits):.0%} of the time training waits for images: raise train.workers")
        broken = [row["step"] for row in self.training if row.get("loss") is None]
        if broken:
            notes.append(f"the loss of the row of step {broken[-1]} is no number")
        losses = [(row["eval_loss"], row["step"]) for row in self.validation if row["eval_loss"] is not None]
        if len(losses) > 3 and min(losses)[1] <= losses[-4][1]:
            notes.append(f"no better validation loss since step {min(losses)[1]}")
        return notes


def _read_config(file: Path) -> dict[str, Any]:
    config = read_yaml(file, "the run's config")
    if not isinstance(config, dict) or not isinstance(config.get("train", {}), dict):
        raise UserError(f"{file}: is no config of a run")
    return config
