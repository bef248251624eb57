"""Which layers carry LoRA: attention of every family by default, and what is said or refused otherwise."""

from dataclasses import replace

import pytest
import torch

from tests.families import FAMILIES, bases, model_on
from vlm.config import Config, LLMConfig
from vlm.errors import UserError
from vlm.model.bases.loading import load_causal_lm
from vlm.model.bases.lora import add_lora
from vlm.model.bases.lora_targets import describe_choice, describe_lora, fit_targets

__all__ = ["bases"]  # a fixture

MIXERS = ("attn", "attention", "conv")
LINEAR = {"mamba": ["in_proj", "x_proj", "dt_proj"], "mamba2": ["in_proj"]}
"""Families without a layer called attention: all linear layers, without those that PEFT refuses."""
UNTRIED = ("rwkv",)
"""Its layers are no linear ones of attention that PEFT reaches by name alone."""


def require_family(family: str) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if family not in CONFIG_MAPPING:
        pytest.skip(f"this version of Transformers has no {family}")


def base_of(folder: str):
    """The causal language model of a base; of an image-text model its text decoder."""
    return load_causal_lm(folder, dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_reaches_attention_of_every_family(family: str, bases) -> None:
    require_family(family)
    asked = LLMConfig(base=family)
    llm = base_of(bases(family))
    chosen = fit_targets(llm, asked)
    wrapped = add_lora(llm, chosen)
    paths = [path for path, module in wrapped.named_modules() if hasattr(module, "lora_A")]
    assert paths
    lines = describe_choice(llm, asked, chosen)
    if family in LINEAR:
        assert chosen.lora_targets == LINEAR[family] and len(paths) == 2 * len(LINEAR[family])
        reason = "no linear layer of this base is called attention"
        assert lines == [f"LoRA targets: {', '.join(LINEAR[family])} ({reason})"]
    elif chosen != asked:
        assert lines == [f"LoRA targets: {', '.join(chosen.lora_targets)} (so this base names its layers)"]
    else:
        assert lines == []
    for path, module in llm.named_modules():
        inside = any(name in path for name in MIXERS) and not any(t in path for t in ("visual", "vision", "lora_"))
        if inside and type(module) is torch.nn.Linear and not path.endswith("base_layer") and family not in UNTRIED:
            pytest.fail(f"{path} carries no LoRA")


def test_all_linear_is_the_default_where_no_layer_is_called_attention(tiny_llm: str) -> None:
    llm = base_of(tiny_llm)
    for layer in llm.model.layers:  # a base of names of its own
        layer.mixer, layer.self_attn = torch.nn.ModuleDict({"query": torch.nn.Linear(4, 4)}), None
    chosen = fit_targets(llm, LLMConfig())
    assert chosen.lora_targets == ["all-linear"]
    line = "LoRA targets: all-linear (no linear layer of this base is called attention)"
    assert describe_choice(llm, LLMConfig(), chosen) == [line]


@pytest.mark.parametrize(
    ("family", "targets", "counts", "ways_out"),
    [
        ("qwen3_5_text", ["o_proj", "in_proj_z"], "o_proj 1, in_proj_z 3", "self_attn.o_proj, linear_attn.in_proj_z"),
        ("gpt2", ["c_attn", "c_proj"], "c_attn 2, c_proj 4", "attn.c_attn, attn.c_proj, mlp.c_proj"),
        ("jamba", ["q_proj", "down_proj"], "q_proj 1, down_proj 1", ""),
        ("lfm2", ["q_proj", "w1"], "q_proj 1, w1 2", "self_attn.q_proj, feed_forward.w1"),
    ],
)
def test_own_names_that_reach_unequally_many_layers_are_an_error(
    family: str, targets: list[str], counts: str, ways_out: str, bases
) -> None:  # fmt: skip
    require_family(family)
    llm, config = base_of(bases(family)), LLMConfig(base="BASE", lora_targets=targets)
    if not ways_out:
        assert fit_targets(llm, config) == config
        return
    with pytest.raises(UserError) as error:
        fit_targets(llm, config)
    said = str(error.value)
    assert "\n" not in said and f"unequally many layers of BASE, {counts}; if you mean that, name them" in said
    named = said.partition("from ")[2].partition("; or write [all-linear]")[0].split(", ")
    assert set(ways_out.split(", ")) <= set(named)
    meant = replace(config, lora_targets=ways_out.split(", "))
    assert fit_targets(llm, meant) == meant, "the way out"


def test_what_carries_lora_and_what_does_not_is_said(tiny_config: Config, bases) -> None:
    model = model_on(bases("phi3"), tiny_config, lora_targets=["qkv_proj"], use_dora=True)
    assert describe_lora(model.llm, 2) == [
        "LoRA on 2 layers: qkv_proj 2", "no LoRA on 6 linear layers: o_proj 2, gate_up_proj 2, down_proj 2",
    ]  # fmt: skip
    model = model_on(bases("phi3"), tiny_config, lora_targets=["all-linear"])
    assert describe_lora(model.llm, 2) == ["LoRA on 8 layers: o_proj 2, qkv_proj 2, gate_up_proj 2, down_proj 2"]
