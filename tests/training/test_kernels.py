"""How a step is computed changes no number: packed cases, attention kernels, compiled layers, micro batches."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.families import write_base
from tests.runs import Run, write_config
from vlm.config import Config, TrainConfig
from vlm.data.case import random_cases
from vlm.data.collate import Collator
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.decoder import packs
from vlm.training.kernels import apply_kernels, choose_packing, compile_layers
from vlm.training.micro_batch import choose_micro_batch, divisors
from vlm.training.run import build_model, case_dataset

REPORTS = ("Normal.", "", "A report of some length: one two three four five six seven.", "Short one.")


@pytest.fixture
def model_of(tiny_llm: str, tiny_config: Config, tmp_path: Path):
    """A model on a base of some family, with LoRA that is not zero."""

    def build(family: str) -> ClinicalVLM:
        still = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0} if family == "gpt2" else {}  # no dropout
        base = write_base(family, tmp_path / family, tiny_llm, **still)
        model_config = replace(tiny_config.model, llm=replace(tiny_config.model.llm, base=base, quantization="none"))
        config = replace(tiny_config, model=model_config)
        model = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, value in model.trainable_parameters().items():
                if "lora_B" in name:
                    value.normal_(std=0.05)
        return model.train()

    return build


def step_of(model: ClinicalVLM) -> tuple[float, dict[str, torch.Tensor]]:
    """The text loss of four cases of unequal lengths, one without a report, and its gradients."""
    cases = random_cases(model.spec, len(REPORTS))
    batch = Collator(model.prompt)([case | {"report": r} for case, r in zip(cases, REPORTS, strict=True)])
    model.zero_grad()
    output = model(**batch, alpha=0.0)
    output.loss.backward()
    return output.loss.item(), {
        n: p.grad.clone() for n, p in model.trainable_parameters().items() if p.grad is not None
    }


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "qwen3"])
def test_packed_cases_have_the_loss_and_gradients_of_padded_ones(
    family: str, model_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With learned and rotary positions, and with windows; all in one sequence, and in two."""
    model = model_of(family)
    padded, wanted = step_of(model)
    for longest in (4096, 80):
        monkeypatch.setattr("vlm.model.clinical_vlm.LONGEST_PACK", longest)
        choice = choose_packing(model, TrainConfig(packing="always"))
        assert choice == (True, "set by train.packing")
        model.packing = choice.value
        loss, gradients = step_of(model)
        model.packing = False
        assert loss == pytest.approx(padded, rel=1e-5)
        assert gradients.keys() == wanted.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, wanted[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("family", ["bloom", "mpt"])
def test_a_base_that_cannot_tell_packed_cases_apart_is_not_packed(family: str, model_of) -> None:
    model = model_of(family)
    with pytest.raises(UserError, match=r"^train\.packing: .* packed cases.*; write train\.packing: auto$"):
        choose_packing(model, TrainConfig(packing="always"))
    assert not choose_packing(model, TrainConfig()).value


def test_rows_are_packed_in_their_order() -> None:
    assert packs([5, 3, 4, 9, 1], 8) == [[0, 1], [2], [3], [4]]
    assert packs([5, 3, 4], None) == [[0, 1, 2]]


def test_attention_kernels_are_set_or_refused(tiny_model: ClinicalVLM) -> None:
    before = tiny_model.base.config._attn_implementation
    eager = step_of(tiny_model)[0]
    try:
        assert apply_kernels(tiny_model, TrainConfig(attention="eager"))["attention"].value == "eager"
        assert tiny_model.base.config._attn_implementation == "eager"
        assert step_of(tiny_model)[0] == pytest.approx(eager, rel=1e-5)
    finally:
        tiny_model.base.set_attn_implementation(before)
    with pytest.raises(UserError, match=r"^train\.attention: flash_attention_2 needs flash-attn; pip install"):
        apply_kernels(tiny_model, TrainConfig(attention="flash_attention_2"))
    with pytest.raises(UserError, match=r"^train\.liger: Triton kernels need a GPU$"):
        apply_kernels(tiny_model, TrainConfig(liger=True))


@pytest.mark.soak
def test_compiled_layers_have_the_same_loss_and_gradients(model_of) -> None:
    model = model_of("llama")
    plain, wanted = step_of(model)
    compile_layers(model)
    loss, gradients = step_of(model)
    assert loss == pytest.approx(plain, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-3, atol=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize(("room", "found"), [(100, 12), (7, 6), (5, 4), (1, 1)])
def test_the_micro_batch_is_the_largest_that_fits(
    room: int, found: int, tiny_model: ClinicalVLM, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory as PyTorch says it, above some number of cases."""
    training = case_dataset(tiny_config, tiny_model.spec, load_cohort(tiny_config.data), "train")
    tried, forward = [], tiny_model.forward

    def forward_within(*, vitals: torch.Tensor, **batch):
        tried.append(len(vitals))
        if len(vitals) > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(vitals=vitals, **batch)

    monkeypatch.setattr(tiny_model, "forward", forward_within)
    monkeypatch.setattr("vlm.training.micro_batch.on_cpu", lambda model: False)
    example = training.plain()[0]
    train = TrainConfig(batch_size=12, micro_batch_size="auto")
    choice = choose_micro_batch(tiny_model, train, lambda n: Collator(tiny_model.prompt)([example] * n))
    assert choice.value == found == tried[-1] and tried == sorted(tried, reverse=True)
    assert all(value.grad is None for value in tiny_model.trainable_parameters().values())


def test_the_micro_batch_on_a_cpu_and_for_none_that_fits(
    tiny_model: ClinicalVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = TrainConfig(batch_size=12, micro_batch_size="auto")
    assert choose_micro_batch(tiny_model, train, lambda n: {}).value == 6  # type: ignore[arg-type,return-value]
    assert choose_micro_batch(tiny_model, TrainConfig(micro_batch_size=4), lambda n: {}).value == 4  # type: ignore[arg-type,return-value]
    assert divisors(12) == [1, 2, 3, 4, 6, 12]


@pytest.mark.slow
def test_a_run_in_packs_with_an_automatic_micro_batch_learns_the_same(
    tiny_llm: str, table_root: Path, forks, tmp_path: Path
) -> None:
    """Whole runs by the command: losses and metrics of the padded run to 1e-4."""

    file = write_config(tiny_llm, table_root, tmp_path)
    padded = Run(file, "padded").to_its_end(forks)
    packed = Run(file, "packed").to_its_end(forks, "--train.packing", "always", "--train.micro_batch_size", "auto")
    said = packed.said.read_text()
    assert "packing: True (set by train.packing)" in said and "micro batch: 4 (on a CPU" in said
    for ours, theirs in zip(packed.result()[1], padded.result()[1], strict=True):
        assert ours["step"] == theirs["step"]
        for name in ours.keys() & {"loss", "eval_loss", "eval_loss_ce", "eval_loss_bce"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
