"""Read an image file as the square that the model sees, with what its user should be told of the file."""

from dataclasses import dataclass

import cv2
import numpy as np

from vlm.data.images.color import share_of_color
from vlm.data.images.header import LARGEST_IMAGE
from vlm.data.images.image import ImageSpec, decode_image, to_square
from vlm.errors import UserError

LOOK = ImageSpec(size=128, color="rgb", color_mean=(0.5,) * 3, color_std=(0.5,) * 3)
"""How a picture is looked at to see whether it is in colour."""
COLORED = 0.02
"""Smallest share of a picture's pixels in colour: more than a marker or an annotation."""
LONGEST_LOOK = 512
"""Rows or columns that are looked at of a larger picture, or up to twice as many."""


@dataclass(frozen=True, eq=False)
class Square:
    """An image as the model sees it."""

    pixels: np.ndarray
    """S × S, or S × S × 3 in colour; uint8."""
    loses_color: bool = False
    """True for a picture in colour that is shown in grey."""


def decode_square(data: bytes, where: str, spec: ImageSpec, most_pixels: int = LARGEST_IMAGE) -> Square:
    """Decode an image file's bytes and prepare them with `to_square`.

    Raises as `decode_image` does, and for a picture of more than `most_pixels`.
    """
    colored: list[bool] = []
    image = decode_image(data, where, spec.in_color, lambda *stored: colored.append(is_colored(*stored)))
    if image.shape[0] * image.shape[1] > most_pixels:
        raise UserError(f"{where}: larger than {most_pixels:,} pixels")
    return Square(to_square(image, spec), any(colored))


def is_colored(stored: np.ndarray, bits: int = 8) -> bool:
    """Check whether a decoded picture of so many bits is in colour; H × W × 3, the channels in any order."""
    step = max(1, max(stored.shape) // LONGEST_LOOK)
    looked = stored[::step, ::step]
    values = np.nan_to_num(looked.astype(np.float32))
    white = 2.0**bits - 1 if looked.dtype.kind == "u" else max(float(values.max()), 1e-9)  # others have no known scale
    return share_of_color(to_square(np.clip(values * (255 / white), 0, 255).astype(np.uint8), LOOK)) >= COLORED


def as_square(given: Square | np.ndarray, spec: ImageSpec) -> Square:
    """Return a square that was read already; one in colour becomes luminance, for a spec in grey."""
    if isinstance(given, Square):
        return given
    if given.ndim == 2 or spec.in_color:
        return Square(given)
    return Square(cv2.cvtColor(given, cv2.COLOR_RGB2GRAY), is_colored(given))
