"""Picture the pages of a draft as Secondary Captures, for viewers that show images alone."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from vlm.inference.dicom_report.drawn_page import draw_pictures, page_text
from vlm.inference.dicom_report.equipment import WHOSE, equipment, refer_to, stamp
from vlm.inference.fhir import Software
from vlm.report import Report

if TYPE_CHECKING:
    from highdicom.sc import SCImage
    from pydicom import Dataset


def secondary_captures(report: Report, about: Software, images: "Sequence[Dataset]", time: datetime) -> "list[SCImage]":
    """Make one Secondary Capture a page (PS3.3 A.8.1), all in a series; `images` are those of `SourceImages`."""
    from pydicom.uid import generate_uid

    series = generate_uid(prefix=None)
    return [_capture(page, number, series, about, images, time)
            for number, page in enumerate(draw_pictures(page_text(report, about)), 1)]  # fmt: skip


def _capture(
    page: np.ndarray, number: int, series: str, about: Software, images: "Sequence[Dataset]", time: datetime
) -> "SCImage":
    """Make the object of a page, H × W, uint8."""
    from highdicom.sc import SCImage
    from pydicom.uid import generate_uid

    capture = SCImage(
        pixel_array=page,
        photometric_interpretation="MONOCHROME2",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        series_instance_uid=series,
        series_number=1,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=number,
        **{argument: images[0].get(name) for argument, name in WHOSE.items()},
        **equipment(about),
    )
    stamp(capture, time)
    capture.copy_patient_and_study_information(images[0])
    capture.PatientOrientation = None  # type: ignore[assignment]  # highdicom asks for one; a page of text has none
    capture.ConversionType = "WSD"  # made on a workstation
    capture.BurnedInAnnotation = "YES"  # it names nobody, but a draft may say anything: de-identify by eye
    capture.SourceImageSequence = refer_to(images)
    return capture
