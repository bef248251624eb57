"""Choose whether pictures are shown to the model in colour, by a sample of the training images."""

from typing import Literal

import numpy as np

from vlm.data.cohort import Cohort
from vlm.data.dataset import read_square
from vlm.data.images.color import share_of_color
from vlm.data.images.square import COLORED, LOOK
from vlm.data.packed.shards import is_packed
from vlm.data.study import flat_images
from vlm.device import Choice

Color = Literal["grey", "rgb"]
SAMPLE = 24
"""Number of images to look at."""


def choose_color(cohort: Cohort) -> Choice[Color]:
    """Choose `rgb` where most training images are in colour, else `grey`; raises `UserError` for an unreadable one."""
    paths = flat_images(cohort.split("train")).first
    paths = paths[paths != ""]
    if not len(paths):
        return Choice("grey", "no case has an image")
    # Of packed cases those side by side: a shard is fetched as a whole.
    last = min(len(paths), SAMPLE) - 1 if is_packed(str(paths[0])) else len(paths) - 1
    chosen = np.unique(np.linspace(0, last, min(len(paths), SAMPLE)).astype(int))
    colored = sum(share_of_color(read_square(str(paths[place]), LOOK)) >= COLORED for place in chosen)
    reason = f"{colored} of {len(chosen)} training images looked at are in colour; data.color says otherwise"
    return Choice("rgb" if 2 * colored > len(chosen) else "grey", reason)
