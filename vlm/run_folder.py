"""`runs/NAME/`: the files of a run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from vlm.cli import to_yaml
from vlm.config import Config
from vlm.errors import UserError


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

    def check(self, config: Config, cases: str, resume: bool) -> Path | None:
        """Whether the run may start; changes nothing. Returns the checkpoint to resume from.

        `cases` is the fingerprint of the cases and their split. Raises `UserError` if an earlier run is there and
        neither `--resume` nor `run.overwrite` was given, or if there is nothing that this config can resume.
        """
        if resume:
            return self._newest_checkpoint(config, cases)
        files = [path for path in self.path.rglob("*") if path.is_file()]
        if files and not config.run.overwrite:
            raise UserError(
                f"{self.path}: holds an earlier run; go on with --resume, name another with --run.name, "
                "or delete it with --run.overwrite true"
            )
        if files and not self.config.is_file():
            raise UserError(f"{self.path}: has files but no config.yaml, so it is no run; it is not overwritten")
        return None

    def create(self, config: Config, cases: str, resume: bool = False) -> None:
        """Make the folder, in place of an earlier run, and write the resolved config."""
        if not resume and self.path.exists():
            shutil.rmtree(self.path)
        for folder in (self.figures, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(to_yaml(config), encoding="utf-8")
        self.cases.write_text(cases + "\n", encoding="utf-8")

    def _newest_checkpoint(self, config: Config, cases: str) -> Path:
        # The state is the last file of a checkpoint: without it the checkpoint is not complete.
        found = [path.parent for path in self.checkpoints.glob("checkpoint-*/trainer_state.json")]
        if not found or not self.config.is_file() or not self.cases.is_file():
            raise UserError(f"{self.path}: no checkpoint to resume from; leave --resume away to start the run")
        before = dotted(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        now = dotted(yaml.safe_load(to_yaml(config)))
        for key in before.keys() | now.keys():
            if before.get(key) != now.get(key) and not (key.startswith(MAY_CHANGE) or MAY_MOVE.fullmatch(key)):
                raise UserError(
                    f"{key}: was {before.get(key)} when {self.path} began, is {now.get(key)}; a resumed run keeps it"
                )
        if self.cases.read_text(encoding="utf-8").strip() != cases:
            raise UserError(f"{self.path}: the cases or their split changed since the run began; start a new run")
        return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


MAY_CHANGE = (
    "run.", "evaluation.", "train.max_steps", "train.epochs", "train.workers", "train.threads",
    "train.log_steps", "train.eval_steps", "train.patience", "train.keep_checkpoints", "train.report_to",
)  # fmt: skip
"""Options that a resumed run may have otherwise: none of them changes what the steps already made have learned."""
MAY_MOVE = re.compile(r"data\.(sources\.\d+\.)?(root|mimic_cxr\.(reports|ed))")
"""Folders that may have moved since; that the cases are the same is checked by themselves."""


def dotted(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys, those in a list by their number."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        flat |= dotted(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat


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
