"""Decode an untrusted DICOM object to the picture that a viewer would show, in grey or in colour.

In order: transfer syntax and size are validated before decoding; modality LUT or rescale; padding masked;
VOI LUT or window; one inversion where low values are white (DICOM PS3.3 C.7.6.3, C.11.1, C.11.2 and C.11.6).

A header holds a patient's name: only the elements that a picture needs are read, and no value of any of them
reaches an error text.
"""

import warnings
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from vlm.data.images.color import OnColor, eight_bits, is_grey
from vlm.data.images.elements import DEFLATED, PREAMBLE, silence, transfer_syntax
from vlm.data.images.file_types import describe_other_file, file_type
from vlm.data.images.header import LARGEST_DECODED, LARGEST_IMAGE, read_header
from vlm.errors import UserError, require

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

BAND = 256
"""Number of rows to compute at a time."""
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
NEEDED = [
    "SOPClassUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleIntercept", "RescaleSlope", "VOILUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "PresentationLUTShape", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]  # fmt: skip


def read_dicom(where: str, data: bytes, color: bool = False, on_color: OnColor = None) -> np.ndarray:
    """Decode to H × W float32 with bright bone, NaN where the detector saw nothing; colours as `decode_image` does.

    The preamble may be missing. Raises `UserError` unless it is a single-frame image in a known encoding.
    """
    if data[128:132] != b"DICM":
        if file_type(data) != "DICOM":
            raise UserError(f"{where}: not a DICOM file: the mark DICM is missing; {describe_other_file(data)}")
        data = PREAMBLE + data
    require("pydicom", f"{where}: DICOM files need pydicom")
    silence()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(where, data, color, on_color)
    except UserError:
        raise
    except Exception:  # a broken header can raise nearly anything, with its values in the message
        raise UserError(f"{where}: not a readable DICOM image: its header or its pixel data are broken") from None


def _decode(where: str, data: bytes, color: bool, on_color: OnColor) -> np.ndarray:
    from pydicom import dcmread
    from pydicom.pixels import pixel_array
    from pydicom.uid import RLELossless

    if said := transfer_syntax(data):
        _refuse_encoding(where, said)
    dataset = dcmread(BytesIO(data), specific_tags=NEEDED)
    if not said:
        dataset.file_meta.TransferSyntaxUID = _native_syntax(where, dataset)
    _refuse_object(where, dataset)
    _refuse_frame(where, dataset)
    # The Rust run-length decoder panics past every `except Exception`; pydicom's own is pure Python.
    plugin = "pydicom" if dataset.file_meta.TransferSyntaxUID == RLELossless else ""
    stored = pixel_array(dataset, decoding_plugin=plugin)  # H × W, or H × W × 3 as RGB
    if color and stored.ndim == 3 and not is_grey(stored):
        return eight_bits(stored[..., :3], int(dataset.BitsStored))
    if on_color and stored.ndim == 3:
        on_color(stored[..., :3], int(dataset.BitsStored))
    shown = np.empty(stored.shape[:2], np.float32)
    for start in range(0, len(shown), BAND):  # mostly 64-bit: a large picture would take a gigabyte
        shown[start : start + BAND] = _as_displayed(stored[start : start + BAND], dataset)
    return shown


def _as_displayed(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Convert rows of stored values, H × W or H × W × 3, to the H × W values that a viewer shows."""
    if stored.ndim == 3:
        return stored[..., :3] @ np.array([0.299, 0.587, 0.114])
    shown = _values_of_interest(_modality(stored, dataset), dataset).astype(np.float32)
    # Digital radiographs state both MONOCHROME1 and INVERSE: they are inverted once.
    if dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE":
        shown = -shown
    shown[_padding(stored, dataset)] = np.nan
    return shown


def _modality(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Convert stored values to modality values, such as Hounsfield units."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(stored, dataset.ModalityLUTSequence[0], dataset)
    slope, intercept = (next(iter(_numbers(dataset, name)), None) for name in ("RescaleSlope", "RescaleIntercept"))
    return stored if slope is None or intercept is None else stored * slope + intercept


def _values_of_interest(values: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Apply the VOI LUT or the first window with both numbers: anonymisation often leaves them empty."""
    from pydicom.pixels.processing import apply_windowing

    if dataset.get("VOILUTSequence"):
        return _look_up(np.rint(values), dataset.VOILUTSequence[0], dataset)
    centers, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    for center, width in zip(centers, widths, strict=False):
        if center is not None and width is not None:
            dataset.WindowCenter, dataset.WindowWidth = center, width
            if not dataset.get("VOILUTFunction"):
                dataset.VOILUTFunction = "LINEAR"
            return apply_windowing(values, dataset)
    return values


def _numbers(dataset: "Dataset", name: str) -> list[float | None]:
    """Read the numbers of an element, None for an empty one of several; empty if it is missing or empty."""
    if (value := dataset.get(name)) is None or value == "":
        return []
    several = [value] if isinstance(value, str | float | int) else list(value)
    return [None if one is None or not str(one).strip() else float(one) for one in several]


def _native_syntax(where: str, dataset: "Dataset") -> "UID":
    """Find the transfer syntax by which a file without one was parsed; its pixels must be uncompressed."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = dataset.original_encoding
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise UserError(f"{where}: its pixels are compressed, and it does not say how: the file meta is missing")
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _refuse_encoding(where: str, syntax: str) -> None:
    """Raise `UserError` for a transfer syntax that is dangerous, unknown, or needs another decoder."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    name = _registered(syntax)
    if syntax == DEFLATED:
        raise UserError(f"{where}: {name} is refused: it may inflate without bound; store it uncompressed")
    try:
        decoder = get_decoder(UID(syntax))
    except NotImplementedError:
        raise UserError(f"{where}: no still image can be read from the transfer syntax {name}") from None
    if not decoder.is_available:
        raise UserError(f"{where}: {name} needs a decoder that is not installed; pip install python-gdcm") from None


def _refuse_object(where: str, dataset: "Dataset") -> None:
    """Raise `UserError` unless the object is a single grey or colour image of a reasonable size."""
    if "PixelData" not in dataset:
        raise UserError(f"{where}: no image but {_registered(str(dataset.get('SOPClassUID', '')))}")
    _refuse_header(where, dataset)
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise UserError(f"{where}: a multi-frame object; export the frame to be read as an image of its own")
    if int(dataset.Rows) * int(dataset.Columns) * samples > LARGEST_IMAGE:
        raise UserError(f"{where}: larger than {LARGEST_IMAGE:,} pixels")
    if dataset.PhotometricInterpretation not in (GREY if samples == 1 else COLOUR):
        raise UserError(f"{where}: neither a grey nor an RGB or YBR image; export it as greyscale")


def _refuse_header(where: str, dataset: "Dataset") -> None:
    """Raise `UserError` that names an element whose absence or value makes the pixels undecodable."""
    required = ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation")
    missing = [name for name in required if dataset.get(name) in (None, "")]
    if missing:
        raise UserError(f"{where}: not a readable DICOM image: its header has no {', '.join(missing)}")
    if dataset.get("HighBit") not in (None, "", dataset.BitsStored - 1):
        raise UserError(f"{where}: its pixels are not in the lowest bits (HighBit is not BitsStored - 1); export it "
                        "again with the values shifted down")  # fmt: skip


def _refuse_frame(where: str, dataset: "Dataset") -> None:
    """Raise `UserError` for compressed pixels that contradict the header, or would expand without bound."""
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    size = rows * columns * int(dataset.get("SamplesPerPixel") or 1) * max(int(dataset.BitsAllocated) // 8, 1)
    at = frame.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000: grid size and image offset
    width, height, left, top = (int.from_bytes(frame[at + place : at + place + 4], "big") for place in (8, 12, 16, 20))
    if syntax == RLELossless:
        fits = len(frame) <= 2 * size + 1024 and (64 * len(frame) <= LARGEST_DECODED or _run_length(frame) <= 2 * size)
    elif frame.startswith(b"\xff\xd8\xff"):
        try:
            header = read_header(frame.rstrip(b"\0"), "JPEG")
        except ValueError as error:
            raise UserError(f"{where}: not a readable DICOM image: {error}") from None
        fits = (header.height, header.width) == (rows, columns)
    else:
        fits = at < 0 or (height - top, width - left) == (rows, columns)
    if not fits:
        raise UserError(f"{where}: not a readable DICOM image: its compressed pixels are not of the size that it says")


def _run_length(frame: bytes) -> int:
    """Count the decompressed bytes of a run-length frame's segments."""
    place, total = 64, 0
    while place < len(frame):
        count = frame[place]
        total += count + 1 if count < 128 else 257 - count if count > 128 else 0
        place += count + 2 if count < 128 else 2 if count > 128 else 1
    return total


def _registered(uid: str) -> str:
    """Get the standard's name for a UID; empty for an unknown one."""
    from pydicom.uid import UID, UID_dictionary

    return str(UID(uid).name) if uid in UID_dictionary else "an unknown kind of object"


def _look_up(values: np.ndarray, table: "Dataset", dataset: "Dataset") -> np.ndarray:
    """Apply the modality or VOI LUT; values beyond its ends take the first or the last entry.

    pydicom's own keeps the index in the type of the output, so that an 8-bit table of 4,096 entries wraps around.
    """
    entries, first, _ = (int(number) for number in table.LUTDescriptor)
    entries = entries or 2**16
    data = table.LUTData
    if isinstance(data, bytes):
        word = np.dtype(np.uint16).newbyteorder("<" if dataset.original_encoding[1] else ">")
        data = np.frombuffer(data, word if len(data) >= 2 * entries else np.uint8)
    lut = np.asarray(data)[:entries]
    return lut[np.clip(values.astype(np.int64) - first, 0, len(lut) - 1)]


def _padding(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Compute the mask of padding values; H × W, True at padding."""
    values = (dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit"))
    ends = [int(value) for value in values if value not in (None, "")]
    if values[0] in (None, ""):
        return np.zeros(stored.shape, dtype=bool)
    return (stored >= min(ends)) & (stored <= max(ends))
