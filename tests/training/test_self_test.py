"""Bases of many families: each trains and drafts, or is refused in one line, within seconds and before training."""

import functools
import inspect
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.integrations import bitsandbytes

from tests.families import FAMILIES, bases, model_on, write_base
from tests.training_jobs import one_thread
from vlm import ClinicalVLM
from vlm.adapter import save
from vlm.config import Config
from vlm.errors import UserError
from vlm.inference.lora_merge import merged_lora
from vlm.model.bases.quantization import quantised_share, values_of, wrongly_dequantised
from vlm.training import self_test as module
from vlm.training.run import train, try_step
from vlm.training.self_test import self_test

__all__ = ["bases"]  # a fixture

WORKS = {
    "bloom": "query_key_value 2, dense 2",
    "biogpt": "k_proj 2, v_proj 2, q_proj 2, out_proj 2",
    "gemma": "q_proj 2, k_proj 2, v_proj 2, o_proj 2",
    "gemma3_text": "q_proj 2, k_proj 2, v_proj 2, o_proj 2",
    "gpt2": "c_attn 2, c_proj 4",
    "gpt_neox": "query_key_value 2, dense 2",
    "granite": "q_proj 2, k_proj 2, v_proj 2, o_proj 2",
    "llama": "q_proj 2, k_proj 2, v_proj 2, o_proj 2",
    "mistral": "q_proj 2, k_proj 2, v_proj 2, o_proj 2",
    "mpt": "Wqkv 2, out_proj 2",
    "opt": "k_proj 2, v_proj 2, q_proj 2, out_proj 2",
    "phi3": "o_proj 2, qkv_proj 2",
    "qwen2": "q_proj 2, k_proj 2, v_proj 2, o_proj 2",
    "qwen3": "q_proj 2, k_proj 2, v_proj 2, o_proj 2",
    "smollm3": "q_proj 2, k_proj 2, v_proj 2, o_proj 2",
}
"""Family in 4 bits → layers that carry LoRA by default."""
UNQUANTISED = {
    "gpt_oss": "q_proj 2, k_proj 2, v_proj 2, o_proj 2",
    "mixtral": "q_proj 2, k_proj 2, v_proj 2, o_proj 2",
    "olmoe": "q_proj 2, k_proj 2, v_proj 2, o_proj 2",
    "qwen3_moe": "q_proj 2, k_proj 2, v_proj 2, o_proj 2",
}
"""Those of whose weights few can be put in 4 bits, and that work as they are."""
# Early Transformers put subclasses of nn.Linear in 4 bits too, as Falcon's.
LINEAR_ALONE = "type(module) is nn.Linear" in inspect.getsource(bitsandbytes)
(UNQUANTISED if LINEAR_ALONE else WORKS)["falcon"] = "query_key_value 2, dense 2"
REFUSED = {
    "paligemma": "cannot be used: a training step fails: its tokens attend to later ones",
}
"""Those refused; `tests/training/test_families.py` goes the whole way with every other."""


def test_the_rounding_of_packed_8_bit_products_is_no_look_ahead(bases, tiny_config: Config) -> None:
    """An outlier in a later token changes how the columns of all are rounded; a real look-ahead is refused still."""
    options = {"quantization": "int8", "dequantize": "never"}
    model = model_on(tiny_config.model.llm.base, tiny_config, **options)
    with torch.no_grad():
        for name, value in model.base.named_parameters():
            if "layernorm" in name:
                value.mul_(3)  # more values pass LLM.int8()'s threshold of 6
    self_test(model)
    with pytest.raises(UserError, match="its tokens attend to later ones"):
        self_test(model_on(bases("paligemma"), tiny_config, **options))


def test_every_family_is_tried() -> None:
    assert set(WORKS) | set(UNQUANTISED) | set(REFUSED) <= set(FAMILIES)


@pytest.mark.parametrize("family", WORKS)
def test_a_family_in_4_bits_carries_lora_on_all_of_attention(family: str, bases, tiny_config: Config) -> None:
    lines = self_test(model_on(bases(family), tiny_config))
    assert lines[0] == "weights in 4 bits: 100.0% of the language model's linear weights"
    assert lines[1].endswith(f"layers: {WORKS[family]}") and lines[-1].startswith("self-test: a step, a draft and")


