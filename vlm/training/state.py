"""Keep the training state of a run: what a checkpoint holds beside weights and optimizer."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlm.atomic import verify_manifest
from vlm.distributed import log_rank0
from vlm.errors import UserError
from vlm.training.run_folder import CHECKPOINT_FILES, checkpoint_folder


@dataclass
class TrainState:
    """Step, best checkpoint, early stopping and the log so far; the keys of trainer_state.json."""

    global_step: int = 0
    epoch: float = 0.0
    best_global_step: int | None = None
    """Step of the best checkpoint; None before the first joint validation loss."""
    best_metric: float | None = None
    """Validation loss of the best checkpoint."""
    evaluations_without_improvement: int = 0
    log_history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> "TrainState":
        """Read trainer_state.json, also as the Transformers `Trainer` wrote it in runs of 0.1.0."""
        values = json.loads(file.read_text(encoding="utf-8"))
        known = {name: values[name] for name in cls.__dataclass_fields__ if values.get(name) is not None}
        for callback in ("EarlyStopping", "EarlyStoppingCallback"):
            kept = (values.get("stateful_callbacks") or {}).get(callback, {}).get("attributes", {})
            known.setdefault("evaluations_without_improvement", kept.get("early_stopping_patience_counter", 0))
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)

    def compare(self, loss: float) -> None:
        """Record a validation loss: a new best, or one more evaluation without improvement."""
        if self.best_metric is None or loss < self.best_metric:
            self.best_metric, self.best_global_step, self.evaluations_without_improvement = loss, self.global_step, 0
        else:
            self.evaluations_without_improvement += 1

    def check_best(self, checkpoints: Path) -> None:
        """Forget a best checkpoint that is no longer valid, with a warning."""
        if self.best_global_step:
            try:
                verify_manifest(checkpoint_folder(checkpoints, self.best_global_step), CHECKPOINT_FILES)
            except UserError as error:
                log_rank0(f"warning: the best checkpoint so far is lost, and the best from here on is taken: {error}")
                self.best_global_step = self.best_metric = None
