"""Options of LoRA: a start from decomposed weights, a rate of its own for B, patterns, and what is refused."""

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import read_json
from tests.lora_models import Build, build, logits_of, quick, step
from tests.training_jobs import trained
from vlm.adapter import save, starting_weights
from vlm.compat import needs_bitsandbytes
from vlm.config import Config, LLMConfig
from vlm.config.parsing import parse_config
from vlm.errors import UserError
from vlm.model.bases import lora_init
from vlm.model.bases.lora_settings import layer_of, rank_of, saved_settings, scale_of
from vlm.training.optimizer import make_optimizer, parameter_groups
from vlm.training.run_folder import RunFolder

__all__ = ["build"]  # a fixture


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
