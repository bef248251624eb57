"""`runs/NAME/`: the files of a run."""

import json
import shutil
from pathlib import Path
from typing import Any

from vlm.cli import to_yaml
from vlm.config import Config
from vlm.errors import UserError


class RunFolder:
    """Paths of one run."""

    def __init__(self, config: Config) -> None:
        self.path = Path(config.run.folder) / config.run.name
        self.config = self.path / "config.yaml"
        self.log = self.path / "log.jsonl"
        self.metrics = self.path / "metrics.json"
        self.predictions = self.path / "predictions.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.figures = self.path / "figures"
        self.adapter = self.path / "adapter"

    def prepare(self, config: Config, resume: bool) -> Path | None:
        """Make the folder and write config.yaml; returns the checkpoint to resume from.

        Raises `UserError` if an earlier run is there and neither `--resume` nor `run.overwrite` was given, or
        if there is nothing to resume.
        """
        if resume:
            found = [path for path in self.checkpoints.glob("checkpoint-*") if path.name[11:].isdigit()]
            if not found:
                raise UserError(f"{self.path}: no checkpoint to resume from; leave --resume away to start the run")
            return max(found, key=lambda path: int(path.name[11:]))
        if self.path.exists() and any(self.path.iterdir()):
            if not config.run.overwrite:
                raise UserError(
                    f"{self.path}: holds an earlier run; go on with --resume, name another with --run.name, "
                    "or delete it with --run.overwrite true"
                )
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.figures.mkdir()
        self.config.write_text(to_yaml(config), encoding="utf-8")
        return None


def read_log(file: Path) -> list[dict[str, Any]]:
    """All rows of a log.jsonl; none if there is no such file."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
