"""Radiographs of a named study, and what a Structured Report says."""

from pathlib import Path
from typing import Any

from pydicom.uid import generate_uid

from tests.dicom_files import CANARY, write

WHOSE = {"PatientID": "MRN-77", "PatientName": "CANARY^JÜRGEN", "PatientBirthDate": "19600101", "PatientSex": "M",
         "AccessionNumber": "A-1", "StudyID": "S-1", "StudyTime": "101112", "SpecificCharacterSet": "ISO_IR 100",
         "ReferringPhysicianName": CANARY}  # fmt: skip


def radiograph(path: Path, study: str = "1.2.3.4", day: str = "20240301", **elements: Any) -> Path:
    """A radiograph with all that identifies it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {"Modality": "DX", "StudyInstanceUID": study, "SeriesInstanceUID": generate_uid(), "StudyDate": day}
    return write(path, **{**WHOSE, **named, **elements})


def texts(report: Any) -> list[tuple[str, str]]:
    """(Name, text) of the items that speak of the study as a whole."""
    (container,) = [x for x in report.content[0].ContentSequence if x.name.meaning == "Qualitative Evaluations"]
    return [(item.name.meaning, item.value) for item in container.ContentSequence]


def groups(report: Any) -> dict[str, Any]:
    """Tracking identifier → items of its group, by their names."""
    (container,) = [x for x in report.content[0].ContentSequence if x.name.meaning == "Imaging Measurements"]
    found = {}
    for group in container.ContentSequence:
        items = {item.name.meaning: item for item in group.ContentSequence}
        found[items["Tracking Identifier"].value] = items
    return found
