"""DICOM: the picture that a viewer would show, whatever the encoding, and nothing of the header in any message."""

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import Sequence, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGLosslessSV1,
    RLELossless,
)

from tests.dicom_files import RAMP, lut, write
from vlm.data.images.image import ImageSpec, read_image, to_square
from vlm.errors import UserError

# ------------------------------------------------------------------------------- a genuine radiograph


@pytest.fixture(scope="module")
def genuine() -> dict[str, np.ndarray]:
    """The same PA chest radiograph, MONOCHROME1, in four encodings."""
    return {name: read_image(get_testdata_file(f"RG1_{name}.dcm")) for name in ("UNCI", "UNCR", "J2KR", "J2KI")}


def test_uncompressed_and_lossless_encodings_give_identical_pixels(genuine: dict[str, np.ndarray]) -> None:
    # UNCR and J2KR hold the original, UNCI and J2KI the one before and after lossy compression.
    np.testing.assert_array_equal(genuine["UNCR"], genuine["J2KR"])
    assert np.abs(genuine["UNCI"] - genuine["J2KI"]).max() < 0.15 * np.ptp(genuine["UNCI"])


def test_a_genuine_radiograph_comes_out_with_bright_bone(genuine: dict[str, np.ndarray]) -> None:
    for image in genuine.values():
        square = to_square(image, ImageSpec(size=224)).astype(float)
        spine = square[90:150, 104:120].mean()
        lungs = [square[70:130, columns].mean() for columns in (slice(60, 85), slice(140, 165))]
        assert spine > max(lungs) + 30, "the mediastinum is brighter than either lung"


def test_a_genuine_voi_lut_matches_one_computed_by_hand() -> None:
    file = get_testdata_file("vlut_04.dcm")
    dataset = dcmread(file)
    entries, first, _ = dataset.VOILUTSequence[0].LUTDescriptor
    table = np.array(dataset.VOILUTSequence[0].LUTData)
    stored = np.frombuffer(dataset.PixelData, np.uint8 if dataset.BitsAllocated == 8 else "<u2").astype(int)
    expected = [table[min(max(value - first, 0), len(table) - 1)] for value in stored]
    np.testing.assert_array_equal(read_image(file).ravel(), np.array(expected, dtype=np.float32))
    assert len(table) == (entries or 65536)


def test_a_genuine_modality_lut_matches_one_computed_by_hand() -> None:
    file = get_testdata_file("mlut_18.dcm")
    dataset = dcmread(file)
    first, table = dataset.ModalityLUTSequence[0].LUTDescriptor[1], np.array(dataset.ModalityLUTSequence[0].LUTData)
    assert dataset.PixelRepresentation == 1 and dataset.BitsStored == 12, "twelve bits, the highest the sign"
    stored = (np.frombuffer(dataset.PixelData, "<u2").astype(int) & 0xFFF ^ 0x800) - 0x800
    expected = [table[min(max(value - first, 0), len(table) - 1)] for value in stored]
    np.testing.assert_array_equal(read_image(file).ravel(), np.array(expected, dtype=np.float32))


# ----------------------------------------------------------------------------------- greys, in order


def test_grey_values_are_inverted_once(tmp_path: Path) -> None:
    plain = read_image(write(tmp_path / "plain.dcm"))
    np.testing.assert_array_equal(plain, RAMP)
    for number, elements in enumerate(
        (
            {"PhotometricInterpretation": "MONOCHROME1"},
            {"PresentationLUTShape": "INVERSE"},
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
        )
    ):
        np.testing.assert_array_equal(read_image(write(tmp_path / f"{number}.dcm", **elements)), -plain)


