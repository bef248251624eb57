"""Name the software in DICOM objects, and keep libraries from logging a patient's name."""

import logging
import warnings
from collections.abc import Iterator
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


def equipment(about: Software) -> dict[str, Any]:
    """Return the arguments of `highdicom.SOPClass` that name the software."""
    return {
        "manufacturer": "clinical-vlm",
        "manufacturer_model_name": "clinical-vlm",
        "software_versions": about.version,
        "device_serial_number": about.adapter[:64],
        "series_description": SERIES,
    }


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
