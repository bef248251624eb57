"""Let the adapters of one base, in one process, hold its frozen weights once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from vlm.adapter import AdapterConfig
from vlm.errors import UserError

if TYPE_CHECKING:  # engines without PyTorch's language model start without it
    from vlm.model.clinical_vlm import ClinicalVLM


def check_same_base(configs: Sequence[tuple[str, AdapterConfig]]) -> None:
    """Raise `UserError` if an adapter, by its name and config, was trained on another base than the first."""
    (first, wanted), *others = configs
    for name, given in others:
        hashes = (wanted.base_fingerprint, given.base_fingerprint), (wanted.base_sha256, given.base_sha256)
        for ours, theirs in hashes:
            if ours and theirs and ours != theirs:  # an adapter of an earlier version has no SHA-256
                bases = f"{given.model.llm.base} ({theirs[:16]}), not {wanted.model.llm.base} ({ours[:16]})"
                raise UserError(f"--adapter {name}: trained on another base than {first}: {bases}; serve it alone")


def share_frozen(model: "ClinicalVLM", other: "ClinicalVLM") -> int:
    """Let a model use another's frozen weights of the base where they are equal; returns the bytes that this frees.

    The two stay apart: a LoRA that is merged while drafting replaces the weight in its own model alone. Neither may be
    drafting now.
    """
    theirs = {_base_name(name): value for name, value in other.llm.named_parameters()}
    freed = 0
    for name, value in model.llm.named_parameters():
        same = theirs.get(_base_name(name))
        if same is None or "lora_" in name or value.requires_grad or value.dtype != same.dtype:
            continue
        if torch.equal(value.data, same.data):
            value.data = same.data
            freed += value.nbytes
    return freed


def _base_name(name: str) -> str:
    """Name a weight alike whether LoRA wraps its layer or not."""
    return name.replace(".base_layer.", ".")
