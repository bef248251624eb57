"""Every variant of LoRA on every quantisation: it trains, is saved and loaded, drafts as before, and is merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import read_json
from tests.families import write_base
from tests.lora_models import CPU, VARIANTS, Build, batch_of, build, drafts_of, logits_of, quick, step
from vlm.adapter import load, save
from vlm.adapter.export.merge import merge
from vlm.compat import needs_bitsandbytes
from vlm.config import Config
from vlm.inference.lora_merge import merged_lora
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.self_test import self_test

__all__ = ["build"]  # a fixture

QUANTISATIONS: dict[str, dict[str, Any]] = {
    "nf4": {},
    "nf4 packed": {"dequantize": "never"},
    "fp4": {"quantization": "fp4"},
    "fp4 packed": {"quantization": "fp4", "double_quantization": False, "dequantize": "never"},
    "int8": {"quantization": "int8"},
    "int8 packed": {"quantization": "int8", "dequantize": "never"},
    "none": {"quantization": "none"},
}


def randomise(model: ClinicalVLM) -> None:
    """Put random values in place of LoRA's zeros."""
    with torch.no_grad():
        for name, value in model.trainable_parameters().items():
            if "lora_B" in name:
                value.normal_(std=0.3)


def pairs() -> list[Any]:
    """Every variant with every quantisation, those in the long checks that differ little from others."""
    long = {(v, q) for v in VARIANTS for q in QUANTISATIONS if "packed" in q and v not in ("plain", "pissa")}
    long |= {(v, "fp4") for v in VARIANTS if v not in ("plain", "dora", "pissa", "all of them")}
    long |= {("gaussian", "int8"), ("gaussian", "none"), ("olora", "int8")}
    together = [(v, q) for v in VARIANTS for q in QUANTISATIONS]
    soak = [pytest.mark.soak]
    return [pytest.param(v, q, id=f"{v}-{q}", marks=soak if (v, q) in long else []) for v, q in together]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "quantisation"), pairs())
def test_a_variant_trains_and_is_saved_loaded_and_merged(
    variant: str, quantisation: str, build: Build, tiny_config: Config, tmp_path: Path
) -> None:
    model = build(**VARIANTS[variant], **QUANTISATIONS[quantisation])
    with model.llm.disable_adapter():
        bare = logits_of(model)
    assert torch.allclose(logits_of(model), bare, atol=1e-4), "it begins as the base"
    losses = step(model, quick(tiny_config))
    assert losses[1] < losses[0]
    trained, drafts = logits_of(model), drafts_of(model)
    assert (trained - bare).abs().max() > 0.01, "it has learned"
    with merged_lora(model):
        assert torch.allclose(logits_of(model), trained, atol=1e-3)
        assert drafts_of(model) == drafts
    assert torch.equal(logits_of(model), trained), "restored bit for bit"
    again = load(save(model, tmp_path / "adapter"), device=CPU, dtype=torch.float32)
    assert torch.allclose(logits_of(again), trained, atol=1e-5) and drafts_of(again) == drafts


@pytest.mark.parametrize("variant", ["dora", "pissa", "all of them"])
def test_the_self_test_takes_a_variant_and_leaves_it_as_it_was(variant: str, build: Build) -> None:
    model = build(**VARIANTS[variant])
    before = {name: value.clone() for name, value in model.trainable_parameters().items()}
    assert self_test(model)[1].startswith("LoRA on 8 layers: q_proj 2, ")
    assert all(torch.equal(before[name], value) for name, value in model.trainable_parameters().items())


@pytest.mark.parametrize("variant", ["dora", "pissa", "all of them"])
def test_a_variant_is_merged_into_a_plain_model_that_is_drafted_with(
    variant: str, build: Build, tiny_config: Config, tmp_path: Path
) -> None:
    model = build(**VARIANTS[variant])
    step(model, quick(tiny_config), 4)
    parity = merge(str(save(model, tmp_path / "adapter")), tmp_path / "merged", most=6)
    assert parity.difference < 1e-3 * parity.spread and parity.same == parity.cases
    again = load(tmp_path / "merged" / "adapter", device=CPU, dtype=torch.float32)
    assert torch.allclose(logits_of(again), logits_of(model), atol=1e-3)
    assert "use_dora" not in read_json(tmp_path / "merged" / "adapter" / "config.json")["model"]["llm"]


