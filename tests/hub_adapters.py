"""An adapter to push to the tests' Hub, and changes of its files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import public, read_json, table_config, tiny_model_config
from vlm import ClinicalVLM
from vlm.adapter import save
from vlm.atomic import write_manifest
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.training.run import build_model

REPO = "user/ward-7"
ESTIMATE = {"value": 0.8134, "low": 0.7012, "high": 0.9}
METRICS = {"cases": 40, "patients": 31, "labels": {"pathology": {"auroc": ESTIMATE, "positives": 12}}}


@pytest.fixture(scope="module")
def trained(tiny_llm: str, table_root: Path) -> ClinicalVLM:
    """A model with weights that matter."""
    config = Config(data=table_config(table_root), model=tiny_model_config(tiny_llm))
    model = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.trainable_parameters().values():
            value += 0.05 * torch.randn(value.shape, generator=generator)
    return public(model.eval())


@pytest.fixture(scope="module")
def saved(trained: ClinicalVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its adapter, on a base with a public name."""
    folder = save(trained, tmp_path_factory.mktemp("saved") / "adapter", METRICS)
    edit(folder / "config.json", lambda config: config["model"]["llm"].update(base="org/base"))
    edit(folder / "adapter_config.json", lambda config: config.update(base_model_name_or_path="org/base"))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def edit(file: Path, change) -> None:
    values = read_json(file)
    change(values)
    file.write_text(json.dumps(values))
    write_manifest(file.parent)


def change_tensors(file: str, change):
    def apply(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file)
        write_manifest(folder)

    return apply
