"""Check a sample of images before a run, to report unreadable and blank ones early."""

import time

import datasets
import numpy as np
import pyarrow.compute as pc

from vlm.data.dataset import read_square
from vlm.data.images.image import ImageSpec, is_blank
from vlm.data.images.store import image_label
from vlm.data.packed.shards import is_packed
from vlm.data.storage import column

MOST, SECONDS = 256, 10.0
"""Largest number of images to check, and the time limit in seconds."""


def check_sample(rows: datasets.Dataset, spec: ImageSpec, most: int = MOST, seconds: float = SECONDS) -> list[str]:
    """Read an evenly spread sample of the images and return a notice if some are blank.

    Images in shards are skipped: they were checked when packed, and a shard is fetched as a whole.
    Raises `UserError` that names an unreadable image.
    """
    paths = [pc.struct_field(chunk, "path").is_valid().to_numpy(False) for chunk in column(rows, "image").chunks]
    there = np.flatnonzero(np.concatenate([np.empty(0, bool), *paths]))
    chosen = np.unique(np.linspace(0, max(len(there) - 1, 0), min(most, len(there))).astype(int))
    until, looked, blank = time.monotonic() + seconds, 0, []
    for place in np.random.default_rng(0).permutation(chosen):  # a sample cut short is spread too
        cell = rows[int(there[place])]["image"]
        if time.monotonic() > until or is_packed(cell["path"]):
            break
        looked += 1
        if is_blank(read_square(cell["path"], spec)):
            blank.append(image_label(cell["path"]))
    if not blank:
        return []
    return [blank_notice(len(blank), looked, min(blank))]


def blank_notice(blank: int, looked: int, first: str) -> str:
    """Format the notice on blank images."""
    return (
        f"{blank:,} of {looked:,} images looked at show one grey value alone and count as no image; the first: {first}"
    )
