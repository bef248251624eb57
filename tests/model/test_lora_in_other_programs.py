"""Variants of LoRA in other programs: what vLLM and llama.cpp take, what is merged for them, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.lora_models import VARIANTS, Build, build, quick, step
from vlm.adapter import save
from vlm.adapter.export.gguf import write_lora
from vlm.adapter.export.serving_limits import refuse_unserved, vllm_notes
from vlm.adapter.validate import read_folder
from vlm.config import Config
from vlm.errors import UserError
from vlm.inference.backends import merged_base
from vlm.inference.backends.vllm import VLLMServer
from vlm.inference.lora_merge import merged_lora
from vlm.inference.open_engine import make_engine

__all__ = ["build"]  # a fixture


@pytest.mark.parametrize(
    ("change", "note", "refused"),
    [
        ({}, [], ""),
        ({"use_rslora": True}, [], ""),
        ({"lora_rank": 17}, ["vLLM: a LoRA of rank 17 needs `vllm serve --max-lora-rank 32`"], ""),
        ({"lora_rank": 12, "init_lora_weights": "olora"}, ["vLLM: a LoRA of rank 24 needs `vllm serve --max-lora"], ""),
        ({"rank_pattern": {"q_proj": 20}}, ["vLLM: does not serve a LoRA whose scale differs"], "whose scale differs"),
        (
            {"lora_targets": ["q_proj"], "rank_pattern": {"q_proj": 4}},
            ["vLLM: does not serve"],
            "all have another scale",
        ),
        ({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 32}}, [], ""),
        ({"use_dora": True}, ["vLLM: does not serve DoRA; give it the merged model of"], "does not serve DoRA"),
    ],
)
def test_what_vllm_cannot_serve_is_said_in_a_line(
    change: dict, note: list[str], refused: str, build: Build, tmp_path: Path
) -> None:
    opened = read_folder(save(build(**{"lora_rank": 2, **change}), tmp_path / "adapter"))
    notes = vllm_notes(opened)
    assert len(notes) == len(note) and all(line.startswith(start) for line, start in zip(notes, note, strict=True))
    if not refused:
        return refuse_unserved(opened)
    with pytest.raises(UserError, match=refused):
        make_engine("vllm", opened, server=VLLMServer("http://127.0.0.1:9", "ward"))


@pytest.mark.parametrize("variant", ["rslora", "pissa", "patterns"])
def test_the_gguf_file_has_the_scale_of_each_layer(
    variant: str, build: Build, tiny_config: Config, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    model = build(**VARIANTS[variant])
    step(model, quick(tiny_config))
    layers = write_lora(str(save(model, tmp_path / "adapter")), tmp_path / "lora.gguf")
    reader = gguf.GGUFReader(tmp_path / "lora.gguf")
    alpha = reader.fields["adapter.lora.alpha"].contents()
    halves = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    assert layers == 8 and len(halves) == 16
    for number in (0, 1):
        for ours, theirs in (("v_proj", "attn_v"), ("o_proj", "attn_output")):  # the others are in another order
            a, b = (halves[f"blk.{number}.{theirs}.weight.lora_{side}"] for side in "ab")
            delta = model.base.get_submodule(f"model.layers.{number}.self_attn.{ours}").get_delta_weight("default")
            torch.testing.assert_close(alpha / len(a) * b @ a, delta.detach(), rtol=1e-4, atol=1e-6)


def test_the_base_for_llama_cpp_has_every_variant_merged(build: Build, tiny_config: Config) -> None:
    model = build(**VARIANTS["all of them"], lora_targets=["q_proj", "v_proj", "o_proj"])
    step(model, quick(tiny_config))
    layer, path = model.base.get_submodule("model.layers.1.self_attn.v_proj"), "blk.1.attn_v.weight"
    x = torch.randn(3, 64)
    with torch.no_grad(), merged_lora(model):
        wanted, written = layer(x), dict(merged_base._merged(model))[path]
    torch.testing.assert_close(x @ torch.from_numpy(written).T, wanted, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), wanted, rtol=1e-3, atol=1e-3)


def test_a_dora_that_overflows_is_one_line_and_leaves_the_weights(build: Build) -> None:
    model = build(use_dora=True)
    with torch.no_grad():
        for name, value in model.trainable_parameters().items():
            if "lora_B" in name and "layers.1" in name:
                value.fill_(3e38)
    before = {name: value.clone() for name, value in model.base.state_dict().items() if "base_layer" in name}
    with pytest.raises(UserError, match="the adapter's DoRA cannot be merged: NaNs"), merged_lora(model):
        pytest.fail("it was merged")
    for name, value in before.items():
        assert torch.equal(model.base.state_dict()[name], value), name


def test_llama_cpp_is_given_no_dora(build: Build, tmp_path: Path) -> None:
    folder = save(build(use_dora=True), tmp_path / "adapter")
    with pytest.raises(UserError, match=r"gguf: llama\.cpp has no DoRA; write the merged model"):
        write_lora(str(folder), tmp_path / "lora.gguf")
