"""Every variant of LoRA on every quantisation: it trains, is saved and loaded, drafts as before, and is merged."""

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import read_json
from tests.families import write_base
from tests.lora_models import CPU, Build, batch_of, build, drafts_of, logits_of, quick, step
from tests.training_jobs import trained
from vlm.adapter import load, save, starting_weights
from vlm.adapter.export.gguf import write_lora
from vlm.adapter.export.merge import merge
from vlm.adapter.export.serving_limits import refuse_unserved, vllm_notes
from vlm.adapter.validate import read_folder
from vlm.compat import needs_bitsandbytes
from vlm.config import Config, LLMConfig
from vlm.config.parsing import parse_config
from vlm.errors import UserError
from vlm.inference.backends import merged_base
from vlm.inference.backends.vllm import VLLMServer
from vlm.inference.engine import merged_lora
from vlm.inference.open_engine import make_engine
from vlm.model.bases import lora_init
from vlm.model.bases.lora_settings import layer_of, rank_of, saved_settings, scale_of
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.optimizer import make_optimizer, parameter_groups
from vlm.training.run_folder import RunFolder
from vlm.training.self_test import self_test

__all__ = ["build"]  # a fixture


PATTERNS = {"rank_pattern": {"o_proj": 3, "layers.1.self_attn.q_proj": 4}, "alpha_pattern": {"v_proj": 5}}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "patterns": PATTERNS,
    "all of them": {**PATTERNS, "use_rslora": True, "use_dora": True, "init_lora_weights": "pissa"},
}
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


# -------------------------------------------------------------------------------------------- decomposed weights


@pytest.mark.parametrize("method", ["pissa", "olora"])
def test_a_decomposed_start_is_what_peft_starts_from(method: str, build: Build, tmp_path: Path) -> None:
    """Against PEFT's own: the base without B₀ A₀, and B₀ A₀ beside it."""
    from peft.tuners.lora import Linear

    model = build(init_lora_weights=method, quantization="none")
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj"):
        layer = model.base.get_submodule(path)
        assert isinstance(layer, Linear)
        a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        ours, weight = layer.scaling["default"] * b[:, :2] @ a[:2], layer.base_layer.weight
        assert layer.scaling["default"] == 8 and torch.equal(a[:2], a[2:]) and torch.equal(b[:, :2], -b[:, 2:])
        plain = torch.nn.Linear(*reversed(weight.shape), bias=False)
        plain.weight.data.copy_(weight)
        theirs = peft_layer(plain, method)
        torch.testing.assert_close(ours, weight - theirs.base_layer.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours, theirs.get_delta_weight("default"), rtol=1e-4, atol=1e-5)


def peft_layer(plain: torch.nn.Linear, method: str) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=16, target_modules=["layer"], init_lora_weights=method)
    return get_peft_model(torch.nn.ModuleDict({"layer": plain}), config).base_model.model["layer"]  # type: ignore[index]


def test_the_first_value_is_taken_out_again_and_never_learns(build: Build, tiny_config: Config, tmp_path: Path) -> None:
    for optimizer in ("adamw_torch", *([] if needs_bitsandbytes("0.50") else ["paged_adamw_8bit"])):
        model = build(init_lora_weights="pissa", use_rslora=True, rank_pattern={"q_proj": 3})
        first = {
            name: value.detach().clone() for name, value in model.trainable_parameters().items() if "lora_" in name
        }
        train = replace(quick(tiny_config).train, optimizer=optimizer, weight_decay=0.5)
        step(model, replace(tiny_config, train=train), 3)
        for name, before in first.items():
            now, dim = model.get_parameter(name).detach(), int("lora_B" in name)
            (learns, stays), (was, kept) = now.chunk(2, dim), before.chunk(2, dim)
            assert torch.equal(stays, kept) and not torch.equal(learns, was), name
        folder = save(model, tmp_path / optimizer)
        said = read_json(folder / "config.json")["model"]["llm"]
        assert said["lora_rank"] == 4 and said["rank_pattern"] == {"q_proj": 6} and "init_lora_weights" not in said
        assert said["lora_alpha"] == 23, "√2 · 16, rounded"
        assert read_json(folder / "adapter_config.json")["init_lora_weights"] is True


