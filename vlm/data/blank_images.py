"""Look at some images before the work begins: one that cannot be read, or shows nothing, is said while it is cheap."""

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
"""Images looked at, and the time after which no further one is."""


def glance(rows: datasets.Dataset, spec: ImageSpec, most: int = MOST, seconds: float = SECONDS) -> list[str]:
    """Read some images of the rows, evenly spread, and return a line on those that are blank, if there are any.

    Images in shards are passed over: they were looked at when they were packed, and a shard is fetched as a whole.
    Raises `UserError` that names an unreadable image.
    """
    paths = [pc.struct_field(chunk, "path").is_valid().to_numpy(False) for chunk in column(rows, "image").chunks]
    there = np.flatnonzero(np.concatenate([np.empty(0, bool), *paths]))
    chosen = np.unique(np.linspace(0, max(len(there) - 1, 0), min(most, len(there))).astype(int))
    until, looked, blank = time.monotonic() + seconds, 0, []
    for place in np.random.default_rng(0).permutation(chosen):  # so that what there is time for is spread as well
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
    """A line on images that show nothing."""
    return (
        f"{blank:,} of {looked:,} images looked at show one grey value alone and count as no image; the first: {first}"
    )
