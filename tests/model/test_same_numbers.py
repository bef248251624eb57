"""The same numbers, computed otherwise: packed weights, words read once for all, cases grouped by length."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.rebuilt import rebuild
from vlm.config import Config
from vlm.model.clinical_vlm import ClinicalVLM


def test_nf4_packed_and_unpacked_give_the_same_numbers(tiny_config: Config, tiny_batch) -> None:
    models = [
        rebuild(tiny_config, llm=replace(tiny_config.model.llm, dequantize=dequantize)).eval()
        for dequantize in ("always", "never")
    ]
    plain = rebuild(tiny_config, llm=replace(tiny_config.model.llm, quantization="none")).eval()
    with torch.no_grad():
        unpacked, packed, exact = (model(**tiny_batch).loss_ce for model in (*models, plain))
    torch.testing.assert_close(unpacked, packed, rtol=1e-3, atol=1e-3)
    assert not torch.equal(unpacked, exact), "the weights were not quantised"


def test_an_evaluation_leaves_the_gradients_of_packed_weights_as_they_were(tiny_config: Config, tiny_batch) -> None:
    """On a CPU that multiplies bf16, bitsandbytes would repack a layer at its first pass without gradient."""
    model = rebuild(tiny_config, llm=replace(tiny_config.model.llm, dequantize="never"))
    with torch.no_grad():
        for name, value in model.trainable_parameters().items():
            if "lora_B" in name:
                value.normal_(std=0.3)

    def gradients() -> dict[str, torch.Tensor]:
        model.train().zero_grad()
        model(**tiny_batch, alpha=0.0).loss.backward()
        return {n: p.grad.clone() for n, p in model.trainable_parameters().items() if p.grad is not None}

    before = gradients()
    assert any("lora_A" in name for name in before)
    with torch.no_grad():
        model.eval()(**tiny_batch)
        model.prefix_kv_cache()
    for name, value in gradients().items():
        torch.testing.assert_close(value, before[name], rtol=1e-5, atol=1e-7, msg=name)
    packed = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    assert len(packed) == 14 and not any(module.support_avx512bf16_for_cpu for module in packed)


@pytest.mark.parametrize("training", [True, False])
def test_the_words_that_all_share_are_read_once_and_change_nothing(tiny_model, tiny_batch, training: bool) -> None:
    """Losses and every gradient are those of reading them for each case."""
    with torch.no_grad():
        for name, value in tiny_model.trainable_parameters().items():
            if "lora_B" in name:
                value.normal_(std=0.3)
    tiny_model.train(training)
    assert tiny_model.prompt.fixed_tokens > 3

    def run() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        tiny_model.zero_grad()
        output = tiny_model(**tiny_batch)
        output.loss.backward()
        grads = {n: p.grad.clone() for n, p in tiny_model.trainable_parameters().items() if p.grad is not None}
        return output.case_losses.detach(), grads

    shared, gradients = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClinicalVLM, "_can_reuse_prefix", False)
        plain, wanted = run()
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-4)
    assert gradients.keys() == wanted.keys() and any("lora_A" in name for name in wanted)
    for name in wanted:
        torch.testing.assert_close(gradients[name], wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_what_must_differ_from_case_to_case_is_not_shared(tiny_model) -> None:
    llm = replace(tiny_model.model_config.llm, lora_dropout=0.1)
    tiny_model.model_config = replace(tiny_model.model_config, llm=llm)
    assert not tiny_model.train()._can_reuse_prefix and tiny_model.eval()._can_reuse_prefix


@pytest.mark.parametrize("share", [True, False])
def test_cases_of_like_length_run_together_and_give_what_one_pass_gives(tiny_model, monkeypatch, share: bool) -> None:
    from vlm.model import decoder as trunk

    model, shared = tiny_model.base.base_model, 3 if share else 0
    lengths = [30, 5, 29, 6, 31, 7]
    mask = (torch.arange(31) < torch.tensor(lengths)[:, None]).long()
    embeddings = torch.randn(6, 31, 64)
    embeddings[:, :3] = embeddings[0, :3]
    embeddings.requires_grad_(True)
    weight = torch.randn(6, 31, 64) * mask[..., None]

    def run(cost: int) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr(trunk.length_groups, "__defaults__", (cost,))
        hidden = trunk.decoder_forward(model, embeddings, mask, shared, one_pass=False)
        (gradient,) = torch.autograd.grad((hidden * weight).sum(), embeddings)
        return hidden * mask[..., None], gradient

    assert len(trunk.length_groups(lengths, 1)) > 1 and len(trunk.length_groups(lengths, 10_000)) == 1
    torch.testing.assert_close(run(1), run(10_000), rtol=1e-4, atol=1e-4)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=7), st.integers(0, 60))
def test_no_other_groups_by_length_cost_less(lengths: list[int], cost: int) -> None:
    from vlm.model.decoder import length_groups

    def price(groups: list[list[int]]) -> int:
        return sum(cost + max(lengths[row] for row in rows) * len(rows) for rows in groups)

    def partitions(rows: list[int]) -> Iterator[list[list[int]]]:
        if not rows:
            yield []
            return
        for rest in partitions(rows[1:]):
            yield [[rows[0]], *rest]
            for place in range(len(rest)):
                yield [*rest[:place], [rows[0], *rest[place]], *rest[place + 1 :]]

    groups = length_groups(lengths, cost)
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    assert price(groups) == min(price(other) for other in partitions(list(range(len(lengths)))))
