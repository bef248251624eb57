"""Write the log of a run: log.jsonl, the trackers of `train.report_to`, and the progress bar.

Trackers are accelerate's, by name. They get the rows of the log and the options of training and loss. Neither holds
ids, reports, images, column names or the table's path.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from vlm.atomic import open_private, private, replace_file
from vlm.config import Config
from vlm.config.parsing import dotted
from vlm.distributed import is_main, log_rank0
from vlm.errors import UserError, nearest
from vlm.progress import Counter, counting
from vlm.training.checkpoints import finite

PACKAGES = {"comet_ml": "comet-ml"}
"""Package names on PyPI of trackers that accelerate names differently."""


def check_trackers(names: Sequence[str]) -> None:
    """Raise `UserError` for a tracker that accelerate does not know, or that is not installed."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            near = nearest(name, LOGGER_TYPE_TO_CLASS, cutoff=0.6)
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            way_out = f"did you mean {near}?" if near else f"accelerate has {known}"
            raise UserError(f"train.report_to: no tracker {name}; {way_out}")
        if name not in map(str, get_available_trackers()):
            raise UserError(f"train.report_to: {name} is not installed; pip install {PACKAGES.get(name, name)}")


class RunLog:
    """Write each row to log.jsonl, to the trackers and beside the progress bar."""

    def __init__(self, file: Path, accelerator: Accelerator) -> None:
        self.file, self.accelerator = file, accelerator
        self.bar: Counter

    @contextmanager
    def opened(self, rows: Sequence[dict[str, Any]], config: Config, steps: int) -> Iterator[None]:
        """Open the log with `rows`, those of a resumed checkpoint; `steps` is the last step of the run."""
        if is_main():
            replace_file(self.file, "".join(map(_line, rows)))
        options = dotted({"train": asdict(config.train), "loss": asdict(config.loss)})
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in options.items()}
        plain.pop("train.start_from", None)  # may be a local path
        done = rows[-1]["step"] if rows else 0
        with private(), counting("training step", steps, done) as self.bar:
            if self.accelerator.log_with:  # nothing is written or sent before training begins
                self.accelerator.init_trackers(config.run.name, plain)
            try:
                yield
            finally:
                for tracker in self.accelerator.trackers:  # end_training() would also destroy the process group
                    tracker.finish()

    def write(self, row: dict[str, Any]) -> None:
        """Write a row of training steps, of a validation, or of the end of training."""
        if is_main():
            with open_private(self.file, "a") as out:
                out.write(_line(row))
            self._show(row)
        if self.accelerator.log_with:
            numbers = {_tracked(name): value for name, value in row.items() if name != "step"}
            self.accelerator.log(numbers, step=row["step"])

    def _show(self, row: dict[str, Any]) -> None:
        """Show the latest losses beside the bar; print a line for a validation."""
        validation = "eval_loss" in row
        names = {"loss_bce": "BCE", "loss_ce": "CE", "auroc": "AUROC"}
        values = {title: row.get(f"eval_{name}" if validation else name) for name, title in names.items()}
        shown = {title: f"{value:.3f}" for title, value in values.items() if value is not None and math.isfinite(value)}
        if validation:
            line = "  ".join(f"{title} {value}" for title, value in shown.items())
            log_rank0(f"step {row['step']}: validation  {line}")
        elif shown:
            self.bar.set_postfix(shown)


def _tracked(name: str) -> str:
    """Prefix a name with `train/` or `eval/`, by which trackers group their plots."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def _line(row: dict[str, Any]) -> str:
    step, others = row["step"], {name: value for name, value in row.items() if name != "step"}
    return json.dumps({"step": step} | finite(others)) + "\n"
