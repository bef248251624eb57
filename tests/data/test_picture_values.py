"""Each kind of image file gives the values that a viewer shows: upright, bright where it is bright, one picture."""

import gzip
import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.picture_files import exif, png_chunk, saved, tiff
from vlm.data.images.image import ImageSpec, decode_image, read_image, stretch_contrast, to_square
from vlm.errors import UserError

MARKED = np.full((6, 10), 40, np.uint8)
MARKED[0, 0], MARKED[0, 1] = 240, 140
"""A mark in the upper left corner, and which way is right."""


def upright(orientation: int) -> np.ndarray:
    """What a viewer shows of `MARKED`, by Pillow."""
    return np.array(
        ImageOps.exif_transpose(Image.open(_file(saved(Image.fromarray(MARKED), "PNG", exif=exif(orientation)))))
    )


def _file(data: bytes):

    return io.BytesIO(data)


def large(pixels: np.ndarray) -> Image.Image:
    """Each pixel as a block of 16, which survives a lossy encoding."""
    return Image.fromarray(np.kron(pixels, np.ones((16, 16), pixels.dtype)))


# ------------------------------------------------------------------------------------------ orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_kind_comes_out_upright(orientation: int) -> None:
    big, block = large(MARKED), exif(orientation)
    little = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", 0x0112, 3, 1, orientation, 0, 0)
    plain_png = saved(big, "PNG")
    files = {
        "PNG": saved(big, "PNG", exif=block),
        "colour PNG": saved(big.convert("RGB"), "PNG", exif=block),
        "palette PNG": saved(big.convert("RGB").quantize(4), "PNG", exif=block),
        "16-bit PNG": saved(Image.fromarray(np.array(big).astype(np.uint16) * 257), "PNG", exif=block),
        "EXIF after the pixels": plain_png[:-12] + png_chunk(b"eXIf", block[6:]) + plain_png[-12:],
        "JPEG": saved(big, "JPEG", exif=block, quality=95),
        "progressive JPEG": saved(big.convert("RGB"), "JPEG", exif=block, progressive=True, quality=95),
        "CMYK JPEG": saved(big.convert("CMYK"), "JPEG", exif=block, quality=95),
        "little-endian JPEG": saved(big, "JPEG", exif=b"Exif\0\0" + little, quality=95),
        "WebP": saved(big.convert("RGB"), "WEBP", exif=block, lossless=True),
        "lossy WebP": saved(big.convert("RGB"), "WEBP", exif=block, quality=95),
        "WebP without the prefix": saved(big.convert("RGBA"), "WEBP", exif=little, lossless=True),
        **{
            f"TIFF of {kind}": tiff(np.array(big).astype(kind), more=[(274, 3, [orientation])])
            for kind in ("u1", "u2", "i2", "u4", "f4", "f8")
        },
        "colour TIFF": tiff(np.array(big.convert("RGB")), more=[(274, 3, [orientation])]),
    }
    for name, data in files.items():
        image = decode_image(data, name)
        shown = image[8::16, 8::16] / (257 if name == "16-bit PNG" else 1)
        expected = upright(orientation)
        assert shown.shape == expected.shape, name
        assert np.abs(shown - expected).max() <= 6, name


@pytest.mark.parametrize(
    "block",
    [
        exif(0), exif(9), exif(65535), exif(6)[:-9], exif(6)[:10], b"Exif\0\0", b"Exif\0\0MM",
        b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(12), b"Exif\0\0XX*\0\0\0\0\x08",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIII", 0x0112, 3, 1 << 31, 1 << 31, 0),
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIII", 0x0112, 2, 1, 0x36000000, 0),
    ],
)  # fmt: skip
def test_a_broken_exif_block_turns_nothing(block: bytes) -> None:
    png = saved(large(MARKED), "PNG")
    for data in (saved(large(MARKED), "JPEG", exif=block, quality=95),
                 saved(large(MARKED).convert("RGB"), "WEBP", exif=block, lossless=True),
                 png[:33] + png_chunk(b"eXIf", block[6:]) + png[33:]):  # fmt: skip
        assert np.abs(decode_image(data, "x")[8::16, 8::16] - MARKED).max() <= 4