@pytest.mark.parametrize("variant", ["dora", "pissa", "olora"])
def test_a_variant_on_weights_that_lie_the_other_way(
    variant: str, build: Build, tiny_config: Config, tiny_llm: str, tmp_path: Path
) -> None:
    """GPT-2's, in × out, which PEFT reads transposed."""
    model = build(base=write_base("gpt2", tmp_path / "gpt2", tiny_llm), quantization="none", **VARIANTS[variant])
    with model.llm.disable_adapter():
        bare = logits_of(model)
    assert torch.allclose(logits_of(model), bare, atol=1e-4)
    step(model, quick(tiny_config))
    trained_logits = logits_of(model)
    with merged_lora(model):
        assert torch.allclose(logits_of(model), trained_logits, atol=1e-3)
    again = load(save(model, tmp_path / "adapter"), device=CPU, dtype=torch.float32)
    assert torch.allclose(logits_of(again), trained_logits, atol=1e-5)


@pytest.mark.parametrize(("quantization", "dora"), [("fp4", False), ("int8", False), ("int8", True)])
def test_an_evaluation_leaves_the_gradients_of_packed_weights_as_they_were(
    quantization: str, dora: bool, build: Build
) -> None:
    model = build(quantization=quantization, dequantize="never", use_dora=dora)
    plain = build(quantization=quantization, dequantize="always", use_dora=dora)
    randomise(model)
    plain.load_state_dict(dict(model.trainable_parameters()), strict=False)

    def gradients(of: ClinicalVLM) -> torch.Tensor:
        of.train().zero_grad()
        of(**batch_of(of), alpha=0.0).loss.backward()
        return torch.cat([p.grad.flatten() for n, p in of.trainable_parameters().items() if "lora_" in n])

    before = gradients(model)
    logits_of(model)
    model.prefix_kv_cache()
    torch.testing.assert_close(gradients(model), before, rtol=1e-5, atol=1e-7)
    assert torch.isfinite(before).all() and before.norm() > 0
    rounded = quantization == "int8" and needs_bitsandbytes("0.48")  # until then inputs too, as on a GPU
    assert (gradients(plain) - before).norm() < (0.1 if rounded else 0.02) * before.norm(), "as beside the dequantised"


def test_packed_8_bit_weights_take_inputs_of_four_dimensions(build: Build, tiny_llm: str, tmp_path: Path) -> None:
    """DeepSeek V3's latent keys and values have them; bitsandbytes takes three at most."""
    base = write_base("deepseek_v3", tmp_path / "deepseek", tiny_llm)
    model = build(base=base, quantization="int8", dequantize="never")
    self_test(model)
    layer = model.base.get_submodule("model.layers.0.self_attn.kv_b_proj")
    layer = getattr(layer, "base_layer", layer).eval()
    assert type(layer).__name__ == "Linear8bitLt"
    states = torch.randn(2, 1, 5, 32)  # B × 1 × T × rank
    with torch.no_grad():
        assert torch.equal(layer(states), layer(states.flatten(0, 1)).unflatten(0, (2, 1)))


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_packed_mamba_has_the_values_of_the_dequantised_one(
    quantization: str, build: Build, tiny_llm: str, tmp_path: Path
) -> None:
    """Transformers reads the weights of its `dt_proj` without calling the layer."""
    base = write_base("mamba", tmp_path / "mamba", tiny_llm)
    packed, plain = (build(base=base, quantization=quantization, dequantize=d) for d in ("never", "always"))
    for of in (packed, plain):
        self_test(of)
    weight = "layers.0.mixer.dt_proj.base_layer.weight"
    assert torch.equal(packed.base.base_model.get_parameter(weight), plain.base.base_model.get_parameter(weight))
    assert (logits_of(packed) - logits_of(plain)).abs().mean() < 0.05 * logits_of(plain).std()


@pytest.mark.parametrize("quantisation", ["none", "nf4 packed", "int8 packed"])
def test_rwkv_is_the_same_function_in_training_and_in_drafts(
    quantisation: str, build: Build, tiny_llm: str, tmp_path: Path
) -> None:
    """Transformers rescales two of its weights in drafts, without LoRA beside them, and breaks packed ones."""
    base = Path(write_base("rwkv", tmp_path / "rwkv", tiny_llm))
    config = read_json(base / "config.json") | {"rescale_every": 1}
    (base / "config.json").write_text(json.dumps(config))
    options = {"lora_targets": ["all-linear"], "lora_dropout": 0.0, "use_dora": quantisation == "nf4 packed"}
    model = build(base=str(base), **options, **QUANTISATIONS[quantisation])
    randomise(model)
    embeddings = torch.randn(2, 5, model.base.config.hidden_size)
    with torch.no_grad():
        training, drafting, again = (
            model.train(mode).llm(inputs_embeds=embeddings, use_cache=False).logits for mode in (True, False, True)
        )
    off = 0.05 if quantisation == "int8 packed" else 1e-4  # activations of 8 bits in drafts alone
    assert (training - drafting).abs().mean() < off * training.std()
    assert torch.equal(training, again)
    self_test(model)
