"""Images: any depth and shape of file becomes one square grey picture, or one line that names the file."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from vlm.config import AugmentConfig
from vlm.data.images.image import ImageSpec, augment, read_image, to_pixel_values, to_square
from vlm.errors import UserError

SPEC = ImageSpec(size=64)


def ramp(height: int = 60, width: int = 100, dtype: type = np.uint8) -> np.ndarray:
    return np.tile(np.linspace(0, np.iinfo(dtype).max, width), (height, 1)).astype(dtype)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".bmp", ".jpg", ".webp"])
def test_formats_decode_alike(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"é picture{suffix}"
    file.write_bytes(cv2.imencode(suffix, ramp())[1].tobytes())
    assert np.abs(to_square(read_image(file), SPEC).astype(int) - to_square(ramp().astype(np.float32), SPEC)).max() <= 6


def test_depth_and_colour_do_not_matter(tmp_path: Path) -> None:
    grey = to_square(ramp().astype(np.float32), SPEC)
    variants = {
        "deep": ramp(dtype=np.uint16),
        "colour": cv2.cvtColor(ramp(), cv2.COLOR_GRAY2BGR),
        "alpha": cv2.cvtColor(ramp(), cv2.COLOR_GRAY2BGRA),
    }
    for name, image in variants.items():
        file = tmp_path / f"{name}.png"
        cv2.imwrite(str(file), image)
        assert np.abs(to_square(read_image(file), SPEC).astype(int) - grey.astype(int)).max() <= 2, name


def test_the_aspect_is_kept_and_the_rest_is_black() -> None:
    square = to_square(ramp(50, 100).astype(np.float32), SPEC)
    assert square.shape == (64, 64) and square.dtype == np.uint8
    assert not square[:16].any() and not square[48:].any() and square[17:47, 60].min() > 200


def test_a_blank_image_is_no_division_by_zero() -> None:
    assert not to_square(np.full((10, 10), 7, np.float32), SPEC).any()


def test_pixel_values_are_scaled_as_the_cnn_was_trained() -> None:
    pixels = to_pixel_values(np.full((64, 64), 255, np.uint8), SPEC)
    assert pixels.shape == (3, 64, 64) and pixels.dtype == np.float32 and np.allclose(pixels, 1)


def test_mean_and_deviation_are_each_in_their_place() -> None:
    spec = ImageSpec(size=64, mean=0.449, std=0.226)
    pixels = to_pixel_values(np.array([[0, 51], [102, 255]], np.uint8), spec)
    wanted = np.array([[-0.449, 0.2 - 0.449], [0.4 - 0.449, 1 - 0.449]]) / 0.226
    np.testing.assert_allclose(pixels, np.stack([wanted] * 3), rtol=1e-5)


def test_augmentation_off_changes_nothing_and_on_never_mirrors() -> None:
    square = to_square(ramp(64, 64).astype(np.float32), SPEC)
    rng = np.random.default_rng(0)
    assert np.array_equal(augment(square, AugmentConfig(), rng), square)
    for _ in range(20):
        moved = augment(square, AugmentConfig(rotate=10, shift=0.1, scale=0.1, contrast=0.2), rng).astype(float)
        assert moved[:, 40:56].mean() > moved[:, 8:24].mean()  # bright stays right


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_an_unreadable_file_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "broken.png"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png: not a readable image"):
        read_image(file)


def test_a_lost_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.png: cannot read the image: No such file"):
        read_image(tmp_path / "none.png")