def test_the_scale_of_a_doubled_rank_is_that_of_the_config() -> None:
    config = LLMConfig(init_lora_weights="pissa", rank_pattern={"b": 4}, alpha_pattern={"a.b": 5})
    saved = saved_settings(config)
    for layer in ("x", "c.b", "a.b"):
        assert scale_of(saved, layer) == scale_of(config, layer) and rank_of(saved, layer) == 2 * rank_of(config, layer)
    assert saved_settings(saved) == saved
    names = {"model.a.b": 4, "b": 4, "bb": 8, "a.bb": 8}
    assert {layer: rank_of(config, layer) for layer in names} == names
    assert layer_of("base_model.model.model.a.b.lora_A.weight") == "model.a.b"
    assert layer_of("base_model.model.model.a.b.lora_magnitude_vector") == "model.a.b"


def test_a_large_matrix_is_decomposed_nearly_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = torch.randn(96, 64) @ torch.diag(0.9 ** torch.arange(64.0))
    a, b = lora_init.pissa(weight, 4, 2.0)
    exact = (weight - 2.0 * b @ a).norm()
    monkeypatch.setattr(lora_init, "EXACT", 8)
    a, b = lora_init.pissa(weight, 4, 2.0)
    assert (weight - 2.0 * b @ a).norm() < 1.001 * exact


def test_a_resumed_run_from_decomposed_weights_ends_as_an_undisturbed_one(tiny_config: Config) -> None:
    """With what the recipe of a single GPU has: 8-bit AdamW, packed weights, checkpointing, dropout, accumulation."""
    if reason := needs_bitsandbytes("0.50"):
        pytest.skip(reason)
    recipe = parse_config(["--config", "configs/single_gpu.yaml"])[0]
    llm = replace(
        recipe.model.llm, base=tiny_config.model.llm.base, dequantize="never", init_lora_weights="pissa", use_dora=True
    )
    train = replace(
        recipe.train, max_steps=6, eval_steps=2, batch_size=4, micro_batch_size=2, log_steps=1, warmup_steps=1,
        loraplus_lr_ratio=4.0, keep_checkpoints=9, workers=0, patience=0,
    )  # fmt: skip
    config = replace(tiny_config, model=replace(tiny_config.model, llm=llm), train=train)
    whole = trained(config)
    kept = [v.dtype for state in whole.optimizer.state.values() for v in state.values() if hasattr(v, "dtype")]
    assert torch.uint8 in kept, "the optimizer has 8-bit state"
    resumed = trained(config, str(RunFolder(config).checkpoints / "checkpoint-4"))
    now = resumed.model.trainable_parameters()
    for name, value in whole.model.trainable_parameters().items():
        assert torch.equal(value, now[name]), name


# -------------------------------------------------------------------------------------------- options


