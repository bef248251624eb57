"""Hold what an encoder's name stands for, and read its file of weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from vlm.cache import cached_by_stat
from vlm.errors import UserError
from vlm.model.encoders.encoder import Pictures

TRANSFORMERS = "transformers:"
"""Prefix of the names of encoders of Transformers."""


class Source(NamedTuple):
    """Hold what an encoder's name stands for."""

    library: Literal["timm", "transformers"]
    architecture: str
    """timm's name of the model, or the model type of Transformers."""
    options: Mapping[str, Any]
    """Options of the architecture that differ from its name's own."""
    pictures: Pictures
    file: Path | None = None
    """Safetensors file with the weights; None for random ones and for timm's own."""
    address: str | None = None
    """`hf-hub:ORG/NAME@COMMIT` of the file, with its name where it is another than usual; None for a local one."""
    reason: str = "its name"
    """Why this library, to print."""

    @property
    def name(self) -> str:
        """The name that stands for the architecture alone, for an adapter's config."""
        return self.architecture if self.library == "timm" else f"{TRANSFORMERS}{self.architecture}"


def file_digest(file: Path) -> str:
    """Compute the SHA-256 of a file; cached by its stamps."""

    def compute() -> str:
        with file.open("rb") as read:
            return hashlib.file_digest(read, "sha256").hexdigest()

    return cached_by_stat([file], "sha256", compute)


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; raises `UserError` for another."""
    from safetensors.torch import load_file

    try:
        return load_file(file)  # type: ignore[no-any-return]
    except Exception as error:  # safetensors raises its own bare exception type
        raise UserError(f"model.vision.weights: {file} is no safetensors file: {error}") from None