def test_rescale_comes_before_the_window(tmp_path: Path) -> None:
    file = write(tmp_path / "a.dcm", RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1000, WindowWidth=1000)
    hounsfield = RAMP * 2.0 - 1000
    expected = np.clip((hounsfield - (1000 - 0.5)) / (1000 - 1) + 0.5, 0, 1)
    shown = read_image(file)
    np.testing.assert_allclose((shown - shown.min()) / np.ptp(shown), expected, atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_of_each_function(function: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.dcm", WindowCenter=[2000, 50], WindowWidth=[800, 10], VOILUTFunction=function)
    x, c, w = RAMP.astype(float), 2000.0, 800.0
    expected = {
        "LINEAR": np.clip((x - (c - 0.5)) / (w - 1) + 0.5, 0, 1),
        "LINEAR_EXACT": np.clip((x - c) / w + 0.5, 0, 1),
        "SIGMOID": 1 / (1 + np.exp(-4 * (x - c) / w)),
    }[function]
    np.testing.assert_allclose(read_image(file) / 4095, expected, atol=1e-6)


def test_a_voi_lut_of_few_bits_over_many_values_does_not_wrap_around(tmp_path: Path) -> None:
    table = (np.arange(4096) // 16).astype(np.uint8)
    file = write(tmp_path / "a.dcm", VOILUTSequence=lut(0, table, 8))
    np.testing.assert_array_equal(read_image(file), table[RAMP])


def test_a_lut_with_a_negative_start_and_signed_pixels(tmp_path: Path) -> None:
    pixels = (RAMP.astype(np.int16) - 2048)[:4]
    table = np.arange(100, 4196, dtype=np.uint16)
    file = write(tmp_path / "a.dcm", pixels, ModalityLUTSequence=lut(-2048, table, 16))
    np.testing.assert_array_equal(read_image(file), table[pixels.astype(int) + 2048])


def test_padding_is_black_and_moves_no_contrast(tmp_path: Path) -> None:
    picture = np.tile(np.linspace(1000, 3000, 64), (64, 1)).astype(np.uint16)
    padded = picture.copy()
    padded[:, :20], padded[:5] = 4095, 4090
    file = write(tmp_path / "a.dcm", padded, PixelPaddingValue=4090, PixelPaddingRangeLimit=4095)
    shown, spec = read_image(file), ImageSpec(size=64)
    assert np.isnan(shown[:, :20]).all() and np.isnan(shown[:5]).all() and not np.isnan(shown[5:, 20:]).any()
    square = to_square(shown, spec)
    assert not square[:, :20].any() and not square[:5].any()
    assert square[10, 63] == 255 and square[10, 20] < 10, "the contrast is that of the picture alone"
    inverted = write(tmp_path / "b.dcm", padded, PixelPaddingValue=4090, PixelPaddingRangeLimit=4095,
                     PhotometricInterpretation="MONOCHROME1")  # fmt: skip
    assert not to_square(read_image(inverted), spec)[:, :20].any(), "padding stays black in a negative"


def test_colour_becomes_grey_and_run_length_is_read(tmp_path: Path) -> None:
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[..., 1] = 200
    np.testing.assert_allclose(read_image(write(tmp_path / "rgb.dcm", colour, bits=8)), 200 * 0.587, rtol=1e-5)
    file = write(tmp_path / "plain.dcm")
    dataset = dcmread(file)
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "rle.dcm"), RAMP)


# -------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"syntax": DeflatedExplicitVRLittleEndian}, "Deflated Explicit VR Little Endian is refused"),
        ({"syntax": MPEG2MPML}, "no still image can be read from the transfer syntax MPEG2"),
        ({"syntax": "1.2.3.4"}, "transfer syntax an unknown kind of object"),
        ({"syntax": JPEGLosslessSV1}, "needs a decoder that is not installed; pip install python-gdcm"),
        ({"NumberOfFrames": 8}, "a multi-frame object"),
        ({"Rows": 60_000, "Columns": 60_000}, "larger than 50,000,000 pixels"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "neither a grey nor an RGB or YBR image"),
        ({"PixelData": b"\0" * 9}, "not a readable DICOM image"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "not a readable DICOM image"),
        ({"HighBit": 15}, r"pixels are not in the lowest bits \(HighBit is not BitsStored - 1\)"),
        ({"PhotometricInterpretation": ""}, "its header has no PhotometricInterpretation"),
    ],
)
def test_what_is_no_image_is_refused_by_name(elements: dict, message: str, tmp_path: Path) -> None:
    file = tmp_path / "case.dcm"
    syntax = elements.pop("syntax", None)
    write(file, **elements)
    if syntax:
        data = file.read_bytes()  # the meta alone is changed: what follows must not even be looked at
        old = str(ExplicitVRLittleEndian).encode()
        length = data.index(old) - 2
        value = syntax.encode() + b"\0" * (len(syntax) % 2)
        file.write_bytes(data[:length] + len(value).to_bytes(2, "little") + value + data[length + 2 + len(old) + 1 :])
    with pytest.raises(UserError, match=rf"case\.dcm: .*{message}") as caught:
        read_image(file)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None


