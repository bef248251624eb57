"""Targets of LoRA, as the self-test tells of them and as an adapter keeps them."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from tests.families import bases, is_known, model_on
from vlm import ClinicalVLM
from vlm.adapter import save
from vlm.config import Config
from vlm.errors import UserError
from vlm.training import self_test as module
from vlm.training.self_test import self_test

__all__ = ["bases"]  # a fixture


def test_a_target_that_the_base_has_not_is_named(tiny_config: Config, bases) -> None:
    with pytest.raises(UserError, match=r"no linear layer named gate_proj; it has o_proj, qkv_proj, gate_up_proj"):
        model_on(bases("phi3"), tiny_config, lora_targets=["o_proj", "gate_proj"])
    model = model_on(bases("phi3"), tiny_config, lora_targets=["o_proj"])
    assert self_test(model)[1] == "LoRA on 2 layers: o_proj 2"


def test_layers_without_lora_are_said(tiny_config: Config, bases) -> None:
    model = model_on(bases("jamba"), tiny_config, quantization="none")
    lines = module.describe_base(model)
    linear = [name for name, layer in model.base.named_modules() if isinstance(layer, torch.nn.Linear)]
    is_linear = any(name.endswith("router") for name in linear)  # in early Transformers 5
    routers, count = (", router 1", 8) if is_linear else ("", 7)
    assert lines == ["LoRA on 4 layers: q_proj 1, k_proj 1, v_proj 1, o_proj 1",
                     f"no LoRA on {count} linear layers: in_proj 1, x_proj 1, dt_proj 1, out_proj 1, gate_proj 1, "
                     f"up_proj 1, down_proj 1{routers}",
                     "warning: 1 of 2 decoder layers carry no LoRA, such as layer 0"]  # fmt: skip


@pytest.mark.skipif(not is_known("qwen3_5_text"), reason="early Transformers lack it")
def test_targets_that_miss_layers_are_said(tiny_config: Config, bases) -> None:
    targets = ["self_attn.o_proj", "linear_attn.in_proj_z"]
    model = model_on(bases("qwen3_5_text"), tiny_config, lora_targets=targets)
    assert any("not on equally many layers" in line for line in module.describe_base(model))


def test_an_adapter_keeps_the_names_that_were_found(tiny_config: Config, bases, tmp_path: Path) -> None:
    model = model_on(bases("opt"), tiny_config)
    with torch.no_grad():
        for name, value in model.trainable_parameters().items():
            if "lora_B" in name:
                value.normal_(std=0.1)
    again = ClinicalVLM.from_pretrained(save(model, tmp_path / "adapter"), device=torch.device("cpu"))
    assert again.model_config.llm.lora_targets == ["k_proj", "v_proj", "q_proj", "out_proj"]
    given = dict(again.named_parameters())
    assert all(torch.equal(given[name], value) for name, value in model.trainable_parameters().items())


def test_an_adapter_with_lora_on_a_part_still_loads(tiny_config: Config, bases, tmp_path: Path, monkeypatch) -> None:
    """Earlier versions left the default names alone: on Phi-3 it carried `o_proj`."""
    monkeypatch.setattr("vlm.model.clinical_vlm.fit_targets", lambda llm, config: config)
    folder = save(model_on(bases("phi3"), tiny_config), tmp_path / "adapter")
    monkeypatch.undo()
    model = ClinicalVLM.from_pretrained(folder, device=torch.device("cpu"))
    assert isinstance(model.base, PreTrainedModel) and sum("lora_B" in n for n in model.trainable_parameters()) == 2
