"""Copies of a tiny base, and of an adapter, that differ from what was trained on."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from vlm.atomic import write_manifest


def changed(adapter: Path, root: Path, **values) -> Path:
    """A copy of an adapter whose config.json says otherwise; None takes a key away."""
    folder = root / "changed"
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    write_manifest(folder)
    return folder


@pytest.fixture
def copied(tiny_llm: str, tmp_path: Path) -> Path:
    base = tmp_path / "base"
    shutil.copytree(tiny_llm, base)
    return base


def change_weights(base: Path, part: str) -> None:
    tensors = load_file(base / "model.safetensors")
    for name, value in tensors.items():
        if part in name and value.ndim == 2:
            value += 0.5
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
