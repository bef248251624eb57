"""What differs between bases: their logits, their caches, and where their weights lie."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from tests.families import FAMILIES, SIZES, write_base
from vlm.config import FusionConfig
from vlm.model import loss as terms
from vlm.model.bases.loading import load_causal_lm, text_config
from vlm.model.bases.prefix_reuse import NOWHERE, choose_prefix_reuse, drafts_together
from vlm.model.bases.vocabulary_head import VocabularyHead
from vlm.model.fusion import JointVector


def model_of(family: str, **changes) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES | FAMILIES[family] | changes)
    return AutoModelForCausalLM.from_config(config).eval()


# ------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize(
    ("family", "changes"),
    [("phi", {}), ("gptj", {}), ("cohere", {"logit_scale": 0.25}), ("granite", {"logits_scaling": 8.0}),
     ("gemma2", {"final_logit_softcapping": 0.5}), ("opt", {}), ("llama", {}), ("mamba", {})],
)  # fmt: skip
def test_the_head_gives_the_logits_of_the_whole_model(family: str, changes: dict, monkeypatch) -> None:
    model = model_of(family, **changes)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        for parameter in model.get_output_embeddings().parameters():
            parameter.normal_()
        wanted, states = model(input_ids=ids).logits[0], model.base_model(input_ids=ids)[0][0]
        head = VocabularyHead(model)
        assert torch.equal(head(states), wanted) and len(head) == 400
        for largest in (terms.LARGEST_LOGITS, 4 * 400 * 5):  # all at once, and five tokens
            monkeypatch.setattr(terms, "LARGEST_LOGITS", largest)
            losses = terms.token_losses(states, head, ids[0])
            torch.testing.assert_close(losses, torch.nn.functional.cross_entropy(wanted, ids[0], reduction="none"))


def test_a_plain_head_is_told_from_one_that_changes_its_logits(monkeypatch) -> None:
    assert VocabularyHead(model_of("llama")).plain is not None
    assert VocabularyHead(model_of("cohere", logit_scale=1.0)).plain is None, "not by value: a scale may be trained"
    model = model_of("llama")
    whole = type(model).forward

    def shifted(self, *args, **options):
        output = whole(self, *args, **options)
        output.logits.add_(1.0)
        return output

    monkeypatch.setattr(type(model), "forward", shifted)
    assert VocabularyHead(model).plain is None


def test_the_head_registers_nothing_and_follows_its_base() -> None:
    model = model_of("phi")
    names, head = set(model.state_dict()), VocabularyHead(model)
    assert set(model.state_dict()) == names and model.base_model is model.model
    states = torch.randn(3, 64)
    before = head(states)
    with torch.no_grad():
        model.lm_head.bias.add_(1.0)
    torch.testing.assert_close(head(states), before + 1.0)


def test_the_gradient_of_a_capped_logit_reaches_the_states() -> None:
    model = model_of("gemma2", final_logit_softcapping=0.5)
    states = torch.randn(4, 64, requires_grad=True)
    (ours,) = torch.autograd.grad(VocabularyHead(model)(states).square().sum(), states)
    capped = 0.5 * torch.tanh(torch.nn.functional.linear(states, model.lm_head.weight) / 0.5)
    (wanted,) = torch.autograd.grad(capped.square().sum(), states)
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("labels", [0, 3])
def test_label_logits_are_in_fp32_under_autocast(labels: int) -> None:
    joint = JointVector(FusionConfig(size=8), 16, 4, labels)
    f, x = torch.randn(5, 16), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        z, logits = joint(f.bfloat16(), x)
    assert z.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(logits, joint(f.bfloat16().float(), x)[1], rtol=0, atol=0)


# ------------------------------------------------------------------------------------------- caches


def test_cases_of_equal_prompts_alone_are_drafted_together_with_a_recurrent_base() -> None:
    recurrent, usual = (choose_prefix_reuse(model_of(family)) for family in ("lfm2", "llama"))
    assert recurrent.value == NOWHERE and "equal lengths" in recurrent.reason
    assert drafts_together(recurrent, ["a", "bb", "c", "dd", "eee"], len) == [[0, 2], [1, 3], [4]]
    assert drafts_together(usual, ["a", "bb"], lambda _: pytest.fail("nobody needs to know")) == [[0, 1]]


# ------------------------------------------------------------------------------------------- files


def test_a_base_whose_files_lack_a_tensor_is_refused(tiny_llm: str, tmp_path: Path) -> None:
    base = write_base("llama", tmp_path / "llama", tiny_llm)
    file = Path(base) / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"its files lack model\.layers\.1\.mlp\.up_proj\.weight \(1 such\)"):
        load_causal_lm(base)


def test_weights_in_several_files_are_found(tiny_llm: str, tmp_path: Path) -> None:
    base = write_base("qwen3_vl", tmp_path / "whole", tiny_llm)
    whole = load_causal_lm(base)
    AutoModelForImageTextToText.from_pretrained(base).save_pretrained(tmp_path / "parts", max_shard_size="100KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    parts = load_causal_lm(str(tmp_path / "parts"))
    assert all(torch.equal(parts.get_parameter(name), value) for name, value in whole.named_parameters())


@pytest.mark.parametrize("head", [True, False])
def test_the_output_layer_is_tied_where_the_files_have_none(head: bool, tiny_llm: str, tmp_path: Path) -> None:
    base = write_base("qwen2_5_vl", tmp_path / "base", tiny_llm)
    if not head:
        model = AutoModelForImageTextToText.from_pretrained(base)
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
        model.tie_weights()
        model.save_pretrained(tmp_path / "base")
    llm = load_causal_lm(base)
    assert (llm.get_output_embeddings().weight is llm.get_input_embeddings().weight) == (not head)


@pytest.mark.parametrize("kind", ["t5", "glm4v", "clip"])
def test_a_base_without_a_causal_language_model_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="Transformers has no causal language model of type "):
        text_config(AutoConfig.for_model(kind))


def test_positions_of_an_image_text_model_become_plain() -> None:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 5e5, "mrope_interleaved": True}
    config = AutoConfig.for_model("qwen3_vl", text_config=SIZES | {"rope_parameters": rope, "head_dim": 16})
    text = text_config(config)
    assert text.model_type == "qwen3" and text.rope_parameters == {"rope_type": "default", "rope_theta": 5e5}
    assert (text.hidden_size, text.head_dim, text.num_key_value_heads) == (64, 16, 2)
