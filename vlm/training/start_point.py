"""Open the adapter that a run starts from, at the commit that the run keeps."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm.adapter import AdapterFolder, open_adapter
from vlm.config import Config
from vlm.distributed import log_rank0
from vlm.untrusted import read_yaml


def open_start(config: Config, begun: Path | None = None) -> tuple[Config, AdapterFolder | None]:
    """Open `train.start_from`, and write its commit on the Hub into `train.start_revision`.

    `begun` is the config.yaml of a run to resume. It keeps its commit, whatever the branch holds by now, since the
    frozen weights of the adapter are in no checkpoint. Raises `UserError` as `open_adapter` does.
    """
    adapter, revision = config.train.start_from, config.train.start_revision
    if not adapter:
        return config, None
    kept = _train_options(begun) if begun is not None and begun.is_file() else {}
    commit = kept.get("start_revision") if kept.get("start_from") == adapter else None
    if commit and not re.fullmatch("[0-9a-f]{40}", revision or ""):  # the run's folder refuses another commit
        log_rank0(f"train.start_revision: {commit} (the run began with it)")
        revision = commit
    opened = open_adapter(adapter, revision)
    if not kept and not Path(adapter).is_dir():  # an earlier version kept no commit, and the options must stay equal
        revision = opened.path.name  # the Hub's cache names a snapshot by its commit
    return replace(config, train=replace(config.train, start_revision=revision)), opened


def _train_options(file: Path) -> dict[str, Any]:
    values = read_yaml(file, "the run's config")
    found = values.get("train") if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}