@pytest.mark.slow
@pytest.mark.parametrize("family", UNQUANTISED)
def test_what_cannot_be_put_in_4_bits_is_refused_and_works_without(family: str, bases, tiny_config: Config) -> None:
    message = r"model\.llm\.quantization: \d+% of the linear weights .* write model\.llm\.quantization: none"
    for dequantize in ("auto", "never"):
        with pytest.raises(UserError, match=message):
            model_on(bases(family), tiny_config, dequantize=dequantize)
    for targets in (tiny_config.model.llm.lora_targets, ["all-linear"]):
        model = model_on(bases(family), tiny_config, quantization="none", lora_targets=targets)
        lines = self_test(model)
        assert family == "falcon" or lines[0].endswith(f"layers: {UNQUANTISED[family]}")


def test_weights_that_lie_the_other_way_are_merged_and_kept(bases, tiny_config: Config, tmp_path: Path) -> None:
    """GPT-2's, which are in × out where they were not put in 4 bits."""
    model = model_on(bases("gpt2"), tiny_config, quantization="none")
    assert self_test(model)[0] == "LoRA on 6 layers: c_attn 2, c_proj 4"
    weight = model.base.transformer.h[0].attn.c_attn
    with torch.no_grad():
        weight.lora_B["default"].weight.normal_()
    wanted = weight.base_layer.weight + weight.get_delta_weight("default")
    with merged_lora(model):
        assert torch.allclose(weight.base_layer.weight, wanted, atol=1e-5)
    again = ClinicalVLM.from_pretrained(save(model, tmp_path / "adapter"), device=torch.device("cpu"))
    assert torch.equal(
        again.base.transformer.h[0].attn.c_attn.lora_B["default"].weight, weight.lora_B["default"].weight
    )


def test_words_narrower_than_hidden_states_are_refused(tiny_llm: str, tiny_config: Config, tmp_path: Path) -> None:
    """As in OPT-350m: evidence could not stand between them."""
    base = write_base("opt", tmp_path / "opt", tiny_llm, word_embed_proj_dim=32)
    with pytest.raises(UserError, match=r"opt cannot be used: its word embeddings have 32 values, its hidden .* 64$"):
        model_on(base, tiny_config)


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_used_is_one_line_within_seconds(family: str, bases, tiny_config: Config) -> None:
    base, start = bases(family), time.process_time()  # of work, however busy the machine is
    with pytest.raises(UserError, match=REFUSED[family]) as error:
        self_test(model_on(base, tiny_config, quantization="none"))
    assert time.process_time() - start < 20 and "\n" not in str(error.value) and base in str(error.value)


