"""Check a sample of images before a run, to report unreadable and blank ones early."""

import time

import datasets
import numpy as np

from vlm.data.dataset import read_square
from vlm.data.images.image import ImageSpec, is_blank
from vlm.data.images.store import image_label
from vlm.data.packed.shards import is_packed
from vlm.data.study import flat_images

MOST, SECONDS = 256, 10.0
"""Largest number of images to check, and the time limit in seconds."""


def check_sample(rows: datasets.Dataset, spec: ImageSpec, most: int = MOST, seconds: float = SECONDS) -> list[str]:
    """Read an evenly spread sample of the images and return a notice if some are blank.

    Images in shards are skipped: they were checked when packed, and a shard is fetched as a whole.
    Raises `UserError` that names an unreadable image.
    """
    paths = flat_images(rows).paths
    chosen = np.unique(np.linspace(0, max(len(paths) - 1, 0), min(most, len(paths))).astype(int))
    until, looked, blank = time.monotonic() + seconds, 0, []
    for place in np.random.default_rng(0).permutation(chosen):  # a sample cut short is spread too
        path = str(paths[place])
        if time.monotonic() > until or is_packed(path):
            break
        looked += 1
        if is_blank(read_square(path, spec)):
            blank.append(image_label(path))
    if not blank:
        return []
    return [blank_notice(len(blank), looked, min(blank))]


def blank_notice(blank: int, looked: int, first: str) -> str:
    """Format the notice on blank images."""
    return (
        f"{blank:,} of {looked:,} images looked at show one grey value alone and count as no image; the first: {first}"
    )
