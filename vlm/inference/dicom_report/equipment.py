"""Name the software and the images in DICOM objects, and keep libraries from logging a patient's name."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vlm.inference.fhir import Software

if TYPE_CHECKING:
    from pydicom import Dataset

SERIES = "Draft by software, not a diagnosis"
"""Description of the series of a draft."""
SPEAKERS = ("highdicom", "pydicom", "dicomweb_client", "retrying", "urllib3")
"""Libraries whose messages quote what must not be logged."""

WHOSE = {
    "study_instance_uid": "StudyInstanceUID", "patient_id": "PatientID", "patient_name": "PatientName",
    "patient_birth_date": "PatientBirthDate", "patient_sex": "PatientSex", "study_id": "StudyID",
    "study_date": "StudyDate", "study_time": "StudyTime", "accession_number": "AccessionNumber",
    "referring_physician_name": "ReferringPhysicianName",
}  # fmt: skip
"""Argument of `highdicom.SOPClass` → element of an image."""


def equipment(about: Software) -> dict[str, Any]:
    """Return the arguments of `highdicom.SOPClass` that name the software."""
    return {
        "manufacturer": "clinical-vlm",
        "manufacturer_model_name": "clinical-vlm",
        "software_versions": about.version,
        "device_serial_number": about.adapter[:64],
        "series_description": SERIES,
    }


def refer_to(images: "Sequence[Dataset]") -> "list[Dataset]":
    """Return the items of a sequence that refers to images."""
    from pydicom import Dataset

    items = []
    for image in images:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        items.append(item)
    return items


def stamp(document: "Dataset", time: datetime) -> None:
    """Set the time of the content of an object, and UTF-8 as the encoding of its texts."""
    document.ContentDate, document.ContentTime = time.strftime("%Y%m%d"), time.strftime("%H%M%S")
    document.SpecificCharacterSet = "ISO_IR 192"


@contextmanager
def unlogged() -> Iterator[None]:
    """Silence the libraries within the block: they quote names of patients, addresses and the words of servers."""
    loggers = [logging.getLogger(name) for name in SPEAKERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
