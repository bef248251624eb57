"""The recipe of one GPU on a GPU that is only imagined: types and devices of each tensor, without a driver.

PyTorch's fake tensors have a shape, a type and a device, and no values. What depends on values (lengths, supervised
places, the end of a draft) comes from the real batch. Fake tensors have no backward pass without a driver, and
bitsandbytes' packed weights cannot be faked: the layers are bf16.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu import spec_of
from benchmarks.random_base import SHAPES, byte_tokenizer
from vlm.compat import cache_argument, cache_of
from vlm.config.parsing import parse_config
from vlm.data.case import random_cases
from vlm.data.collate import Batch, Collator
from vlm.model import decoder, loss
from vlm.model.bases.lora_targets import fit_targets
from vlm.model.clinical_vlm import ClinicalVLM

CUDA = torch.device("cuda:0")
pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7), reason="its fake tensors ask for a driver"
)
REPORTS = ("No opacity.", "", "A report that is longer than the others.")


@pytest.fixture(scope="module")
def config():
    return parse_config(["--config", "configs/single_gpu.yaml"])[0]


@pytest.fixture(scope="module")
def real(config) -> ClinicalVLM:
    """One layer of the 1B in bf16, with LoRA on each of its products, and the preset's ResNet-50."""
    shape = SHAPES["1B"] | {"num_hidden_layers": 1, "vocab_size": 400}
    sizes = LlamaConfig(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    llm = AutoModelForCausalLM.from_config(sizes, dtype=torch.bfloat16).requires_grad_(False).eval()
    vision = replace(config.model.vision, weights="random")
    parts = replace(config.model, vision=vision, llm=fit_targets(llm, config.model.llm))
    return ClinicalVLM(parts, spec_of(config.data.image_size), llm, byte_tokenizer(), load_vision_weights=False)


@pytest.fixture(scope="module")
def mode() -> FakeTensorMode:
    return FakeTensorMode(shape_env=ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True))


@pytest.fixture(scope="module")
def faked(real: ClinicalVLM, mode: FakeTensorMode) -> ClinicalVLM:
    """The same model on the imagined GPU."""
    for module in real.modules():
        for name, value in list(module._parameters.items()):
            if value is not None:
                module._parameters[name] = nn.Parameter(fake(mode, value), requires_grad=value.requires_grad)
        for name, value in list(module._buffers.items()):
            module._buffers[name] = fake(mode, value)
    return real


def fake(mode: FakeTensorMode, value: torch.Tensor | None) -> Any:
    if value is None:
        return None
    here = mode.from_tensor(value.detach(), static_shapes=True)
    with mode:
        return here.to(CUDA)


@pytest.fixture
def batches(faked: ClinicalVLM, mode: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Batch, Batch]]:
    """A training batch and a prompt batch on the imagined GPU; lengths and places are those of the real ones."""
    cases = [c | {"report": r, "targets": torch.ones(1)}
             for c, r in zip(random_cases(faked.spec, len(REPORTS)), REPORTS, strict=True)]  # fmt: skip
    training, prompts = Collator(faked.prompt)(cases), Collator(faked.prompt, generation=True)(cases)
    rows, length = loss.rows_with_text(training["labels"], training["attention_mask"])
    places = loss.supervised(training["labels"][rows, :length])
    lengths = decoder.row_lengths(training["attention_mask"][rows])
    chosen, (case, place) = fake(mode, rows), (fake(mode, index) for index in places)
    monkeypatch.setattr("vlm.model.clinical_vlm.rows_with_text", lambda *_: (chosen, length))
    monkeypatch.setattr(loss, "supervised", lambda *_: (case, place))
    monkeypatch.setattr(decoder, "row_lengths", lambda *_: lengths)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)  # for want of a driver
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    yield tuple({name: fake(mode, value) for name, value in batch.items()} for batch in (training, prompts))  # type: ignore[misc, attr-defined]


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("training", [True, False])
def test_both_losses_are_fp32_on_the_gpu(
    packing: bool, training: bool, faked: ClinicalVLM, mode: FakeTensorMode, batches: tuple[Batch, Batch]
) -> None:
    """With activation checkpointing, autocast and the head's logits out of it."""
    faked.train(training)
    faked.packing = packing
    with mode, faked.autocast():
        output = faked(**batches[0], alpha=0.5)
    for value in (output.loss, output.loss_bce, output.loss_ce, output.logits, output.case_losses):
        assert value.dtype == torch.float32 and value.device == CUDA
    assert output.logits.shape == (3, 1) and output.case_tokens.shape == (3,)


def test_what_trains_is_fp32_and_what_is_frozen_bf16(faked: ClinicalVLM) -> None:
    kinds = {(value.requires_grad, value.dtype) for name, value in faked.named_parameters() if "llm." in name}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert all(value.device == CUDA for value in faked.state_dict().values())


def test_a_draft_stays_on_the_gpu(faked: ClinicalVLM, mode: FakeTensorMode, batches: tuple[Batch, Batch]) -> None:
    """The first two words of three cases, and the prefix that they share (`generate` itself looks at values)."""
    faked.eval()
    prompts = batches[1]
    with mode, torch.no_grad():
        prefix = faked.prefix_kv_cache()
        with faked.autocast():
            encoded = faked.encode(prompts["pixel_values"], prompts["has_image"], prompts["vitals"])
            shown = faked.embed(prompts["input_ids"], prompts["evidence_mask"], encoded.tokens)
            first = faked.llm(inputs_embeds=shown, attention_mask=prompts["attention_mask"], use_cache=True)
            word = first.logits[:, -1].argmax(dim=-1, keepdim=True)  # B × 1
            second = faked.llm(input_ids=word, **{cache_argument(): cache_of(first)})
    assert prefix is not None
    assert shown.dtype == second.logits.dtype == torch.bfloat16
    assert encoded.logits.dtype == torch.float32
    assert second.logits.shape[:2] == (3, 1) and second.logits.device == encoded.logits.device == CUDA
