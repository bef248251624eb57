"""A short run of `train_lora.py`, and what became of it."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.conftest import steady, table_config, tiny_model_config
from tests.forks import Forks
from vlm.config import Config, DropoutConfig, EvaluationConfig, LossConfig, RunConfig, TrainConfig
from vlm.config.parsing import to_yaml
from vlm.training.run_folder import read_log


def write_config(tiny_llm: str, table_root: Path, folder: Path, **train: Any) -> Path:
    """A run of 12 steps, with a checkpoint every 3 and a log row every 2: rows are half summed when it is saved."""
    steps = {"max_steps": 12, "log_steps": 2, "eval_steps": 3, "warmup_steps": 1, "keep_checkpoints": 1}
    config = Config(
        run=RunConfig(name="whole", folder=str(folder / "runs")),
        data=replace(table_config(table_root), dropout=DropoutConfig(0.2, 0.2, 0.1)),
        model=tiny_model_config(tiny_llm),
        loss=LossConfig(alpha=0.4, head_only_steps=2),
        train=TrainConfig(
            **{"batch_size": 4, "micro_batch_size": 2, "threads": 1, "precision": "fp32", **steps, **train}
        ),
        evaluation=EvaluationConfig(batch_size=8, max_new_tokens=2, bootstrap_draws=5, ablation=False),
    )
    file = folder / "config.yaml"
    file.write_text(to_yaml(config))
    return file


class Run:
    """A run by its name, beside the others."""

    def __init__(self, config_file: Path, name: str) -> None:
        self.argv = ("--config", str(config_file), "--run.name", name)
        self.folder = config_file.parent / "runs" / name
        self.said = config_file.parent / f"{name}.txt"
        self.log, self.adapter = self.folder / "log.jsonl", self.folder / "adapter"
        self.seconds = 0.0

    def result(self) -> tuple[dict[str, bytes], list[dict]]:
        """The adapter's weights, byte for byte, and the log without times and the last row, which is of a sitting."""
        weights = {file.name: file.read_bytes() for file in sorted(self.adapter.glob("*.safetensors"))}
        rows = [row for row in read_log(self.log) if "train_runtime" not in row]
        return weights, steady(rows)

    def has_begun(self) -> bool:
        return (self.folder / "config.yaml").is_file()

    def has_made(self, step: int) -> bool:
        return self.log.is_file() and any(row["step"] >= step for row in read_log(self.log))

    def wait_until(self, happened: Callable[[], bool], process: int) -> None:
        """However long it takes on a busy machine, while the process lives."""
        while not happened():
            if " Z " in Path(f"/proc/{process}/stat").read_text():  # dead, and not waited for
                assert happened(), self.said.read_text()[-2000:]
            time.sleep(0.002)

    def to_its_end(self, forks: Forks, *options: str, **how: Any) -> "Run":
        """Start it, or go on, and wait; it must end well."""
        assert forks.run(*self.argv, *options, said=self.said, **how) == 0, self.said.read_text()[-2000:]
        return self
