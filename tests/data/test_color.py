"""Pictures in colour: every file type, colour profiles, and grey pictures as they were."""

import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.dicom_files import write
from tests.picture_files import saved, tiff
from tests.tables import table_of
from vlm.config import AugmentConfig, DataConfig
from vlm.data.cohort import Cohort
from vlm.data.color_choice import choose_color
from vlm.data.images.image import ImageSpec, augment, decode_image, is_blank, read_image, to_pixel_values, to_square
from vlm.data.images.sandbox import ImageDecoder
from vlm.data.ingest.sources import load_cohort
from vlm.data.prepare.pack import PackOptions, pack
from vlm.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
RGB = ImageSpec(size=32, color="rgb", color_mean=MEAN, color_std=STD)


def blocks() -> np.ndarray:
    """Red, green, blue and brown quarters, 16 × 16 each; H × W × 3."""
    colors = np.array([[[220, 30, 20], [10, 200, 40]], [[20, 40, 210], [120, 80, 40]]], np.uint8)
    return colors.repeat(16, axis=0).repeat(16, axis=1)


@pytest.mark.parametrize(
    ("kind", "options", "near"),
    [("PNG", {}, 0), ("BMP", {}, 0), ("TIFF", {}, 0), ("WEBP", {"lossless": True}, 0), ("PPM", {}, 0),
     ("GIF", {}, 0), ("JPEG", {"quality": 95, "subsampling": 0}, 12)],
)  # fmt: skip
def test_colors_of_every_file_type_are_read_as_written(kind: str, options: dict[str, object], near: int) -> None:
    image = decode_image(saved(Image.fromarray(blocks()), kind, **options), "a", color=True)
    assert image.dtype == np.uint8 and np.abs(image.astype(int) - blocks()).max() <= near
    grey = decode_image(saved(Image.fromarray(blocks()), kind, **options), "a")
    assert grey.shape == (32, 32) and grey.dtype == np.float32, "without `color` as before"


def test_sixteen_bits_and_transparency() -> None:
    deep = cv2.imencode(".png", blocks()[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    assert np.array_equal(decode_image(deep, "a", color=True), blocks())
    alpha = np.full((32, 32), 255, np.uint8)
    alpha[:8] = 0
    image = decode_image(saved(Image.fromarray(np.dstack([blocks(), alpha])), "PNG"), "a", color=True)
    assert not image[:8].any() and np.array_equal(image[8:], blocks()[8:])
    with pytest.raises(UserError, match=r"colours of type float32; save it with 8 or 16 bits"):
        decode_image(tiff(blocks().astype(np.float32)), "a", color=True)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_colors_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(Image.fromarray(blocks()), "JPEG", exif=exif, quality=95, subsampling=0)
    turned, grey = decode_image(data, "a", color=True), decode_image(data, "a")
    assert np.abs(cv2.cvtColor(turned, cv2.COLOR_RGB2GRAY) - grey).max() < 8


def test_a_grey_picture_stored_in_three_channels_is_read_as_grey() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = saved(Image.fromarray(np.dstack([ramp] * 3)), "PNG")
    assert np.array_equal(decode_image(data, "a", color=True), decode_image(data, "a"))


def test_cmyk_becomes_srgb() -> None:
    cmyk = Image.fromarray(blocks()).convert("CMYK")
    image = decode_image(saved(cmyk, "JPEG", quality=98, subsampling=0), "a", color=True)
    assert np.abs(image.astype(int) - blocks()).max() <= 16


def profile(red: tuple[float, float], green: tuple[float, float], blue: tuple[float, float]) -> bytes:
    """Write a colour profile of three primaries (xy, adapted to D50) and gamma 2.2 (ICC.1:2010, 8.3)."""
    white = np.array([0.9642, 1.0, 0.8249])
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in (red, green, blue)]).T
    columns = (xyz * np.linalg.solve(xyz, white)).T

    def number(value: float) -> bytes:
        return struct.pack(">i", round(value * 65_536))

    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"wide\0" + bytes(78)
    tags = {b"desc": text, b"wtpt": b"XYZ " + bytes(4) + b"".join(map(number, white)), b"cprt": b"text\0\0\0\0none\0"}
    for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True):
        tags[name] = b"XYZ " + bytes(4) + b"".join(map(number, column))
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        tags[name] = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256))
    place, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", place + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", place + len(body), b"    ", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + b"".join(map(number, white))
    return head.ljust(128, b"\0") + table + body


