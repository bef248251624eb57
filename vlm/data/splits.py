"""Train, validation and test by patient: a patient is in one of them, whatever is added later."""

import hashlib
from collections.abc import Sequence

from vlm.config import SplitConfig

SPLITS = ("train", "validation", "test")


def unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: not on the row, the machine or Python's hash seed."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign_splits(patients: Sequence[str], config: SplitConfig) -> list[str]:
    """One of `SPLITS` for each row, by its patient's id."""

    def split_of(patient: str) -> str:
        position = unit_hash(f"{config.seed}/{patient}")
        if position < config.test:
            return "test"
        return "validation" if position < config.test + config.validation else "train"

    return [split_of(patient) for patient in patients]