def test_the_orientation_that_counts_is_that_of_the_picture_not_of_its_preview() -> None:
    turned = saved(large(MARKED), "JPEG", exif=exif(6), quality=95)
    thumbnail = saved(Image.fromarray(MARKED), "JPEG", exif=exif(3))
    block = exif(6) + thumbnail  # with a JPEG inside, whose markers are none of the picture's
    assert decode_image(saved(large(MARKED), "JPEG", exif=block, quality=95), "x").shape == (160, 96)
    assert decode_image(turned + thumbnail, "x").shape == (160, 96)
    two = turned[:2] + b"\xff\xe1" + (len(exif(1)) + 2).to_bytes(2, "big") + exif(1) + turned[2:]
    assert decode_image(two, "x").shape == (96, 160), "the first of two"


# ------------------------------------------------------------------------------------- several pictures


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "MPO", "TIFF", "BigTIFF"])
def test_one_frame_is_read_and_several_are_refused_alike(kind: str, tmp_path: Path) -> None:
    first, second = large(MARKED), large(255 - MARKED)
    if kind in ("GIF", "PNG", "WEBP", "MPO"):
        colour = [image.convert("RGB") for image in (first, second)]
        options = {"lossless": True} if kind == "WEBP" else {}
        one = saved(colour[0], kind, save_all=True, **options)
        several = saved(colour[0], kind, save_all=True, append_images=colour[1:], **options)
    else:
        one = tiff(np.array(first), big=kind == "BigTIFF")
        several = bytearray(one)
        size = 8 if kind == "BigTIFF" else 4
        place = int.from_bytes(one[8:16] if kind == "BigTIFF" else one[4:8], "little")
        end = place + (8 + 20 * 10 if kind == "BigTIFF" else 2 + 12 * 10)  # of ten tags
        several[end : end + size] = place.to_bytes(size, "little")  # the same page once more
        several = bytes(several)
    assert np.abs(decode_image(one, "x")[8::16, 8::16] - MARKED).max() <= 6
    with pytest.raises(UserError, match=r"^x: a \w+ of several (pictures|pages); export the \w+ to be read") as caught:
        decode_image(several, "x")
    assert "\n" not in str(caught.value)


def test_a_gain_map_or_a_preview_behind_a_jpeg_is_no_second_picture() -> None:
    phone = saved(large(MARKED), "MPO", save_all=True, append_images=[Image.fromarray(MARKED)], quality=95)
    assert np.abs(decode_image(phone, "x")[8::16, 8::16] - MARKED).max() <= 6
    assert decode_image(saved(large(MARKED), "JPEG") + b"\0\0\0\x18ftypmp42" + bytes(99), "x").shape == (96, 160)


def test_an_animated_png_whose_first_picture_is_no_frame_is_refused() -> None:
    whole = saved(large(MARKED), "PNG")
    control = png_chunk(b"acTL", struct.pack(">II", 1, 0))
    frame = png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 160, 96, 0, 0, 1, 1, 0, 0)) + png_chunk(b"fdAT", bytes(9))
    with pytest.raises(UserError, match="a PNG of several pictures"):
        decode_image(whole[:33] + control + whole[33:-12] + frame + whole[-12:], "x")


# ------------------------------------------------------------------------------------------ TIFF values

