"""Images by value: where a picture lies in its square, how it is stretched, resized, moved and refused."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from vlm.config import AugmentConfig
from vlm.data.images import image as images
from vlm.data.images.image import Box, ImageSpec, augment, is_blank, read_image, resize, stretch_contrast, to_square
from vlm.errors import UserError


@pytest.mark.parametrize(
    ("shape", "box"),
    [((50, 100), (16, 0, 32, 64)), ((100, 50), (0, 16, 64, 32)), ((30, 40), (8, 0, 48, 64)), ((64, 64), (0, 0, 64, 64)),
     ((1, 1000), (31, 0, 1, 64)), ((1000, 1), (0, 31, 64, 1)), ((63, 64), (0, 0, 63, 64)), ((10, 7), (0, 9, 64, 45))],
)  # fmt: skip
def test_a_picture_lies_in_the_middle_of_its_square(shape: tuple, box: tuple) -> None:
    found = Box.of(shape, 64)
    assert (found.top, found.left, found.height, found.width) == box
    assert (found.rows, found.columns) == (slice(box[0], box[0] + box[2]), slice(box[1], box[1] + box[3]))


def test_contrast_is_stretched_between_the_percentiles() -> None:
    image = np.arange(1001, dtype=np.float32).reshape(7, 143)
    shown = stretch_contrast(image, ImageSpec(low_percentile=10, high_percentile=60))
    np.testing.assert_allclose(shown.ravel(), np.clip((image.ravel() - 100) / 500, 0, 1) * 255, atol=1e-3)
    assert ImageSpec().low_percentile == 0.5 and ImageSpec().high_percentile == 99.5


def test_where_nothing_is_is_black_and_does_not_count() -> None:
    image = np.linspace(10, 20, 100, dtype=np.float32).reshape(10, 10)
    padded = np.full((10, 20), np.nan, np.float32)
    padded[:, :10] = image
    padded[0, 15] = np.inf
    spec = ImageSpec(low_percentile=0, high_percentile=100)
    shown = stretch_contrast(padded, spec)
    np.testing.assert_allclose(shown[:, :10], stretch_contrast(image, spec), atol=1e-4)
    assert not shown[:, 10:].any() and shown[:, :10].max() == 255
    assert not to_square(np.full((4, 4), np.nan, np.float32), ImageSpec(32)).any()


def test_shrinking_averages_and_enlarging_does_not_block() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255.0
    assert (resize(board, 32, 32) == 128).all(), "each new pixel is the mean of its four"
    assert (resize(board[:, ::2], 32, 16) == 128).all()
    ramp = resize(np.array([[0.0, 255.0]] * 2), 8, 8)
    assert len(np.unique(ramp[0])) > 4 and (np.diff(ramp[0].astype(int)) >= 0).all()


def test_a_picture_of_one_value_is_blank() -> None:
    assert is_blank(np.full((4, 4), 9, np.uint8)) and not is_blank(np.array([[9, 10]], np.uint8))


def test_colours_become_the_grey_of_their_brightness(tmp_path: Path) -> None:
    picture = np.zeros((1, 4, 3), np.uint8)
    picture[0] = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]  # blue, green, red, white
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[0], [29, 150, 76, 255], atol=1)
    clear = np.dstack([picture, np.full((1, 4), 255, np.uint8)])
    cv2.imwrite(str(tmp_path / "b.png"), clear)
    np.testing.assert_allclose(read_image(tmp_path / "b.png")[0], [29, 150, 76, 255], atol=1)


def test_what_is_no_file_of_a_reasonable_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((9, 9), np.uint8))
    size = (tmp_path / "a.png").stat().st_size
    monkeypatch.setattr(images, "LARGEST_FILE", size)
    assert read_image(tmp_path / "a.png").shape == (9, 9)
    monkeypatch.setattr(images, "LARGEST_FILE", size - 1)
    with pytest.raises(UserError, match=r"a\.png: larger than"):
        read_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("pipe.png", "."):
        with pytest.raises(UserError, match="not a regular file"):
            read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [("size", (32, 2048), (31, 2049)), ("mean", (-1e3, 1e3), (-1001.0, 1001.0, float("nan"))),
     ("std", (1e-6, 1e6), (0.0, 1.1e6, -1.0, float("nan"))), ("low_percentile", (0.0, 99.0), (-0.1, 99.5)),
     ("high_percentile", (100.0, 0.6), (100.1, 0.5))],
)  # fmt: skip
def test_a_spec_out_of_range_names_its_key(key: str, good: tuple, bad: tuple) -> None:
    for value in good:
        assert getattr(ImageSpec(**{key: value}), key) == value
    for value in bad:
        with pytest.raises(UserError, match=r"^image\.(size|mean|std|low_percentile): must be "):
            ImageSpec(**{key: value})


class Highest:
    """A generator whose every draw is its upper end."""

    def uniform(self, low: float, high: float, size: int | None = None):
        assert low == -high
        return high if size is None else np.full(size, high)


def test_augmentation_does_what_its_options_say() -> None:
    square = np.zeros((64, 64), np.uint8)
    square[24:40, 8:24] = 200
    spot = lambda picture: np.argwhere(picture > 100).mean(0)  # noqa: E731

    moved = augment(square, AugmentConfig(shift=0.125), Highest())
    assert np.array_equal(moved[8:, 8:], square[:-8, :-8]) and not moved[:8].any()
    larger = augment(square, AugmentConfig(scale=0.25), Highest())
    np.testing.assert_allclose(spot(larger) - 31.5, 1.25 * (spot(square) - 31.5), atol=0.7)
    assert (larger > 100).sum() == pytest.approx(1.25**2 * 256, rel=0.1)
    turned = augment(square, AugmentConfig(rotate=90), Highest())
    np.testing.assert_allclose(spot(turned), [47.5, 31.5], atol=1.1)  # from the left to the bottom
    brighter = augment(np.array([[28, 128, 228]] * 3, np.uint8), AugmentConfig(contrast=0.25), Highest())
    assert brighter[0].tolist() == [19, 144, 255]  # 128 + 1.25 (v − 128) + 16, cut at 255