def test_lora_plus_has_a_learning_rate_of_its_own_for_b(build: Build, tiny_config: Config) -> None:
    model = build()
    ordinary = parameter_groups(model, tiny_config.train)
    train = replace(tiny_config.train, lora_learning_rate=0.01, loraplus_lr_ratio=16.0)
    groups = parameter_groups(model, train)
    assert len(groups) == len(ordinary) + 1
    names = {id(value): name for name, value in model.trainable_parameters().items()}
    for group in groups:
        for parameter in group["params"]:
            if ".lora_" in names[id(parameter)]:
                assert group["lr"] == pytest.approx(0.16 if ".lora_B." in names[id(parameter)] else 0.01)
                assert group["text"] and group["weight_decay"] == train.weight_decay
    decomposed = build(init_lora_weights="olora")
    lora = {id(value) for name, value in decomposed.trainable_parameters().items() if ".lora_" in name}
    for group in parameter_groups(decomposed, train):
        assert not group["weight_decay"] or not lora & set(map(id, group["params"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_targets": ["q_proj", "nothing"]}, "has no linear layer named nothing; it has q_proj, k_proj"),
        (
            {"rank_pattern": {"up_proj": 2}},
            r"rank_pattern: no layer of .* with LoRA is named up_proj; a name is the end",
        ),
        ({"alpha_pattern": {"layers.7.q_proj": 2}}, r"alpha_pattern: no layer of .* is named layers\.7\.q_proj"),
        ({"init_lora_weights": "pissa", "lora_rank": 40}, r"pissa has at most rank 32 on .*k_proj, not 40"),
    ],
)
def test_a_wrong_option_is_one_line(change: dict, message: str, build: Build) -> None:
    with pytest.raises(UserError, match=message) as error:
        build(**change)
    assert "\n" not in str(error.value)


def test_what_an_older_bitsandbytes_does_not_do_on_a_cpu_is_one_line(
    build: Build, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(dequantize="never")
    installed = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.49.2" if name == "bitsandbytes" else installed(name))
    train = replace(tiny_config.train, optimizer="paged_adamw_8bit")
    with pytest.raises(UserError, match=r"train\.optimizer: paged_adamw_8bit on a CPU needs bitsandbytes ≥ 0\.50"):
        make_optimizer(model, train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.llm.rank_pattern", '{"(a+)+": 2}'], r"model.llm.rank_pattern: must be names of layers with numbers"),
        (["--model.llm.alpha_pattern", '{"q_proj": 0}'], "model.llm.alpha_pattern.q_proj: must be at least 1"),
        (["--model.llm.init_lora_weights", "eva"], "init_lora_weights"),
        (["--model.llm.init_lora_weights=pissa", "--model.llm.lora_rank=600"], "lora_rank: must be at most 512 with"),
        (["--model.llm.init_lora_weights=olora", "--model.llm.lora_alpha=40000"], "lora_alpha: must be at most 32,768"),
        (["--train.loraplus_lr_ratio", "0"], "train.loraplus_lr_ratio: must be more than 0"),
        (["--model.llm.quantization", "int4"], "quantization"),
    ],
)
def test_an_option_out_of_range_names_its_key(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_config(options)
    assert "\n" not in str(error.value)


def test_patterns_are_options_of_the_command_line() -> None:
    config, _ = parse_config(["--model.llm.rank_pattern", '{"layers.0.self_attn.q_proj": 4, "o_proj": 2}'])
    assert config.model.llm.rank_pattern == {"layers.0.self_attn.q_proj": 4, "o_proj": 2}
    assert parse_config(["--model.llm.rank_pattern={}"])[0].model.llm.rank_pattern == {}


def test_a_plain_adapter_says_nothing_of_the_new_options(build: Build, tmp_path: Path) -> None:
    """So that earlier versions read it."""
    said = read_json(save(build(init_lora_weights="gaussian"), tmp_path / "adapter") / "config.json")["model"]["llm"]
    assert not said.keys() & {"use_rslora", "use_dora", "init_lora_weights", "rank_pattern", "alpha_pattern"}


def test_training_starts_from_a_lora_of_another_scale_as_it_was(build: Build, tiny_config: Config, tmp_path) -> None:
    plain = build(lora_alpha=6, alpha_pattern={"q_proj": 3})
    step(plain, quick(tiny_config))
    folder = save(plain, tmp_path / "adapter")
    model = build(use_rslora=True)
    model.load_state_dict(starting_weights(model, folder), strict=False)
    assert torch.allclose(logits_of(model), logits_of(plain), atol=1e-4)
    assert not any("lora_" in name for name in starting_weights(build(use_dora=True), folder))


# -------------------------------------------------------------------------------------------- other programs


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