RAMP = np.arange(60).reshape(6, 10)


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_grey_and_colour_tiffs_of_every_number(kind: str, order: str, big: bool) -> None:
    values = (RAMP * 2 - (60 if kind[0] in "if" else 0)).astype(kind)
    np.testing.assert_array_equal(decode_image(tiff(values, big=big, order=order), "x"), values.astype(np.float32))
    colour = np.stack([values, values // 2, values * 0 + 9], -1).astype(kind)
    luminance = 0.299 * colour[..., 0] + 0.587 * colour[..., 1] + 0.114 * colour[..., 2]
    shown = decode_image(tiff(colour, big=big, order=order), "x")
    assert np.abs(shown - luminance).max() <= (1e-4 if kind[0] == "f" or int(kind[1]) > 2 or kind[0] == "i" else 0.51)


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "u4", "i2", "i4", "f4", "f8"])
def test_a_tiff_whose_low_values_are_white_is_shown_so(kind: str) -> None:
    values = (RAMP * 2 - (60 if kind[0] in "if" else 0)).astype(kind)
    dark, light = decode_image(tiff(values), "x"), decode_image(tiff(values, photometric=0), "x")
    spec = ImageSpec(32, low_percentile=0, high_percentile=100)
    assert dark[0, 0] < dark[-1, -1] and light[0, 0] > light[-1, -1]
    inside = to_square(dark, spec)[7:25]
    assert np.abs(255.0 - inside - to_square(light, spec)[7:25]).max() <= 1
    if kind in ("u1", "u2"):
        np.testing.assert_array_equal(light, np.iinfo(kind).max - values.astype(np.float32))


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "tiles"]
)
def test_tiffs_of_every_usual_compression(compression: str, tmp_path: Path) -> None:
    grey = Image.fromarray(np.kron(MARKED, np.ones((16, 16), np.uint8)))
    if compression == "tiles":
        pixels = np.array(grey)[:64, :64]
        tags = [(322, 4, [64]), (323, 4, [64]), (324, 4, [8]), (325, 4, [64 * 64])]
        np.testing.assert_array_equal(decode_image(tiff(pixels, more=tags), "x"), pixels)
        return
    grey = grey.convert("1") if compression == "group4" else grey
    grey.save(tmp_path / "a.tif", compression=compression)
    assert np.abs(read_image(tmp_path / "a.tif") - np.array(grey.convert("L"))).max() <= (
        6 if compression == "jpeg" else 0
    )


def test_bilevel_and_palette_pictures_are_those_that_pillow_shows() -> None:
    grey = Image.fromarray((RAMP * 4).astype(np.uint8))
    bilevel, palette = grey.convert("1"), grey.convert("RGB").quantize(16)
    for image in (bilevel, palette, grey, grey.convert("RGB"), grey.convert("CMYK")):
        expected = np.array(image.convert("RGB").convert("L"), float)
        for kind in ("PNG", "TIFF", "BMP", "GIF"):
            if (kind, image.mode) not in (("PNG", "CMYK"), ("BMP", "CMYK"), ("GIF", "CMYK")):
                assert np.abs(decode_image(saved(image, kind), kind) - expected).max() <= 1, (kind, image.mode)
    for photometric in (0, 1):  # Pillow stores the inverse under 0
        for image in (bilevel, grey):
            data = saved(image, "TIFF", tiffinfo={262: photometric})
            np.testing.assert_array_equal(decode_image(data, "x"), np.array(image.convert("L")))


