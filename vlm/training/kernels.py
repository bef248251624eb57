"""Choose how the language model computes a training step: attention, packing, Liger's kernels, compiled layers."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from vlm.config import TrainConfig
from vlm.data.case import random_cases
from vlm.data.collate import Collator, to_device
from vlm.device import Choice
from vlm.errors import UserError, one_line
from vlm.model.clinical_vlm import ClinicalVLM

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest mean difference between packed and padded hidden states, in their standard deviations."""
REPORTS = ("Normal.", "A report that is a little longer.", "No.")
"""Reports of unequal lengths, for the comparison."""


def apply_kernels(model: ClinicalVLM, train: TrainConfig) -> dict[str, Choice[Any]]:
    """Set the kernels that the config asks for; returns each choice with its reason.

    Raises `UserError` for one that this machine or this base cannot use: there is no silent fallback.
    """
    choices: dict[str, Choice[Any]] = {}
    if train.attention != "auto":
        _set_attention(model, train.attention)
        choices["attention"] = Choice(train.attention, "set by train.attention")
    if train.liger:
        _apply_liger(model)
        choices["Liger kernels"] = Choice(True, "set by train.liger")
    if train.compile:
        compile_layers(model)
        choices["compiled layers"] = Choice(True, "set by train.compile")
    packing = choose_packing(model, train)
    model.packing = packing.value
    return choices | {"packing": packing}


def choose_packing(model: ClinicalVLM, train: TrainConfig) -> Choice[bool]:
    """Choose whether training packs the cases of a micro batch, by comparing packed and padded hidden states.

    Some bases cannot tell packed cases apart: recurrent ones, and those without position ids. Raises `UserError` if
    the config demands it of such a base.
    """
    if train.packing == "never":
        return Choice(False, "set by train.packing")
    if train.packing == "auto" and model.device.type == "cpu":
        return Choice(False, "a CPU runs short and long cases apart instead")
    reason = _packed_difference(model)
    if reason and train.packing == "always":
        raise UserError(f"train.packing: {model.model_config.llm.base} {reason}; write train.packing: auto")
    if reason:
        return Choice(False, f"the base {reason}")
    return Choice(True, "no padding" if train.packing == "auto" else "set by train.packing")


@torch.no_grad()
def _packed_difference(model: ClinicalVLM) -> str:
    """Compare packed and padded hidden states of made-up cases; returns why the base cannot pack, or ''."""
    examples = [e | {"report": r} for e, r in zip(random_cases(model.spec, len(REPORTS)), REPORTS, strict=True)]
    batch = to_device(Collator(model.prompt)(examples), model.device)
    training = model.training
    model.eval()
    try:
        with model.autocast():
            embedded, _ = model.embed_prompt(batch)
            padded = model.trunk(embedded, batch["attention_mask"])  # B × T × H
            packed = model.packed_trunk(embedded, batch["attention_mask"])
    except (TypeError, ValueError, RuntimeError) as error:
        return f"cannot run packed cases: {(str(error).splitlines() or [type(error).__name__])[0]}"
    finally:
        model.train(training)
    inside = batch["attention_mask"].bool()
    difference = float((packed - padded)[inside].float().abs().mean() / padded[inside].float().std())
    same = difference <= TOLERANCE.get(embedded.dtype, 0.1)  # NaN is not
    return "" if same else f"does not keep packed cases apart: they differ by {difference:.2g} deviations"


def _set_attention(model: ClinicalVLM, wanted: str) -> None:
    if wanted == "flash_attention_2" and find_spec("flash_attn") is None:  # Transformers might fetch one from the Hub
        raise UserError("train.attention: flash_attention_2 needs flash-attn; pip install flash-attn")
    with one_line(f"train.attention: {model.model_config.llm.base} cannot use {wanted}"):
        model.base.set_attn_implementation(wanted)
    if model.base.config.get_text_config()._attn_implementation != wanted:  # Transformers warns and keeps the old one
        raise UserError(f"train.attention: {model.model_config.llm.base} cannot use {wanted}; write sdpa or eager")


def _apply_liger(model: ClinicalVLM) -> None:
    if model.device.type == "cpu":
        raise UserError("train.liger: Triton kernels need a GPU")
    if find_spec("liger_kernel") is None:
        raise UserError("train.liger: needs liger-kernel; pip install liger-kernel")
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    with one_line(f"train.liger: Liger has no kernels for {model.model_config.llm.base}"):
        _apply_liger_kernel_to_instance(model=model.base)


def compile_layers(model: ClinicalVLM) -> None:
    """Compile each decoder layer in place, for any length; one compilation serves all layers of a kind."""
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)


def decoder_layers(model: ClinicalVLM) -> list[nn.Module]:
    """List the decoder layers of the language model: the modules that Transformers keeps on one device."""
    kinds = model.base._no_split_modules or ()
    return [module for module in model.base.base_model.modules() if type(module).__name__ in kinds]
