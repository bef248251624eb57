"""Bring decoded colours to sRGB, H × W × 3, uint8."""

from collections.abc import Callable
from io import BytesIO

import cv2
import numpy as np

LARGEST_PROFILE = 8 << 20
"""Largest colour profile, bytes; that of a printing press has about two million."""
COLORFUL = 16
"""Smallest difference of the channels that counts as colour, of 255: a JPEG's rounding gives a grey picture less."""
OnColor = Callable[[np.ndarray, int], None] | None
"""Function to call with the stored channels of a picture that becomes grey, H × W × 3 in any order, and their bits."""
MANAGED = ("JPEG", "PNG", "TIFF", "WebP")
"""File types that may hold a colour profile."""


def to_srgb(image: np.ndarray, data: bytes, kind: str) -> np.ndarray:
    """Convert decoded pixels, H × W × 3 or 4 in OpenCV's channel order, to sRGB; black where transparent.

    `data` is the file, whose colour profile decides; without one colours are sRGB. Raises `ValueError` for colours of
    another depth than 8 or 16 bits, and for a broken profile.
    """
    if kind in MANAGED and (managed := _managed(data)) is not None:
        return managed
    if image.dtype == np.uint16:
        image = eight_bits(image, 16)
    if image.dtype != np.uint8:
        raise ValueError(f"colours of type {image.dtype}; save it with 8 or 16 bits a channel")
    if image.shape[2] == 4:
        if image[..., 3].any():  # all-zero alpha is meaningless
            image = np.where(image[..., 3:] == 0, np.uint8(0), image)
        return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _managed(data: bytes) -> np.ndarray | None:
    """Convert a picture in CMYK or with a profile of its own; None for one that is in sRGB already."""
    from PIL import Image, ImageCms, UnidentifiedImageError

    try:
        file = Image.open(BytesIO(data), formats=[kind.upper() for kind in MANAGED])
    except UnidentifiedImageError:
        return None
    with file as opened:
        profile = opened.info.get("icc_profile") or b""
        if len(profile) > LARGEST_PROFILE:
            raise ValueError(f"its colour profile is larger than {LARGEST_PROFILE >> 20} MiB; save it as sRGB")
        if opened.mode not in ("RGB", "CMYK") or not (profile or opened.mode == "CMYK"):
            return None  # of a picture with alpha or a palette the profile is not read
        if not profile:
            return np.asarray(opened.convert("RGB"))
        try:
            given = ImageCms.ImageCmsProfile(BytesIO(profile))
            if opened.mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(given):
                return None
            shown = ImageCms.profileToProfile(opened, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError) as error:
            raise ValueError("its colour profile is broken; save it as sRGB") from error
        return np.asarray(shown)


def eight_bits(colors: np.ndarray, bits: int) -> np.ndarray:
    """Scale colours of some bits to 0 to 255; H × W × n, uint8."""
    if bits <= 8:
        return np.ascontiguousarray(colors.astype(np.uint8) << (8 - bits))
    return (colors.astype(np.uint16) >> (bits - 8)).astype(np.uint8)


def is_grey(image: np.ndarray) -> bool:
    """Check whether the channels of a picture are equal; H × W × 3."""
    return bool((image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all())


def bgr(image: np.ndarray) -> np.ndarray:
    """Reorder the channels of a picture for OpenCV; a grey one stays as it is."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)


def rgb(image: np.ndarray) -> np.ndarray:
    """Return a picture as H × W × 3, a grey one with its value in each channel."""
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def share_of_color(image: np.ndarray) -> float:
    """Return the share of a picture's pixels that are clearly no grey; H × W × 3."""
    return float((image.max(axis=2).astype(np.int16) - image.min(axis=2) >= COLORFUL).mean())
