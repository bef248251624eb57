"""Read whose study the images of a case are: what a DICOM object about them must repeat, and nothing more.

The headers are untrusted. Identifying values go into the objects alone, never into a message.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlm.data.images.elements import read_elements
from vlm.data.images.file_types import file_type
from vlm.data.images.modality import HEAD
from vlm.errors import UserError
from vlm.inference.study_images import StudyImage
from vlm.plain import is_clean

if TYPE_CHECKING:
    from pydicom import Dataset

REFERENCE = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
"""Elements by which an image is referred to; each must be a valid UID."""
WHOSE = ("PatientID", "IssuerOfPatientID", "PatientName")
"""Elements that say whose study it is: copied as they are, or the case is refused."""
OF_STUDY = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
            "ReferringPhysicianName")  # fmt: skip
"""Elements that stay empty, with a note, where they are not valid."""


class SourceImages(NamedTuple):
    """Identity of the images of a case."""

    datasets: "list[Dataset]"
    """Patient, study and reference of each image in UTF-8, without pixels; a current image first."""
    notes: tuple[str, ...]
    """Warnings on elements that were left empty."""

    @classmethod
    def of(cls, images: Sequence[StudyImage], option: str) -> "SourceImages":
        """Read the headers of the images of a case.

        Raises `UserError` that begins with the `option` that asks for it: for a case without a current image, one that
        is no DICOM file, that names no study, or is of another patient or current study than the first.
        """
        current = [item for item in images if not item.prior]
        if not current:
            raise UserError(f"{option}: is filed with the study of a DICOM image, and this case has no current image; "
                            "give one with --image, or write --fhir")  # fmt: skip
        read = [_read(item, option) for item in (*current, *(item for item in images if item.prior))]
        datasets = [dataset for dataset, _ in read]
        first = datasets[0]
        if len({str(one.StudyInstanceUID) for one in datasets[: len(current)]}) > 1:
            raise UserError(f"{option}: the current images are of several studies; draft each study by itself")
        if any((one.PatientID, one.PatientName) != (first.PatientID, first.PatientName) for one in datasets):
            raise UserError(f"{option}: the images are of several patients, or name one in several ways")
        return cls(datasets, tuple(dict.fromkeys(note for _, notes in read for note in notes)))


def study_uid(images: Sequence[StudyImage]) -> str:
    """Return the Study Instance UID of the current images; empty if one is no DICOM file or they are of several."""
    uid = _shared(images, "StudyInstanceUID")
    return uid if uid and _is_valid("UI", uid) else ""  # without an image no library is needed


def study_day(images: Sequence[StudyImage]) -> str:
    """Return the day of the study of the current images, such as 2024-03-01; empty where it is not known."""
    try:
        return datetime.strptime(_shared(images, "StudyDate"), "%Y%m%d").strftime("%Y-%m-%d")
    except ValueError:
        return ""


def _shared(images: Sequence[StudyImage], element: str) -> str:
    """Return the value that all current images have; empty if one is no DICOM file or they differ."""
    found = set()
    for item in images:
        if item.prior:
            continue
        head = _head(item)
        if file_type(head) != "DICOM":
            return ""
        found.add(read_elements(str(item.image), head, [element])[element])
    return found.pop() if len(found) == 1 else ""


def _head(item: StudyImage) -> bytes:
    """Read the beginning of an image's file; nothing of a picture that is no file."""
    if not isinstance(item.image, str | Path):
        return b""
    with Path(item.image).open("rb") as file:
        return file.read(HEAD)


def _read(item: StudyImage, option: str) -> "tuple[Dataset, list[str]]":
    """Copy the elements of an image; returns notes on those that were left empty as well."""
    where, head = str(item.image), _head(item)
    if file_type(head) != "DICOM":
        raise UserError(f"{option}: {where}: is no DICOM file, so that there is no study to file the draft with; give "
                        "the DICOM file, or write --fhir")  # fmt: skip
    from pydicom import Dataset
    from pydicom.datadict import dictionary_VR

    found = read_elements(where, head, [*REFERENCE, *WHOSE, *OF_STUDY])
    dataset, notes = Dataset(), []
    for name, value in found.items():
        if _is_valid(dictionary_VR(name), value) and (value or name not in REFERENCE):
            setattr(dataset, name, value)
        elif name in OF_STUDY:
            setattr(dataset, name, "")
            notes.append(f"{name} of the image is not valid in DICOM and is left empty in the draft's objects")
        else:
            said = "is not valid in DICOM" if value else "is missing"
            raise UserError(f"{option}: {where}: its {name} {said}; the draft cannot be filed with its study")
    if not dataset.IssuerOfPatientID:
        del dataset.IssuerOfPatientID
    if dataset.PatientSex not in ("", "M", "F", "O"):
        dataset.PatientSex = ""
        notes.append("PatientSex of the image is not valid in DICOM and is left empty in the draft's objects")
    return dataset, notes


def _is_valid(vr: str, value: str) -> bool:
    """Check a single value as DICOM does, and that it holds no control character."""
    from pydicom import config
    from pydicom.valuerep import validate_value

    if "\\" in value or "\ufffd" in value or not is_clean(value):
        return False
    try:
        validate_value(vr, value, config.RAISE)
    except ValueError:
        return False
    return True