def test_what_is_transparent_shows_nothing_and_the_rest_its_colour() -> None:
    grey = (RAMP * 4).astype(np.uint8)
    alpha = np.full_like(grey, 255)
    alpha[:2], alpha[2] = 0, 100
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        image = Image.fromarray(np.dstack([grey, grey, grey, alpha]))
        shown = decode_image(saved(image, kind, **options), kind)
        assert np.isnan(shown[:2]).all() and np.array_equal(shown[2:], grey[2:]), kind
        nowhere = Image.fromarray(np.dstack([grey, grey, grey, alpha * 0]))
        np.testing.assert_array_equal(decode_image(saved(nowhere, kind, **options), kind), grey)
    deep = np.dstack([grey.astype(np.uint16) * 257] * 3 + [alpha.astype(np.uint16) * 257])
    shown = decode_image(cv2.imencode(".png", deep)[1].tobytes(), "deep")
    assert np.isnan(shown[:2]).all() and np.array_equal(shown[2:], grey[2:] * 257.0)
    two = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    assert np.array_equal(np.nan_to_num(decode_image(saved(two, "PNG"), "x"), nan=-1), np.where(alpha > 0, grey, -1.0))
    keyed = Image.fromarray(grey).convert("RGB").quantize(16)
    shown = decode_image(saved(keyed, "PNG", transparency=int(np.array(keyed)[0, 0])), "x")
    assert np.isnan(shown[0, 0]) and shown[-1, -1] == np.array(keyed.convert("RGB").convert("L"))[-1, -1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff(RAMP.astype("u2")[..., None].repeat(2, -1), photometric=1), "16 bits with a second channel"),
        (tiff(RAMP.astype("u1")[..., None].repeat(3, -1), photometric=8), "its colours are neither grey, RGB"),
        (tiff(RAMP.astype("u2"), photometric=32803), "its colours are neither grey, RGB"),
        (tiff(RAMP.astype("u2"), more=[(254, 4, [1])]), "a camera's raw file, with a preview"),
        (tiff(RAMP.astype("u1"), more=[(50706, 4, [1])]), "a camera's raw file"),
        (tiff(RAMP.astype("u1"), more=[(259, 3, [50000])]), "a TIFF compressed by Zstandard"),
        (tiff(RAMP.astype("c8")), "its pixels are broken"),
        (tiff(RAMP.astype("f2")), "its pixels are broken"),
        (tiff(RAMP.astype("u1"), more=[(256, 4, [0])]), "it has no pixels"),
        (tiff(RAMP.astype("u1"), more=[(256, 4, [90_000]), (257, 4, [90_000])]), "are more than 50,000,000"),
        (tiff(RAMP.astype("u1"), more=[(279, 4, [1 << 31])]), "it is cut off"),
        (tiff(RAMP.astype("u1"), more=[(322, 4, [1 << 20]), (323, 4, [1 << 20]), (324, 4, [8]), (325, 4, [60])]),
         "its strips or tiles are too large"),
    ],
)  # fmt: skip
def test_tiffs_that_cannot_be_shown_say_why(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        decode_image(data, "x")


# -------------------------------------------------------------------------- contrast of any kind of number


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "?"])
def test_contrast_is_stretched_alike_for_every_kind_of_number(kind: str) -> None:
    values = (RAMP % 2 if kind == "?" else RAMP).astype(kind)
    spec = ImageSpec(32, low_percentile=0, high_percentile=100)
    square = to_square(values, spec)
    expected = to_square((RAMP % 2 if kind == "?" else RAMP).astype(np.float32), spec)
    assert square.dtype == np.uint8 and np.array_equal(square, expected) and square.max() == 255


def test_values_that_are_no_number_are_black_and_move_no_contrast() -> None:
    values = RAMP.astype(np.float32).copy()
    values[0, 0], values[0, 1], values[0, 2] = np.nan, np.inf, -np.inf
    shown = stretch_contrast(values, ImageSpec(32, low_percentile=0, high_percentile=100))
    assert not shown[0, :3].any() and shown[-1, -1] == 255 and abs(shown[3, 0] - 255 * (30 - 3) / 56) < 1e-3
    assert not stretch_contrast(np.full((3, 3), np.nan), ImageSpec(32)).any()
    original = values.copy()
    to_square(values, ImageSpec(32))
    np.testing.assert_array_equal(values, original, "the picture itself is left as it was")


# ------------------------------------------------------------------------- what a file is that is no image