def test_a_report_is_no_image(tmp_path: Path) -> None:
    file = write(tmp_path / "sr.dcm", SOPClassUID=BasicTextSRStorage)
    dataset = dcmread(file)
    del dataset.PixelData
    dataset.save_as(file)
    with pytest.raises(UserError, match=r"sr\.dcm: no image but Basic Text SR Storage"):
        read_image(file)


def test_a_file_by_name_alone_and_a_missing_library_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.dcm").write_bytes(b"no preamble")
    with pytest.raises(UserError, match="the mark DICM is missing"):
        read_image(tmp_path / "a.dcm")
    file = write(tmp_path / "b.dcm")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'clinical-vlm\[dicom\]'"):
        read_image(file)


def test_no_header_value_reaches_a_message(
    tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """Good and broken objects, with every text a canary."""
    caplog.set_level(logging.DEBUG)
    warnings.simplefilter("always")
    whole = write(tmp_path / "good.dcm").read_bytes()
    rng = np.random.default_rng(0)
    said = []
    for number in range(300):
        data = bytearray(whole)
        for place in rng.integers(128, len(data), 1 + number % 8):
            data[place] = rng.integers(256)
        file = tmp_path / "case.dcm"
        file.write_bytes(data[: len(data) - number % 50])
        try:
            read_image(file)
        except UserError as error:
            said.append(str(error))
    out, err = capfd.readouterr()
    assert said, "some of them were broken"
    for text in [*said, out, err, caplog.text, *(str(w.message) for w in recwarn)]:
        assert "CANARY" not in text and "JANE" not in text


def test_a_file_meta_of_either_encoding_is_read_and_none_hides_a_deflated_object(tmp_path: Path) -> None:
    data = write(tmp_path / "a.dcm").read_bytes()
    place, implicit = 132, b""  # the same elements without their VR, which pydicom puts up with
    while data[place : place + 2] == b"\x02\x00":
        long = data[place + 4 : place + 6] in (b"OB", b"UN")
        size = int.from_bytes(data[place + 8 : place + 12] if long else data[place + 6 : place + 8], "little")
        value = place + (12 if long else 8)
        implicit += data[place : place + 4] + size.to_bytes(4, "little") + data[value : value + size]
        place = value + size
    (tmp_path / "implicit.dcm").write_bytes(data[:132] + implicit + data[place:])
    np.testing.assert_array_equal(read_image(tmp_path / "implicit.dcm"), RAMP)
    deflated = implicit.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99", 1).replace(
        b"\x10\0" + (20).to_bytes(4, "little"), b"\x10\0" + (22).to_bytes(4, "little"), 1
    )
    (tmp_path / "hidden.dcm").write_bytes(data[:132] + deflated + data[place:])
    with pytest.raises(UserError, match="Deflated"):
        read_image(tmp_path / "hidden.dcm")


# ------------------------------------------------------------------- what anonymising and exporting leave behind