WIDE = profile((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_wide_gamut_is_brought_to_srgb(kind: str) -> None:
    """The same numbers are stronger colours there, so in sRGB the red is redder; a grey stays grey."""
    pixels = np.full((8, 16, 3), 128, np.uint8)
    pixels[:, 8:] = (150, 110, 100)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = saved(Image.fromarray(pixels), kind, icc_profile=WIDE, **options)
    plain = saved(Image.fromarray(pixels), kind, **options)
    image, unmanaged = (decode_image(file, "a", color=True).astype(int) for file in (data, plain))
    assert np.abs(unmanaged[:, 8:].mean((0, 1)) - (150, 110, 100)).max() < 3
    assert np.ptp(image[:, :7].mean((0, 1))) < 3, "grey"
    red, green, blue = image[:, 9:].mean((0, 1))
    assert red > 155 and green < 109 and blue < 100


def test_srgb_itself_costs_nothing_and_a_broken_profile_is_one_line() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = saved(Image.fromarray(blocks()), "PNG", icc_profile=srgb)
    assert np.array_equal(decode_image(data, "a", color=True), blocks())
    with pytest.raises(UserError, match=r"^a: not a readable image: its colour profile is broken; save it as sRGB$"):
        decode_image(saved(Image.fromarray(blocks()), "PNG", icc_profile=WIDE[:200]), "a", color=True)


def test_a_dicom_picture_in_color(tmp_path: Path) -> None:
    image = read_image(write(tmp_path / "a.dcm", blocks(), 8), color=True)
    assert image.dtype == np.uint8 and np.array_equal(image, blocks())
    grey = read_image(write(tmp_path / "b.dcm"), color=True)
    assert grey.ndim == 2 and np.array_equal(grey, read_image(tmp_path / "b.dcm"))


def test_a_dicom_picture_in_luma_and_chroma(tmp_path: Path) -> None:
    ybr = cv2.cvtColor(blocks(), cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    file = write(tmp_path / "a.dcm", ybr, 8, PhotometricInterpretation="YBR_FULL")
    assert np.abs(read_image(file, color=True).astype(int) - blocks()).max() <= 3


def test_squares_in_color() -> None:
    square = to_square(blocks()[:, :24], RGB)
    assert square.shape == RGB.shape == (32, 32, 3) and not square[:, :4].any(), "padding is black"
    assert np.array_equal(square[0, 5], (220, 30, 20)), "colours are not stretched"
    grey = to_square(np.arange(256, dtype=np.float32).reshape(16, 16), RGB)
    assert grey.shape == (32, 32, 3) and (grey[..., 0] == grey[..., 2]).all() and grey.max() == 255
    smooth = to_square(blocks(), replace(RGB, interpolation="bicubic"))
    assert np.abs(smooth.astype(int) - to_square(blocks(), RGB)).mean() < 6
    values = to_pixel_values(square, RGB)
    np.testing.assert_allclose(values[:, 0, 5], (np.array([220, 30, 20]) / 255 - MEAN) / STD, rtol=1e-5)
    assert is_blank(np.full((4, 4, 3), (9, 8, 7), np.uint8)) and not is_blank(square)


def test_augmentation_keeps_hues() -> None:
    square = np.full((32, 32, 3), (140, 120, 110), np.uint8)
    changed = augment(square, AugmentConfig(contrast=0.2, rotate=20, shift=0.1), np.random.default_rng(3))
    middle = changed[16, 16].astype(int)
    assert changed.shape == square.shape and middle[0] - middle[1] in range(14, 27) and middle[1] > middle[2]


@pytest.mark.parametrize(
    "options",
    [{"color": "rgb"}, {"color": "rgb", "color_mean": MEAN, "color_std": (0.1, 0.1)}, {"color_mean": MEAN},
     {"color": "rgb", "color_mean": MEAN, "color_std": (0.1, 0.1, 0)},
     {"color": "rgb", "color_mean": MEAN, "color_std": STD, "channels": 1}],
)  # fmt: skip
def test_a_spec_that_contradicts_itself_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"^image\.color"):
        ImageSpec(**options)


def test_the_worker_decodes_in_color() -> None:
    data = saved(Image.fromarray(blocks()), "PNG")
    with ImageDecoder() as decoder:
        assert np.array_equal(decoder.decode_square(data, "a", RGB).pixels, to_square(blocks(), RGB))


def cohort_of(folder: Path, pictures: list[np.ndarray]) -> Cohort:
    lines = ["id,image,age,edema,report,split"]
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.png")
        lines.append(f"{number},{number}.png,{40 + number},{number % 2},A report.,train")
    return load_cohort(config_of(folder, "\n".join(lines)))


def config_of(folder: Path, table: str) -> DataConfig:
    data = table_of(folder, table, split="split")
    return replace(data, table=replace(data.table, image="image"))


def marked() -> np.ndarray:
    """A grey picture with a small red mark."""
    picture = np.dstack([np.arange(1024, dtype=np.uint16).reshape(32, 32).astype(np.uint8)] * 3)
    picture[:3, :3] = (255, 0, 0)
    return picture


def test_auto_is_color_where_most_pictures_are(tmp_path: Path) -> None:
    (tmp_path / "grey").mkdir()
    found = choose_color(cohort_of(tmp_path / "grey", [marked()] * 5 + [blocks()] * 2))
    assert found == ("grey", "2 of 7 training images looked at are in colour; data.color says otherwise")
    cohort = cohort_of(tmp_path, [marked()] + [blocks()] * 3)
    assert choose_color(cohort).value == "rgb"


def test_packed_shards_keep_colors(tmp_path: Path) -> None:
    cohort_of(tmp_path, [blocks()] * 2 + [marked()])
    data = config_of(tmp_path, (tmp_path / "t.csv").read_text())
    pack(data, tmp_path / "shards", PackOptions(image_side=32))
    packed = load_cohort(replace(data, source="packed", root=str(tmp_path / "shards")))
    assert choose_color(packed).value == "rgb"


def test_mirroring_is_drawn_last_so_that_other_draws_stay() -> None:
    square = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    plain = augment(square, AugmentConfig(), np.random.default_rng(1))
    drawn = [augment(square, AugmentConfig(mirror=True), np.random.default_rng(seed)) for seed in range(40)]
    flips = {
        np.ascontiguousarray(image).tobytes() for image in (square, square[::-1], square[:, ::-1], square[::-1, ::-1])
    }
    assert np.array_equal(plain, square) and {image.tobytes() for image in drawn} == flips
