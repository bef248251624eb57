"""A picture in colour that is shown in grey is known as one; a grey one is not, however its file stores it."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.dicom_files import write
from tests.picture_files import saved, tiff
from vlm.data.images.image import ImageSpec, decode_image, to_square
from vlm.data.images.sandbox import ImageDecoder
from vlm.data.images.square import Square, as_square, decode_square, is_nearly_uniform
from vlm.errors import UserError

GREY = ImageSpec(32)
RGB = ImageSpec(32, color="rgb", color_mean=(0.5,) * 3, color_std=(0.5,) * 3)


def radiograph(side: int = 300) -> np.ndarray:
    """Soft shadows with noise, side × side."""
    rng = np.random.default_rng(0)
    soft = cv2.resize(rng.integers(0, 256, (6, 6), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(soft + rng.normal(0, 8, (side, side)), 0, 255).astype(np.uint8)


def skin(side: int = 300) -> np.ndarray:
    """The same in the colours of skin, side × side × 3."""
    return (radiograph(side)[..., None] * np.array([1.0, 0.75, 0.65])).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"quality": 80}), ("JPEG", {"quality": 50}),
     ("JPEG", {"quality": 95, "subsampling": 0})],
)  # fmt: skip
def test_colour_is_told_and_a_grey_picture_in_three_channels_is_not(kind: str, options: dict[str, object]) -> None:
    for pixels, colored in ((skin(), True), (np.dstack([radiograph()] * 3), False), (radiograph(), False)):
        data = saved(Image.fromarray(pixels), kind, **options)
        square = decode_square(data, "a", GREY)
        assert square.loses_color is colored
        assert np.array_equal(square.pixels, to_square(decode_image(data, "a"), GREY)), "pixels as without the look"


def test_other_depths_and_dicom(tmp_path: Path) -> None:
    deep = skin().astype(np.uint16) * 257
    assert decode_square(cv2.imencode(".png", deep[..., ::-1])[1].tobytes(), "a", GREY).loses_color
    assert decode_square(tiff(skin().astype(np.float32) * 40), "a", GREY).loses_color, "of any scale"
    assert not decode_square(tiff(np.dstack([radiograph().astype(np.float32) * 40] * 3)), "a", GREY).loses_color
    for name, pixels, bits, colored in (
        ("a", skin(), 8, True), ("b", skin().astype(np.uint16) * 16, 12, True),
        ("c", np.dstack([radiograph()] * 3), 8, False), ("d", radiograph().astype(np.uint16) * 16, 12, False),
    ):  # fmt: skip
        assert (
            decode_square(write(tmp_path / f"{name}.dcm", pixels, bits).read_bytes(), "a", GREY).loses_color is colored
        )


def test_a_coloured_marker_makes_no_picture_in_colour() -> None:
    marked = np.dstack([radiograph()] * 3)
    marked[10:30, 10:40] = (255, 0, 0)  # 0.7 % of the pixels
    assert not decode_square(saved(Image.fromarray(marked), "PNG"), "a", GREY).loses_color
    marked[10:90, 10:90] = (255, 0, 0)
    assert decode_square(saved(Image.fromarray(marked), "PNG"), "a", GREY).loses_color


def test_an_adapter_in_colour_loses_none() -> None:
    assert not decode_square(saved(Image.fromarray(skin()), "PNG"), "a", RGB).loses_color


def test_the_worker_tells_it_too() -> None:
    with ImageDecoder() as decoder:
        for pixels in (skin(), radiograph()):
            data = saved(Image.fromarray(pixels), "PNG")
            here, there = decode_square(data, "a", GREY), decoder.decode_square(data, "a", GREY)
            assert np.array_equal(here.pixels, there.pixels) and here.loses_color is there.loses_color
    with pytest.raises(UserError, match=r"^a: larger than 100 pixels$"):
        decode_square(saved(Image.fromarray(skin()), "PNG"), "a", GREY, most_pixels=100)


def test_an_array_in_colour_becomes_luminance() -> None:
    made = as_square(skin(32), GREY)
    assert made.loses_color and np.array_equal(made.pixels, cv2.cvtColor(skin(32), cv2.COLOR_RGB2GRAY))
    assert as_square(skin(32), RGB).pixels.shape == (32, 32, 3) and not as_square(radiograph(32), GREY).loses_color
    assert not as_square(np.dstack([radiograph(32)] * 3), GREY).loses_color
    square = Square(radiograph(32), True)
    assert as_square(square, GREY) is square


def blank(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A made-up blank picture, 200 × 260 × 3: `noise` or `tinted noise` with its sigma, `shaded`, `page`."""
    y, x = np.mgrid[-1:1:200j, -1:1:260j][..., None]
    name, _, sigma = kind.rpartition(" ")
    base = rng.uniform(30, 220, 3 if name == "tinted noise" else 1) * np.ones(3)
    picture = base + rng.normal(0, float(sigma), (200, 260, 3 if name == "tinted noise" else 1))
    if name == "shaded":
        picture = picture + rng.normal(0, 10) * x + rng.normal(0, 10) * y - 15 * (x * x + y * y)
    if name == "page":
        picture = picture * 0 + 250
        picture[6:-6, 6:-6] = 20
        picture[8:-8, 8:-8] = 250
    return np.clip(picture, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["noise 0", "noise 2", "noise 5", "tinted noise 3", "shaded 2", "page 0"])
@pytest.mark.parametrize("spec", [GREY, RGB])
def test_blank_scans_are_nearly_uniform(kind: str, spec: ImageSpec) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        data = saved(Image.fromarray(blank(kind, rng)), "PNG")
        assert is_nearly_uniform(decode_square(data, "a", spec).pixels)


@pytest.mark.parametrize("spec", [GREY, RGB])
def test_a_picture_of_something_is_not(spec: ImageSpec) -> None:
    faint = blank("tinted noise 2", np.random.default_rng(0)).astype(int)
    cv2.circle(mask := np.zeros(faint.shape[:2], np.uint8), (110, 90), 40, 1, -1)
    faint[mask > 0] -= 12  # a pale lesion
    for pixels in (skin(), np.dstack([radiograph()] * 3), np.clip(faint, 0, 255).astype(np.uint8)):
        assert not is_nearly_uniform(decode_square(saved(Image.fromarray(pixels), "PNG"), "a", spec).pixels)
