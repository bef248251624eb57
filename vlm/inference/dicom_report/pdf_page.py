"""Print a draft as a PDF with selectable text, and encapsulate it as a DICOM object."""

import textwrap
from collections.abc import Iterator, Sequence
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any

from vlm.errors import require
from vlm.inference.dicom_report.equipment import equipment, stamp
from vlm.inference.fhir import Software
from vlm.plain import printable
from vlm.report import NOTICE, Report

if TYPE_CHECKING:
    from highdicom import SOPClass
    from pydicom import Dataset

COLUMNS, ROWS = 84, 64
"""Characters of a line, and lines of a page."""
MOST_PAGES = 40
A4 = 8.27, 11.69
"""Width and height of a page, inches."""
TITLE = "Draft of a report"
WHOSE = {
    "study_instance_uid": "StudyInstanceUID", "patient_id": "PatientID", "patient_name": "PatientName",
    "patient_birth_date": "PatientBirthDate", "patient_sex": "PatientSex", "study_id": "StudyID",
    "study_date": "StudyDate", "study_time": "StudyTime", "accession_number": "AccessionNumber",
    "referring_physician_name": "ReferringPhysicianName",
}  # fmt: skip
"""Argument of `highdicom.SOPClass` → element of an image."""
FONT = "DejaVu Sans Mono"
"""Comes with Matplotlib; it has Latin, Greek and Cyrillic letters."""


def encapsulated_pdf(report: Report, about: Software, images: "Sequence[Dataset]", time: datetime) -> "SOPClass":
    """Make the Encapsulated PDF of a draft (PS3.3 A.45.1); `images` are those of `SourceImages`."""
    from highdicom import SOPClass
    from highdicom.sr import CodedConcept
    from pydicom import Dataset
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
    document.SourceInstanceSequence = []
    for image in images:
        source = Dataset()
        source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        document.SourceInstanceSequence.append(source)
    data = draw_pdf(page_text(report, about))
    document.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document.EncapsulatedDocument = data + b"\0" * (len(data) % 2)  # a value has an even length
    document.EncapsulatedDocumentLength = len(data)
    return document


def page_text(report: Report, about: Software) -> str:
    """Format what the page says: as in a terminal, and which software wrote it."""
    software = f"clinical-vlm {about.version}, adapter {about.adapter[:16]}, base model {about.base}"
    return f"{NOTICE}\n\n{report}\n\nNot verified. Written by {software}."


def draw_pdf(text: str) -> bytes:
    """Print a text on pages of A4, the notice at the foot of each; a character without a glyph becomes `?`."""
    require("matplotlib", "the PDF of a draft needs matplotlib")
    from matplotlib import rc_context
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont(FONT)).get_charmap()
    lines = list(_lines("".join(x if x == "\n" or ord(x) in known else "?" for x in printable(text))))
    pages = [lines[start : start + ROWS] for start in range(0, len(lines), ROWS)][:MOST_PAGES]
    file = BytesIO()
    with rc_context({"pdf.fonttype": 42}), PdfPages(file, metadata={"Title": TITLE, "Creator": "clinical-vlm"}) as pdf:
        for number, page in enumerate(pages, 1):
            figure = Figure(figsize=A4)
            style: dict[str, Any] = {"family": FONT, "fontsize": 9, "parse_math": False}  # a `$` is no formula
            figure.text(0.07, 0.96, "\n".join(page), va="top", linespacing=1.25, **style)
            figure.text(0.07, 0.03, f"{NOTICE} Page {number} of {len(pages)}", **style)
            pdf.savefig(figure)
    return file.getvalue()


def _lines(text: str) -> Iterator[str]:
    for paragraph in text.replace("\t", " ").split("\n"):
        yield from textwrap.wrap(paragraph, COLUMNS, replace_whitespace=False, drop_whitespace=False) or [""]
