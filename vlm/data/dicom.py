"""A DICOM object to the greyscale picture that a viewer would show, without trusting the file.

In order: transfer syntax and size are judged before anything is decoded; modality LUT or rescale; padding masked;
VOI LUT or window; one inversion where low values are white (DICOM PS3.3 C.7.6.3, C.11.1, C.11.2 and C.11.6).

A header holds a patient's name: only the elements that a picture needs are read, and no value of any of them
reaches an error text.
"""

import contextlib
import importlib.util
import logging
import warnings
from io import BytesIO
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from vlm.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

DEFLATED = "1.2.840.10008.1.2.1.99"
LARGEST_IMAGE = 50_000_000
"""Pixels, twice those of a large mammogram."""
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
NEEDED = [
    "SOPClassUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleIntercept", "RescaleSlope", "VOILUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "PresentationLUTShape", "PixelData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
]  # fmt: skip


def is_dicom(head: bytes, where: str) -> bool:
    """Whether a file says it is DICOM, by its preamble or its name."""
    return head[128:132] == b"DICM" or PurePath(where).suffix.lower() in (".dcm", ".dicom")


def read_dicom(where: str, data: bytes) -> np.ndarray:
    """Decode to H × W float32 with bright bone, NaN where the detector saw nothing.

    Raises `UserError` that begins with `where` for anything that is no single-frame image in a known encoding.
    """
    if data[128:132] != b"DICM":
        raise UserError(f"{where}: not a DICOM file: the mark DICM is missing")
    if importlib.util.find_spec("pydicom") is None:
        raise UserError(f"{where}: DICOM files need pydicom; pip install 'clinical-vlm[dicom]'")
    for name in ("pydicom", "pylibjpeg", "openjpeg"):
        logging.getLogger(name).disabled = True  # their messages quote header values
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(where, data)
    except UserError:
        raise
    except Exception:  # a broken header can raise nearly anything, with its values in the message
        raise UserError(f"{where}: not a readable DICOM image: its header or its pixel data are broken") from None


def _decode(where: str, data: bytes) -> np.ndarray:
    from pydicom import dcmread
    from pydicom.pixels import pixel_array
    from pydicom.pixels.processing import apply_windowing
    from pydicom.uid import RLELossless

    _refuse_encoding(where, _transfer_syntax(data))
    dataset = dcmread(BytesIO(data), specific_tags=NEEDED)
    _refuse_object(where, dataset)
    # The Rust decoder of run lengths panics past every `except Exception`; pydicom's own is plain Python.
    plugin = "pydicom" if dataset.file_meta.TransferSyntaxUID == RLELossless else ""
    stored = pixel_array(dataset, decoding_plugin=plugin)  # H × W, or H × W × 3 as RGB
    if stored.ndim == 3:
        return (stored[..., :3] @ np.array([0.299, 0.587, 0.114])).astype(np.float32)
    values = stored
    if dataset.get("ModalityLUTSequence"):
        values = _look_up(stored, dataset.ModalityLUTSequence[0], dataset)
    elif "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
        values = stored * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    if dataset.get("VOILUTSequence"):
        values = _look_up(np.rint(values), dataset.VOILUTSequence[0], dataset)
    elif "WindowCenter" in dataset and "WindowWidth" in dataset:
        values = apply_windowing(values, dataset)  # the first of several
    shown = values.astype(np.float32)
    # Digital radiographs say it twice, MONOCHROME1 and INVERSE: they are inverted once.
    if dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE":
        shown = -shown
    shown[_padding(stored, dataset)] = np.nan
    return shown


def _transfer_syntax(data: bytes) -> str:
    """From the file meta alone: opening a deflated object inflates all of it, a gigabyte from half a megabyte.

    Read as pydicom will read it: where the first element has no known VR, as if none of them had one.
    """
    from pydicom.filereader import read_dataset

    for implicit in (False, True):
        meta = BytesIO(data)
        meta.seek(132)
        elements = read_dataset(meta, implicit, is_little_endian=True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        with contextlib.suppress(NotImplementedError):
            for first in list(elements.keys())[:1]:
                elements[first]  # converted, and so judged, when it is asked for
            return str(elements.get("TransferSyntaxUID", ""))
    return ""


def _refuse_encoding(where: str, syntax: str) -> None:
    """Raise `UserError` for a transfer syntax that is dangerous, unknown, or wants another decoder."""
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
    """Raise `UserError` for what is no single grey or colour image of a reasonable size."""
    if "PixelData" not in dataset:
        raise UserError(f"{where}: no image but {_registered(str(dataset.get('SOPClassUID', '')))}")
    frames, samples = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("SamplesPerPixel") or 1)
    if frames != 1:
        raise UserError(f"{where}: a multi-frame object; export the frame to be read as an image of its own")
    if int(dataset.Rows) * int(dataset.Columns) * samples > LARGEST_IMAGE:
        raise UserError(f"{where}: larger than {LARGEST_IMAGE:,} pixels")
    if dataset.PhotometricInterpretation not in (GREY if samples == 1 else COLOUR):
        raise UserError(f"{where}: neither a grey nor an RGB or YBR image; export it as greyscale")


def _registered(uid: str) -> str:
    """The standard's own name for a UID; nothing of one that it does not know."""
    from pydicom.uid import UID, UID_dictionary

    return str(UID(uid).name) if uid in UID_dictionary else "an unknown kind of object"


def _look_up(values: np.ndarray, table: "Dataset", dataset: "Dataset") -> np.ndarray:
    """The modality or VOI LUT; values beyond its ends take the first or the last entry.

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
    """H × W, True where the stored value says that there is nothing."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, dtype=bool)
    ends = [int(dataset.PixelPaddingValue), int(dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue))]
    return (stored >= min(ends)) & (stored <= max(ends))