NIFTI = (348).to_bytes(4, "little") + bytes(340) + b"n+1\0" + bytes(3000)
NO_IMAGES = {
    "the file is empty": [b""],
    "nothing but zeros": [bytes(1), bytes(5000)],
    "a Git LFS pointer": [b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"],
    "a git-annex pointer": [b"/annex/objects/SHA256E-s12--ab.png\n"],
    "a web page": [b"<!DOCTYPE html><html><body>Sign in</body></html>", b"\n\n <HTML lang='en'>",
                   b"\xef\xbb\xbf<html>"],
    "XML": [b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'],
    "an SVG drawing": [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<?xml version='1.0'?><svg/>"],
    "text": [b"hello there\n", b'{"message": "Not Found"}', "Befund: unauffällig".encode() * 300],
    "a PDF": [b"%PDF-1.7\n"],
    "a ZIP archive": [b"PK\x03\x04" + bytes(30)],
    "a NIfTI volume": [NIFTI, gzip.compress(NIFTI)],
    "a gzip archive": [gzip.compress(b"something else")],
    "HEIC or AVIF": [b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1",
                     b"\0\0\0\x18ftypmif1"],
    "a video": [b"\0\0\0\x18ftypisom\0\0\2\0", b"\0\0\0\x14ftypqt  ", b"RIFF\x10\0\0\0AVI LIST",
                b"\x1a\x45\xdf\xa3\x01",
                b"\0\0\x01\xba\x21", b"OggS\0\2", b"FLV\x01\5"],
    "a Photoshop document": [b"8BPS\0\1" + bytes(20)],
    "JPEG 2000": [b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20), b"\xff\x4f\xff\x51\0\x2f"],
    "JPEG XL": [b"\xff\x0a\x00\x10", b"\0\0\0\x0cJXL \r\n\x87\n"],
    "a camera's raw file": [b"II*\0\x10\0\0\0CR\2\0" + bytes(50), b"FUJIFILMCCD-RAW 0201",
                            b"\0\0\0\x18ftypcrx \0\0\0\1"],
    "a NumPy array": [b"\x93NUMPY\1\0v\0{'descr'"],
    "an HDF5 file": [b"\x89HDF\r\n\x1a\n\0"],
    "an NRRD volume": [b"NRRD0005\ntype: float\n"],
    "a MetaImage volume": [b"ObjectType = Image\nNDims = 3\n"],
    "what a Mac keeps beside a file": [b"\0\x05\x16\x07\0\2\0\0Mac OS X"],
    "PNG, JPEG, TIFF, BMP, WebP, GIF, PNM and DICOM are read": [bytes(range(256)), b"\x80\x81\x82garbage\0\1"],
}  # fmt: skip


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_a_file_that_is_no_image_is_named(kind: str) -> None:
    for data in NO_IMAGES[kind]:
        with pytest.raises(UserError, match=f"^scan.png: not a readable image: .*{kind}") as caught:
            decode_image(data, "scan.png")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "progressive", "TIFF", "BMP", "WEBP", "GIF", "PPM"])
def test_a_file_that_is_cut_anywhere_is_refused_as_cut(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    image = Image.fromarray(cv2.GaussianBlur(noise, (5, 5), 0))
    options = {"progressive": True} if kind == "progressive" else {}
    whole = saved(image, "JPEG" if kind == "progressive" else kind, **options)
    decode_image(whole, "x")
    ends = [*np.linspace(40, len(whole) - 1, 40).astype(int)] + ([len(whole) - 2] if kind != "GIF" else [])
    for end in ends:
        if kind == "GIF" and end >= len(whole) - 2:
            continue  # the last two say that nothing follows
        with pytest.raises(UserError, match=r"cut off|broken"):
            decode_image(whole[:end], "x")


def test_the_bytes_tell_the_kind_whatever_the_name_says(tmp_path: Path) -> None:
    from tests.dicom_files import RAMP as STORED
    from tests.dicom_files import write

    dicom = write(tmp_path / "a.dcm").read_bytes()
    for name in ("scan.png", "scan", "1.2.840.113", "scan.dcm"):
        np.testing.assert_array_equal(decode_image(dicom, name), STORED)
    for kind in ("PNG", "JPEG", "BMP", "GIF"):
        for name in ("scan.dcm", "scan", "scan.tiff"):
            assert np.abs(decode_image(saved(large(MARKED), kind), name)[8::16, 8::16] - MARKED).max() <= 6