def test_training_and_the_dry_run_end_before_their_first_step(bases, tiny_config: Config, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError("takes no embeddings")

    monkeypatch.setattr("vlm.model.clinical_vlm.ClinicalVLM.generate", fail)
    llm = replace(tiny_config.model.llm, base=bases("lfm2"), quantization="none")
    config = replace(one_thread(tiny_config), model=replace(tiny_config.model, llm=llm))
    for start in (train, try_step):
        with pytest.raises(UserError, match="lfm2 cannot be used: a draft fails: takes no embeddings"):
            start(config)
    assert not (Path(config.run.folder) / config.run.name).exists(), "nothing was written"


def test_the_dry_run_says_what_was_found(bases, tiny_config: Config, capsys) -> None:
    llm = replace(tiny_config.model.llm, base=bases("phi3"))
    try_step(replace(one_thread(tiny_config), model=replace(tiny_config.model, llm=llm)))
    said = capsys.readouterr().err
    for line in (
        "LoRA targets: o_proj, qkv_proj (so this base names its layers)",
        "prefix reuse: in training and drafts (every layer keeps the keys and values of all tokens)",
        "weights in 4 bits: 100.0% of the language model's linear weights",
        "LoRA on 4 layers: o_proj 2, qkv_proj 2",
        "self-test: a step, a draft and the adapter saved and loaded, in ",
        "one forward and backward of 2 cases",
    ):
        assert line in said


def test_values_that_a_cpu_computes_wrongly_are_named(bases, tiny_config: Config, tiny_model: ClinicalVLM) -> None:
    """bitsandbytes' own mistake on rows of 32 values; a release that mends it ends the warning."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    values = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    off = (dequantize_4bit(*quantize_4bit(values, quant_type="nf4")) - values).abs().mean() > 0.15  # else 0.07
    said = self_test(model_on(bases("deepseek_v3"), tiny_config, quantization="none"))
    assert not any("wrongly" in line for line in said)
    assert wrongly_dequantised(tiny_model.base, "nf4") == []
    layers = wrongly_dequantised(model_on(bases("deepseek_v3"), tiny_config, quantization="none").base, "nf4")
    assert bool(layers) == bool(off) and all("_b_proj" in name for name in layers)


def test_the_share_counts_what_is_packed_and_what_was_unpacked(bases, tiny_config: Config) -> None:
    for dequantize in ("always", "never"):
        model = model_on(bases("jamba"), tiny_config, dequantize=dequantize)
        linear = sum(
            p.numel() for p in model_on(bases("jamba"), tiny_config, quantization="none").base.parameters()
            if p.ndim > 1 and not p.requires_grad
        ) - 2 * 400 * 64  # fmt: skip
        share, left = quantised_share(model.base)
        layers = [m for m in model.base.modules() if type(m) is torch.nn.Linear and not m.weight.requires_grad]
        plain = sum(m.weight.numel() for m in layers) - 400 * 64
        packed = sum(values_of(p) for p in model.base.parameters() if type(p).__name__ == "Params4bit")
        assert share == pytest.approx((packed if dequantize == "never" else plain) / linear)
        assert 0.5 < share < 0.9 and left.endswith("experts.gate_up_proj")


# ------------------------------------------------------------------------------------------- the self-test itself


def test_it_leaves_all_as_it_was(tiny_model: ClinicalVLM) -> None:
    tiny_model.train()
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    self_test(tiny_model)
    assert torch.equal(torch.rand(3), wanted) and tiny_model.training
    assert all(torch.equal(before[name], value) for name, value in tiny_model.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


@pytest.mark.parametrize(
    "error", [AssertionError(""), KeyError("x"), NotImplementedError("no\nsuch"), RuntimeError("r")]
)
@pytest.mark.parametrize("part", ["_step", "_draft", "_save_and_load"])
def test_any_exception_is_one_line_that_names_the_base(part: str, error, tiny_model: ClinicalVLM, monkeypatch) -> None:
    def fail(model: ClinicalVLM) -> None:
        raise error

    monkeypatch.setattr(module, part, fail)
    with pytest.raises(UserError, match=r"model\.llm\.base: .*tiny-llm\d* cannot be used: ") as said:
        self_test(tiny_model)
    assert "\n" not in str(said.value) and not str(said.value).endswith(": ")


def test_memory_that_runs_out_is_said_as_ever(tiny_model: ClinicalVLM, monkeypatch) -> None:
    def fail(model: ClinicalVLM) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "_step", fail)
    with pytest.raises(torch.OutOfMemoryError):
        self_test(tiny_model)


def test_a_draft_that_a_batch_changes_is_refused(tiny_model: ClinicalVLM, monkeypatch) -> None:
    """As where a layer does not know of padding."""
    generate = ClinicalVLM.generate

    def unmasked(self, batch, *args, **options):
        return generate(self, batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}, *args, **options)

    monkeypatch.setattr(ClinicalVLM, "generate", unmasked)
    with pytest.raises(UserError, match="read otherwise in a batch than alone"):
        self_test(tiny_model)


def test_logits_that_the_loss_does_not_know_are_refused(tiny_model: ClinicalVLM, monkeypatch) -> None:
    forward = type(tiny_model.base).forward

    @functools.wraps(forward)  # whose signature says what it takes
    def scaled(self, *args, **options):
        output = forward(self, *args, **options)
        output.logits = output.logits * 1.5
        return output

    monkeypatch.setattr(type(tiny_model.base), "forward", scaled)
    with pytest.raises(UserError, match="read otherwise by the training loss than alone"):
        self_test(tiny_model)


def test_a_lora_that_is_not_loaded_is_found(tiny_model: ClinicalVLM, monkeypatch) -> None:
    monkeypatch.setattr("vlm.training.self_test.load_state", lambda *_: None)
    with pytest.raises(UserError, match=r"cannot be saved and loaded: .*lora_[AB]\.weight is read back otherwise"):
        self_test(tiny_model)


def test_lora_that_no_gradient_reaches_is_said(tiny_model: ClinicalVLM) -> None:
    layer = tiny_model.base.model.layers[1].self_attn.q_proj
    layer.forward = layer.base_layer.forward
    assert any("no gradient reaches LoRA on 1 layers" in line and "q_proj" in line for line in self_test(tiny_model))
