"""Writes the log of a run, and shows its progress."""

import json
import math
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from vlm.atomic import open_private, replace_file
from vlm.data.dataset import CaseDataset
from vlm.training.checkpoints import finite


class EpochOfDataset(TrainerCallback):
    """Tells the training set its epoch.

    accelerate does so only for some samplers: not after a resume within an epoch, and not with several processes.
    """

    def __init__(self, dataset: CaseDataset) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.dataset.set_epoch(int((state.epoch or 0) + 1e-6))


class RunLog(TrainerCallback):
    """Appends every log row to log.jsonl; a resumed run first puts there the rows that its checkpoint holds."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            replace_file(self.file, "".join(_line(row["step"], row) for row in state.log_history))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            with open_private(self.file, "a") as out:
                out.write(_line(state.global_step, logs))


class Progress(ProgressCallback):
    """The progress bar with the latest losses beside it; an evaluation leaves one line."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not (state.is_world_process_zero and self.training_bar is not None and logs):
            return
        evaluation = "eval_loss" in logs
        names = {"loss_bce": "BCE", "loss_ce": "CE", "auroc": "AUROC"}
        values = {title: logs.get(f"eval_{name}" if evaluation else name) for name, title in names.items()}
        shown = {title: f"{value:.3f}" for title, value in values.items() if value is not None and math.isfinite(value)}
        if evaluation:
            line = "  ".join(f"{title} {value}" for title, value in shown.items())
            self.training_bar.write(f"step {state.global_step}: validation  {line}")
        elif shown:
            self.training_bar.set_postfix(shown)


def _line(step: int, values: dict[str, Any]) -> str:
    return json.dumps({"step": step} | finite({name: value for name, value in values.items() if name != "step"})) + "\n"
