"""A model whose LoRA says more than its base, and its adapter, to give to other programs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import public, table_config, tiny_model_config
from vlm import ClinicalVLM
from vlm.adapter import save
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.training.run import build_model

CASES = [(None, {"glucose": 5 + i, "systolic": 100 + 9 * i}) for i in range(6)]


@pytest.fixture(scope="module")
def model(tiny_llm: str, table_root: Path) -> ClinicalVLM:
    """A model whose LoRA, on every linear layer, says more than its base."""
    tiny = tiny_model_config(tiny_llm)
    config = Config(
        data=table_config(table_root),
        model=replace(tiny, llm=replace(tiny.llm, lora_targets=["all-linear"], lora_rank=3)),
    )
    model = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.trainable_parameters().items():
            if "lora_B" in name:
                value += 0.3 * torch.randn(value.shape, generator=generator)
    return public(model.eval())


@pytest.fixture(scope="module")
def folder(model: ClinicalVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model, tmp_path_factory.mktemp("saved") / "adapter")


def deltas(model: ClinicalVLM) -> dict[str, torch.Tensor]:
    """Layer → what LoRA adds to its weight, as PEFT has it; out × in."""
    return {name: module.get_delta_weight("default").detach() for name, module in model.base.named_modules()
            if hasattr(module, "get_delta_weight")}  # fmt: skip