def without_preamble(path: Path, meta: bool = True) -> bytes:
    """The same object as some devices send it, with or without its file meta."""
    data = path.read_bytes()[132:]
    size = int.from_bytes(data[8:12], "little")  # the group's length stands first
    return data if meta else data[12 + size :]


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowCenter": 1000, "WindowWidth": ""},
        {"WindowWidth": 1000, "WindowCenter": None},
        {"WindowCenter": 1000},
        {"WindowWidth": 1000},
        {"RescaleSlope": "", "RescaleIntercept": ""},
        {"RescaleSlope": 2},
        {"PixelPaddingValue": None, "PixelPaddingRangeLimit": None},
        {"NumberOfFrames": ""},
        {"NumberOfFrames": "1 "},
        {"VOILUTSequence": Sequence(), "ModalityLUTSequence": Sequence()},
        {"VOILUTFunction": "", "PresentationLUTShape": ""},
    ],
)
def test_an_empty_element_counts_as_none(elements: dict, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_image(write(tmp_path / "a.dcm", **elements)), RAMP)


@pytest.mark.parametrize(
    ("center", "width"),
    [
        ("2000", "800"), (" 2000 ", "800 "), ("2.0E+3", "+800."), (["2000", "50"], ["800", "10"]),
        (["", "2000"], ["10", "800"]), (["50", "2000"], ["", "800"]), (["2000"], ["800", "10"]), ("2000", ["800", ""]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("function", ["LINEAR", ""])
def test_the_first_whole_window_is_applied_however_it_is_written(center, width, function: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.dcm", WindowCenter=center, WindowWidth=width, VOILUTFunction=function)
    expected = np.clip((RAMP - (2000 - 0.5)) / (800 - 1) + 0.5, 0, 1)
    np.testing.assert_allclose(read_image(file) / 4095, expected, atol=1e-6)


def test_a_padding_limit_left_empty_is_that_of_the_value(tmp_path: Path) -> None:
    shown = read_image(write(tmp_path / "a.dcm", PixelPaddingValue=64, PixelPaddingRangeLimit=None))
    assert np.isnan(shown).sum() == 1 and np.isnan(shown[0, 1])


@pytest.mark.parametrize("meta", [True, False])
@pytest.mark.parametrize("name", ["a.dcm", "a", "a.png", "1.2.840.113619"])
def test_dicom_without_its_preamble_is_read(meta: bool, name: str, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.dcm", WindowCenter=2000, WindowWidth=800)
    (tmp_path / name).write_bytes(without_preamble(whole, meta))
    np.testing.assert_array_equal(read_image(tmp_path / name), read_image(whole))


def test_dicom_without_preamble_in_implicit_vr_is_read_and_compressed_pixels_are_not_guessed(tmp_path: Path) -> None:
    from pydicom.uid import ImplicitVRLittleEndian

    dataset = dcmread(write(tmp_path / "whole.dcm"))
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(tmp_path / "implicit.dcm", implicit_vr=True, little_endian=True)
    (tmp_path / "bare").write_bytes(without_preamble(tmp_path / "implicit.dcm", meta=False))
    np.testing.assert_array_equal(read_image(tmp_path / "bare"), RAMP)
    dataset = dcmread(tmp_path / "whole.dcm")
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    (tmp_path / "rle").write_bytes(without_preamble(tmp_path / "rle.dcm", meta=False))
    with pytest.raises(UserError, match="its pixels are compressed, and it does not say how"):
        read_image(tmp_path / "rle")
    (tmp_path / "rle").write_bytes(without_preamble(tmp_path / "rle.dcm"))
    np.testing.assert_array_equal(read_image(tmp_path / "rle"), RAMP)


def test_a_deflated_object_is_refused_without_its_preamble_too(tmp_path: Path) -> None:
    data = write(tmp_path / "a.dcm").read_bytes()
    old, new = (str(uid).encode() for uid in (ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian))
    place = data.index(old) - 2
    deflated = data[:place] + len(new).to_bytes(2, "little") + new + data[place + 2 + len(old) + len(old) % 2 :]
    (tmp_path / "bare").write_bytes(deflated[132:])
    with pytest.raises(UserError, match="Deflated"):
        read_image(tmp_path / "bare")
