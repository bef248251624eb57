"""DICOM files to write in tests."""

from pathlib import Path

import numpy as np
from pydicom import Dataset, FileMetaDataset, Sequence
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64  # 12 bits


CANARY = "CANARY^JANE"


def write(path: Path, pixels: np.ndarray = RAMP, bits: int = 12, syntax: str = ExplicitVRLittleEndian, **elements):
    """A small radiograph with canaries in its texts."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    dataset.PatientName = dataset.PatientID = dataset.ImageComments = dataset.InstitutionName = CANARY
    dataset.private_block(0x0099, CANARY, create=True).add_new(1, "LO", CANARY)
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def lut(first: int, values: np.ndarray, depth: int, representation: str = "US") -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else representation, [len(values) % 65536, first, depth])
    item.add_new("LUTData", "US", values.tolist())
    return Sequence([item])
