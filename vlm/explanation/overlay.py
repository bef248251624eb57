"""Heat over an image, as pixels."""

import numpy as np
from matplotlib import colormaps

from vlm.explanation.result import Explanation

STRENGTH = 0.55
"""Opacity of the hottest place."""


def overlay(explanation: Explanation, name: str | None = None, strength: float = STRENGTH) -> np.ndarray:
    """The image with the heat of one label or of chosen words over it, H × W × 3 uint8, RGB.

    Without a name it is the leading label's. Raises `UserError` for a name that was not explained and where there was
    no image: there is no heat without one.
    """
    heat = explanation.heat_of(name)  # H × W
    assert explanation.picture is not None  # `heat_of` has said so
    grey = np.repeat(explanation.picture[..., None].astype(np.float32), 3, axis=2)
    colour = colormaps["inferno"](0.15 + 0.8 * heat)[..., :3] * 255
    weight = strength * heat[..., None] ** 0.7  # a cold place shows the image alone
    return np.round(grey * (1 - weight) + colour * weight).astype(np.uint8)
