"""Radiographs of a named study, and what a Structured Report says."""

from pathlib import Path
from typing import Any

import pytest
from highdicom.sr import EnhancedSR
from pydicom import dcmread
from pydicom.uid import generate_uid

from tests.dicom_files import CANARY, write
from vlm.report import NOTICE

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


def check_stored(stored: EnhancedSR, shown: dict, image: Path) -> None:
    """Compare a report that came back from an archive with the draft that was shown."""
    source = dcmread(image)
    assert (stored.CompletionFlag, stored.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    assert (stored.StudyInstanceUID, stored.PatientID, str(stored.PatientName)) == (
        source.StudyInstanceUID, source.PatientID, str(source.PatientName))  # fmt: skip
    assert texts(stored)[0] == ("Comment", NOTICE)
    assert not shown["text"].strip() or texts(stored)[1] == ("Finding", shown["text"].strip())
    found = groups(stored)
    for label, value in shown["probabilities"].items():
        assert found[f"label {label}"]["Probability"].value == pytest.approx(value, abs=1e-6)
    assert [item[2] for item in stored.get_evidence()] == [source.SOPInstanceUID]
