"""Read an image file as the square that the model sees, with what its user should be told of the file."""

from dataclasses import dataclass

import cv2
import numpy as np

from vlm.data.images.color import is_grey, share_of_color
from vlm.data.images.header import LARGEST_IMAGE
from vlm.data.images.image import ImageSpec, decode_image, to_square
from vlm.data.images.modality import read_modality
from vlm.errors import UserError

LOOK = ImageSpec(size=128, color="rgb", color_mean=(0.5,) * 3, color_std=(0.5,) * 3)
"""How a picture is looked at to see whether it is in colour."""
COLORED = 0.02
"""Smallest share of a picture's pixels in colour: more than a marker or an annotation."""
LONGEST_LOOK = 512
"""Rows or columns that are looked at of a larger picture, or up to twice as many."""
CELLS, EDGE = 8, 0.1
"""Cells a side in which a picture is looked at for structure, and the share of each side that is left out."""
LEAST_STRUCTURE, LEAST_IN_COLOR = 4.0, 1.5
"""Least structure of a picture in grey, whose contrast was stretched and so its noise, and of one in colour."""


@dataclass(frozen=True, eq=False)
class Square:
    """An image as the model sees it."""

    pixels: np.ndarray
    """S × S, or S × S × 3 in colour; uint8."""
    loses_color: bool = False
    """True for a picture in colour that is shown in grey."""
    modality: str = ""
    """Code of the modality that a DICOM file names, such as CT; empty if none is known."""


def decode_square(data: bytes, where: str, spec: ImageSpec, most_pixels: int = LARGEST_IMAGE) -> Square:
    """Decode an image file's bytes and prepare them with `to_square`.

    Raises as `decode_image` does, and for a picture of more than `most_pixels`.
    """
    colored: list[bool] = []
    image = decode_image(data, where, spec.in_color, lambda stored, bits: colored.append(is_colored(stored, bits)))
    if image.shape[0] * image.shape[1] > most_pixels:
        raise UserError(f"{where}: larger than {most_pixels:,} pixels")
    return Square(to_square(image, spec), any(colored), read_modality(data))


def is_colored(stored: np.ndarray, bits: int = 8) -> bool:
    """Check whether a decoded picture of so many bits is in colour; H × W × 3, the channels in any order."""
    step = max(1, max(stored.shape) // LONGEST_LOOK)
    looked = stored[::step, ::step]
    if looked.dtype != np.uint8 or bits != 8:
        values = np.nan_to_num(looked.astype(np.float32))
        white = 2.0**bits - 1 if looked.dtype.kind == "u" else max(float(values.max()), 1e-9)  # else of unknown scale
        looked = np.clip(values * (255 / white), 0, 255).astype(np.uint8)
    return share_of_color(to_square(np.ascontiguousarray(looked), LOOK)) >= COLORED


def as_square(given: Square | np.ndarray, spec: ImageSpec) -> Square:
    """Return a square that was read already; one in colour becomes luminance, for a spec in grey."""
    if isinstance(given, Square):
        return given
    if given.ndim == 2 or spec.in_color:
        return Square(given)
    return Square(cv2.cvtColor(given, cv2.COLOR_RGB2GRAY), is_colored(given))


def is_nearly_uniform(square: np.ndarray) -> bool:
    """Check whether a square shows next to nothing; S × S or S × S × 3, uint8."""
    in_color = square.ndim == 3 and not is_grey(square)
    return structure_of(square) < (LEAST_IN_COLOR if in_color else LEAST_STRUCTURE)


def structure_of(square: np.ndarray) -> float:
    """Measure what a square shows beyond smooth shading with noise, 0 to 255; S × S or S × S × 3.

    It is the root mean square of what a quadratic surface leaves of the means of 8 × 8 cells, in the channel where that
    is most. Padding is left out, and an edge, where an empty page has a frame.
    """
    lit: np.ndarray = (square if square.ndim == 2 else square.max(axis=2)) > 0  # S × S
    if not lit.any():
        return 0.0
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    shown = square[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, left = (round(side * EDGE) for side in shown.shape[:2])
    middle = shown[top : shown.shape[0] - top, left : shown.shape[1] - left].astype(np.float32)
    means = cv2.resize(middle, (CELLS, CELLS), interpolation=cv2.INTER_AREA).reshape(CELLS**2, -1)  # cells × channels
    y, x = (part.ravel() for part in np.mgrid[-1 : 1 : CELLS * 1j, -1 : 1 : CELLS * 1j])
    surface = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)  # cells × 6
    fitted, *_ = np.linalg.lstsq(surface, means, rcond=None)
    return float(np.sqrt(np.square(means - surface @ fitted).mean(axis=0)).max())
