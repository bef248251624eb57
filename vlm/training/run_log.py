"""Writes the log of a run."""

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from vlm.run_folder import read_log


class RunLog(TrainerCallback):
    """Appends every log row to log.jsonl; a resumed run first drops the rows after its checkpoint."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            rows = [row for row in read_log(self.file) if row["step"] <= state.global_step]
            self.file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            row = {"step": state.global_step, **{name: _finite(value) for name, value in logs.items()}}
            with self.file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON; they become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
