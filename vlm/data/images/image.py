"""Prepare image files as the square input of the encoder, in grey or in colour."""

import stat
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

import cv2
import numpy as np

from vlm.config import AugmentConfig
from vlm.config.limits import LARGEST_SIDE
from vlm.data.images.color import OnColor, is_grey, to_srgb
from vlm.data.images.dicom import read_dicom
from vlm.data.images.file_types import describe_other_file, file_type
from vlm.data.images.header import ImageHeader, MultipleImages, read_header
from vlm.data.images.png import strip_metadata
from vlm.errors import UserError

LARGEST_FILE = 512 << 20
"""Largest file, bytes; larger files are refused before reading."""


@dataclass(frozen=True)
class ImageSpec:
    """Image preprocessing parameters; saved in the adapter, since the weights depend on them."""

    size: int = 224
    """Side of the square, pixels."""
    mean: float = 0.5
    """Normalization mean of the CNN, for values 0 to 1."""
    std: float = 0.5
    """Normalization standard deviation of the CNN."""
    low_percentile: float = 0.5
    """Percentile of grey values shown as black."""
    high_percentile: float = 99.5
    """Percentile of grey values shown as white."""
    interpolation: Literal["area", "bilinear", "bicubic"] = "area"
    """Resizing: area averaging (linear to enlarge), or a filter that is widened to shrink, as encoders are trained."""
    channels: int = 3
    """Channels that the encoder's first layer takes; all alike for grey pictures."""
    color: Literal["grey", "rgb"] = "grey"
    """Whether colours are kept, as sRGB, or become luminance."""
    color_mean: tuple[float, ...] = ()
    """Normalization mean of red, green and blue, in place of `mean`."""
    color_std: tuple[float, ...] = ()
    """Their standard deviations."""

    def __post_init__(self) -> None:
        rules = (
            (32 <= self.size <= LARGEST_SIDE, "size", f"32 to {LARGEST_SIDE:,} pixels"),
            (-1e3 <= self.mean <= 1e3, "mean", "a number"),
            (1e-6 <= self.std <= 1e6, "std", "a number above 0"),
            (0 <= self.low_percentile < self.high_percentile <= 100, "low_percentile", "below high_percentile"),
            (self.channels in (1, 3), "channels", "1 or 3"),
            (not self.in_color or self.channels == 3, "color", "grey for an encoder of one channel"),
            (self._is_triple(self.color_mean, -1e3), "color_mean", "three numbers for rgb"),
            (self._is_triple(self.color_std, 1e-6), "color_std", "three numbers above 0 for rgb"),
        )  # fmt: skip
        for holds, key, meaning in rules:  # NaN fails every comparison
            if not holds:
                raise UserError(f"image.{key}: must be {meaning}, not {getattr(self, key)}")

    def _is_triple(self, values: tuple[float, ...], least: float) -> bool:
        return len(values) == (3 if self.in_color else 0) and all(least <= value <= 1e6 for value in values)

    @property
    def in_color(self) -> bool:
        return self.color == "rgb"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a prepared picture: S × S, or S × S × 3 in colour."""
        return (self.size, self.size, 3)[: 3 if self.in_color else 2]


def read_image(path: str | Path, color: bool = False) -> np.ndarray:
    """Read and decode an image file (see `decode_image`); raises `UserError` that names it."""
    path = Path(path)
    return decode_image(read_file(path), str(path), color)


def decode_image(data: bytes, where: str, color: bool = False, on_color: OnColor = None) -> np.ndarray:
    """Decode an image file's bytes as a viewer shows it: to greyscale, H × W, as float32 of unscaled values.

    With `color` a picture whose channels differ stays in colour: H × W × 3, uint8, sRGB. `on_color` is called for one
    that becomes grey.
    PNG, JPEG, TIFF, BMP, WebP, GIF, PNM and DICOM are detected by their bytes, not by name. Grey values of any depth
    are kept unchanged; NaN at padding. Raises `UserError` that begins with
    `where`, for whatever goes wrong: one bad file must not end the work on all.
    """
    kind = file_type(data) or ("DICOM" if PurePath(where).suffix.lower() in (".dcm", ".dicom") and data else "")
    try:
        if kind == "DICOM":
            return read_dicom(where, data, color, on_color)
        if not kind:
            raise ValueError(describe_other_file(data))
        header = read_header(data, kind)
        image = _decoded(strip_metadata(data) if kind == "PNG" else data)
        if color and image.ndim == 3 and image.shape[2] >= 3 and not is_grey(image):
            return upright(to_srgb(image, data, kind), header.orientation)
        if on_color and image.ndim == 3 and image.shape[2] >= 3:
            on_color(image[..., :3], 8 * image.itemsize)
        return _as_displayed(image, header)
    except UserError:
        raise
    except MultipleImages as error:
        raise UserError(f"{where}: {error}") from None
    except ValueError as error:
        reason = str(error).split("\n")[0]
    except MemoryError:
        reason = "there is not enough memory for it"
    except Exception as error:  # any error of a decoder
        full = isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem
        reason = "there is not enough memory for it" if full else "its pixels are broken"
    raise UserError(f"{where}: not a readable image: {reason}")


def _decoded(data: bytes) -> np.ndarray:
    """Decode to H × W, or H × W × 3 or 4 in OpenCV's channel order, at the file's depth."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("its pixels are broken or cut off, or of a kind that no decoder here knows")
    return image


