"""Encapsulate the page of a draft, a PDF with selectable text, as a DICOM object."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from vlm.inference.dicom_report.drawn_page import TITLE, draw_pdf, page_text
from vlm.inference.dicom_report.equipment import WHOSE, equipment, refer_to, stamp
from vlm.inference.fhir import Software
from vlm.report import Report

if TYPE_CHECKING:
    from highdicom import SOPClass
    from pydicom import Dataset


def encapsulated_pdf(report: Report, about: Software, images: "Sequence[Dataset]", time: datetime) -> "SOPClass":
    """Make the Encapsulated PDF of a draft (PS3.3 A.45.1); `images` are those of `SourceImages`."""
    from highdicom import SOPClass
    from highdicom.sr import CodedConcept
    from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian, generate_uid

    document = SOPClass(
        series_instance_uid=generate_uid(prefix=None),
        series_number=1,
        sop_instance_uid=generate_uid(prefix=None),
        sop_class_uid=EncapsulatedPDFStorage,
        instance_number=1,
        modality="DOC",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **{argument: images[0].get(name) for argument, name in WHOSE.items()},
        **equipment(about),
    )
    stamp(document, time)
    document.copy_patient_and_study_information(images[0])
    document.ConversionType = "WSD"  # made on a workstation
    document.BurnedInAnnotation = "NO"  # the page names nobody
    document.VerificationFlag = "UNVERIFIED"
    document.AcquisitionDateTime = None
    document.DocumentTitle = TITLE
    document.ConceptNameCodeSequence = [CodedConcept("18748-4", "LN", "Diagnostic Imaging Report")]
    document.SourceInstanceSequence = refer_to(images)
    data = draw_pdf(page_text(report, about))
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.EncapsulatedDocument = data + b"\0" * (len(data) % 2)  # a value has an even length
    document.EncapsulatedDocumentLength = len(data)
    return document
