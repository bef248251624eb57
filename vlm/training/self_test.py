"""Test the base for a few seconds before training, so that it does not fail at the first draft after days.

The test makes one training step, drafts two tokens in a batch and alone, and saves and loads the adapter. It leaves
weights, gradients and random states unchanged.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessorList

from vlm.adapter import load_state, open_adapter, save, split_state
from vlm.adapter.folder import read_tensors
from vlm.adapter.layout import portable_config
from vlm.data.case import Example, random_cases
from vlm.data.collate import Collator, to_device
from vlm.errors import UserError, one_line
from vlm.finite import all_finite, first_nonfinite
from vlm.inference.engine import ReportEngine
from vlm.inference.lora_merge import merged_lora
from vlm.model.bases.lora_targets import describe_lora
from vlm.model.bases.prefix_reuse import NOWHERE, drafts_together
from vlm.model.bases.quantization import bits, comes_quantised, is_packed_int8, quantised_share, wrongly_dequantised
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.llm import word_embeddings

DRAFTED = 2
"""Number of tokens drafted."""
TOLERANCE = {torch.float32: 0.02, torch.bfloat16: 0.3}
"""Maximum mean difference of logits, in their standard deviations, between drafts in a batch and alone; ideally 0."""


def self_test(model: ClinicalVLM) -> list[str]:
    """Try a training step, a draft and saving, and return the findings in lines; leaves the model unchanged.

    Turns any exception into a `UserError` that names the base and the part that fails.
    """
    start, lines = time.perf_counter(), describe_base(model)
    cannot = f"model.llm.base: {model.model_config.llm.base} cannot be used"
    with _unchanged(model):
        with one_line(f"{cannot}: a training step fails"):
            _check_causal(model)
            lines += _step(model)
        with one_line(f"{cannot}: a draft fails"):
            _draft(model)
        with one_line(f"{cannot}: its adapter cannot be saved and loaded"):
            _save_and_load(model)
    seconds = time.perf_counter() - start
    return [*lines, f"self-test: a step, a draft and the adapter saved and loaded, in {seconds:.1f} s"]


def describe_base(model: ClinicalVLM) -> list[str]:
    """Describe the share of the weights in 4 bits and the layers with LoRA."""
    lines = []
    if method := comes_quantised(model.base):
        lines.append(f"quantization: {method} (the base comes so)")
    elif model.model_config.llm.quantization != "none":
        share, left = quantised_share(model.base)
        rest = f"; the largest that is not: {left}" if left else ""
        width = bits(model.model_config.llm)
        lines.append(f"weights in {width} bits: {share:.1%} of the language model's linear weights{rest}")
        if width == 4 and model.device.type == "cpu":
            lines += _wrong_values(model)
    return lines + describe_lora(model.llm, getattr(model.base.config.get_text_config(), "num_hidden_layers", 0))


def _wrong_values(model: ClinicalVLM) -> list[str]:
    """Warn of layers whose 4-bit values this CPU computes otherwise than a GPU."""
    layers = wrongly_dequantised(model.base, model.model_config.llm.quantization)
    if not layers:
        return []
    what = f"{len(layers)} layers, such as {layers[0].removesuffix('.base_layer')}"
    return [f"warning: bitsandbytes computes the 4-bit values of {what}, wrongly on a CPU; a GPU's differ"]


@contextmanager
def _unchanged(model: ClinicalVLM) -> Iterator[None]:
    """Set LoRA B to nonzero values within the block, and restore the model and random states afterwards."""
    training = model.training
    kept = {name: value.detach().clone() for name, value in model.trainable_parameters().items() if "lora_" in name}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                for name in kept:
                    if "lora_B" in name:  # zero at initialization
                        model.get_parameter(name).normal_(std=0.01)
            yield
        finally:
            model.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, value in kept.items():
                    model.get_parameter(name).copy_(value)
            model.train(training)


def _examples(model: ClinicalVLM) -> list[Example]:
    """Make two cases of different lengths."""
    examples = list(random_cases(model.spec, 2))
    texts = (("", "Normal."), ("one two three four five six", "No image, and a longer report."))
    return [example | {"context": c, "report": r} for example, (c, r) in zip(examples, texts, strict=True)]


@torch.no_grad()
def _check_causal(model: ClinicalVLM) -> None:
    """Raise `ValueError` if a token attends to later ones, as in PaliGemma: the loss would be read, not learned."""
    words = word_embeddings(model.base)[:6].clone()[None]  # 1 × 6 × H
    others = words.index_copy(1, torch.tensor([3, 4, 5], device=words.device), words[:, :3])
    model.eval()
    before, after = (
        model.base.base_model(inputs_embeds=read).last_hidden_state[:, :3].float() for read in (words, others)
    )
    if not float((after - before).abs().max()) <= _tolerance(model) * float(before.std()):
        raise ValueError("its tokens attend to later ones")


def _tolerance(model: ClinicalVLM) -> float:
    """Get the tolerance for the rounding of a base's products.

    LLM.int8() computes the columns with an outlier in any token of a batch in full precision, so its rounding of one
    token depends on the others.
    """
    if any(is_packed_int8(module) for module in model.base.modules()):
        return TOLERANCE[torch.bfloat16]
    return TOLERANCE[word_embeddings(model.base).dtype]


def _step(model: ClinicalVLM) -> list[str]:
    """Run one forward and backward pass; returns a warning for LoRA layers without a gradient."""
    model.train()
    with model.autocast():
        loss = model(**to_device(Collator(model.prompt)(_examples(model)), model.device), alpha=0.0).loss
    loss.backward()
    lora = {name: value.grad for name, value in model.trainable_parameters().items() if "lora_B" in name}
    broken = first_nonfinite({name: gradient for name, gradient in lora.items() if gradient is not None})
    if broken or not all_finite(loss):
        raise ValueError(f"the loss is {loss.item():.3g}{f', a gradient of {broken} is not finite' if broken else ''}")
    unreached = [name for name, gradient in lora.items() if gradient is None]
    if len(unreached) == len(lora):
        raise ValueError("no gradient reaches LoRA")
    names = f"such as {unreached[0].split('.lora_B')[0]}" if unreached else ""
    return [f"warning: no gradient reaches LoRA on {len(unreached)} layers, {names}"] if unreached else []


def _draft(model: ClinicalVLM) -> None:
    """Draft two cases in a batch, as the engine does, and each alone, and run the prompts as the loss does.

    Raises `ValueError` if the next-token logits of the three differ by more than `TOLERANCE`.
    """
    collate, examples = Collator(model.prompt, generation=True), _examples(model)
    if model.prefix_reuse.value == NOWHERE:  # batches have prompts of equal length
        examples = [example | {"context": examples[1]["context"]} for example in examples]
    with merged_lora(model):
        fixed, groups = (
            model.prefix_kv_cache(),
            drafts_together(model.prefix_reuse, examples, ReportEngine(model).prompt_length),
        )
        batches = (to_device(collate([examples[row] for row in rows]), model.device) for rows in groups)
        together = torch.cat([_logits(model, batch, fixed) for batch in batches])
    model.eval()
    single = [to_device(collate([example]), model.device) for example in examples]
    alone = torch.cat([_logits(model, batch, None) for batch in single])
    trained = torch.cat([_logits_of_the_loss(model, batch) for batch in single])
    at_most = _tolerance(model)
    for what, others in (("in a batch", together), ("by the training loss", trained)):
        difference = float((others - alone).abs().mean() / alone.std())
        if not difference <= at_most:  # NaN fails too
            raise ValueError(f"it is read otherwise {what} than alone, by {difference:.2g} deviations of the logits")


@torch.no_grad()
def _logits_of_the_loss(model: ClinicalVLM, batch: Any) -> torch.Tensor:
    """Compute the next-token logits of a prompt from the hidden states used by the text loss; 1 × V."""
    with model.autocast():
        embeddings, _ = model.embed_prompt(batch)
        hidden = model.trunk(embeddings, batch["attention_mask"])[:, -1]
        logits = model.vocabulary_head(hidden)
    return logits.float().index_fill(1, torch.tensor([model.prompt.end_id], device=logits.device), 0)


def _logits(model: ClinicalVLM, batch: Any, fixed: Any) -> torch.Tensor:
    """Capture the logits of the first drafted token; B × V."""
    seen: list[torch.Tensor] = []

    def keep(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.append(scores.float().masked_fill(scores == -torch.inf, 0))  # the end token, not allowed yet
        return scores

    model.generate(batch, DRAFTED, fixed, min_new_tokens=DRAFTED, logits_processor=LogitsProcessorList([keep]))
    return seen[0]


def _save_and_load(model: ClinicalVLM) -> None:
    """Save the adapter and load it back into the model; raises `ValueError` if a value differs."""
    before = [{name: value.clone() for name, value in part.items()} for part in split_state(model)]
    with tempfile.TemporaryDirectory() as work:
        try:
            opened = open_adapter(save(model, Path(work) / "adapter"))
            lora, rest = read_tensors(opened, *split_state(model))
        except UserError as error:  # strip the temporary path
            raise ValueError(str(error).replace(f"{work}/", "")) from None
    if (opened.config.model, opened.config.spec) != (portable_config(model), model.spec):
        raise ValueError("its config is read back otherwise")
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if "lora_" in name:
                parameter.zero_()
    load_state(model, lora, rest, "the adapter")
    for part, wanted in zip(split_state(model), before, strict=True):
        for name, value in part.items():
            if not torch.equal(value, wanted[name]):
                raise ValueError(f"{name} is read back otherwise")