def _as_displayed(image: np.ndarray, header: ImageHeader) -> np.ndarray:
    """Convert decoded pixels to H × W float32: colour to luminance, upright, bright as in a viewer."""
    transparent = None
    if image.ndim == 3 and image.shape[2] == 4 and image[..., 3].any():  # all-zero alpha is meaningless
        transparent = image[..., 3] == 0
    if header.inverted:
        image = 65_535 - image if image.dtype == np.uint16 else -image.astype(np.float32)
    if image.ndim == 3 and image.shape[2] >= 3:
        if image.dtype not in (np.uint8, np.uint16, np.float32):
            image = image.astype(np.float32)
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2GRAY if image.shape[2] == 4 else cv2.COLOR_BGR2GRAY)
    elif image.ndim == 3:
        image = image[..., 0]
    with np.errstate(over="ignore"):
        grey = image.astype(np.float32)
    if transparent is not None:
        grey[transparent] = np.nan
    return upright(grey, header.orientation)


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror stored pixels upright; `orientation` 1 to 8 as in EXIF."""
    if orientation > 4:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)


def read_file(path: Path, most: int = -1) -> bytes:
    """Read the bytes of a regular file of a reasonable size, or its first `most`: a pipe would never end."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: cannot read the image: it is not a regular file")
        if status.st_size > LARGEST_FILE:
            raise UserError(f"{path}: larger than {LARGEST_FILE >> 20} MiB")
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise UserError(f"{path}: cannot read the image: {error.strerror}") from None


def to_square(image: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Stretch the contrast between two percentiles and letterbox into a square; padding is black.

    H × W of any scale → size × size, uint8. The aspect ratio is kept: a stretched chest changes the heart's width.
    Colours, H × W × 3, stay as they are, for a spec in colour: size × size × 3.
    """
    box = Box.of(image.shape[:2], spec.size)
    square = np.zeros(spec.shape, dtype=np.uint8)
    shown = resize(stretch_contrast(image, spec), box.height, box.width, spec.interpolation)
    square[box.rows, box.columns] = shown[..., None] if shown.ndim < square.ndim else shown
    return square


def stretch_contrast(image: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Stretch the contrast: H × W of any scale → H × W, float of 0 (black, and padding) to 255; not that of colours."""
    if image.ndim == 3:
        return image
    if image.dtype != np.float32:
        image = image.real.astype(np.float32)
    there = np.isfinite(image)
    seen = image if there.all() else image[there]
    low, high = np.percentile(seen, [spec.low_percentile, spec.high_percentile]) if seen.size else (0, 0)
    del seen
    shown = image - low  # the one copy: a large picture takes 200 MB
    shown /= max(float(high - low), 1e-6)
    np.clip(shown, 0, 1, out=shown)
    shown *= 255
    shown[~there] = 0
    return shown


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "area") -> np.ndarray:
    """Resize H × W of 0 to 255 → height × width, uint8; H × W × 3 by channel."""
    if interpolation != "area" and image.ndim == 3:
        return np.dstack([resize(image[..., place], height, width, interpolation) for place in range(3)])
    if interpolation != "area":
        from PIL import Image  # its filters are those of the encoders' own image processors

        resampling = Image.Resampling[interpolation.upper()]
        filtered = Image.fromarray(image.astype(np.float32)).resize((width, height), resampling)
        return np.clip(np.round(np.asarray(filtered)), 0, 255).astype(np.uint8)
    # Area averaging keeps fine opacities when shrinking; it would be blocky when enlarging.
    shrinks = max(height, width) < max(image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.round(resized).astype(np.uint8)


@dataclass(frozen=True)
class Box:
    """Bounding box of an image in its square, pixels."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def of(cls, shape: tuple[int, ...], size: int) -> "Box":
        """Compute the box of an image of H × W in a square of this side."""
        ratio = size / max(shape)
        height, width = (max(1, round(side * ratio)) for side in shape)
        return cls((size - height) // 2, (size - width) // 2, height, width)

    @property
    def rows(self) -> slice:
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        return slice(self.left, self.left + self.width)


def is_blank(square: np.ndarray) -> bool:
    """Check whether a picture is one grey value or colour: it shows nothing, and nothing may be asserted from it."""
    return bool((square.min(axis=(0, 1)) == square.max(axis=(0, 1))).all())


def shows_nothing(image: np.ndarray) -> bool:
    """Check whether a decoded image, H × W or H × W × 3, is constant outside NaN."""
    if image.ndim == 3:
        return is_blank(image)
    there = image[np.isfinite(image)]
    return not there.size or bool(there.min() == there.max())


def augment(square: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Rotate, shift, scale, mirror and change the contrast at random; S × S uint8 → S × S uint8.

    Of a picture in colour all channels change alike, so its hues stay.
    """
    side = square.shape[0]
    angle = rng.uniform(-config.rotate, config.rotate)
    scale = 1 + rng.uniform(-config.scale, config.scale)
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), angle, scale)
    matrix[:, 2] += rng.uniform(-config.shift, config.shift, size=2) * side
    moved = cv2.warpAffine(square, matrix, (side, side), flags=cv2.INTER_LINEAR)
    gain = 1 + rng.uniform(-config.contrast, config.contrast)
    offset = rng.uniform(-config.contrast, config.contrast) * 64
    changed = np.clip((moved.astype(np.float32) - 128) * gain + 128 + offset, 0, 255).astype(np.uint8)
    if not config.mirror:
        return changed
    across, down = 1 - 2 * rng.integers(0, 2, size=2)
    return np.ascontiguousarray(changed[::down, ::across])


def to_pixel_values(square: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Normalize S × S or S × S × 3 uint8 → 3 × S × S float32 for the encoder, or one channel."""
    if square.ndim == 3:
        mean, std = (np.array(values, np.float32) for values in (spec.color_mean, spec.color_std))
        return np.ascontiguousarray(((square.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1))
    scaled = (square.astype(np.float32) / 255 - spec.mean) / spec.std
    return np.ascontiguousarray(np.broadcast_to(scaled, (spec.channels, *scaled.shape)))
