"""Read a folder of DICOM files as one case: its newest study, and the earlier studies of the same patient."""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from vlm.data.images.elements import read_elements
from vlm.data.images.file_types import file_type
from vlm.data.images.modality import HEAD
from vlm.data.study import check_days, view_name
from vlm.errors import UserError
from vlm.inference.study_images import StudyImage

MOST_FILES, MOST_DEPTH = 500, 8
"""Most files in a folder, and folders inside one another."""
RADIOGRAPHS = frozenset({"CR", "DX", "DR", "RG", "XR"})
"""Modalities of a radiograph."""
ELEMENTS = ("Modality", "PatientID", "StudyInstanceUID", "SOPInstanceUID", "StudyDate", "StudyTime", "AcquisitionTime",
            "ViewPosition")  # fmt: skip


class DicomStudy(NamedTuple):
    """The images of a folder, and what was left out."""

    images: list[StudyImage]
    """Current images first, then those of earlier studies, the latest first."""
    notes: list[str]


@dataclass
class _File:
    path: Path
    study: str
    """Hash of the study's UID."""
    patient: str
    """Hash of the patient's id, empty without one."""
    instance: str
    day: datetime | None
    """Date of the study, with its time if that is known."""
    timed: bool
    view: str


def study_from_dicom(folder: str | Path, most: int | None = None, views: Collection[str] | None = None) -> DicomStudy:
    """Read the headers of all DICOM files below a folder; their pixels are read later, as those of any file.

    `most` images are kept, those of the newest study first, and views other than `views` count as not known. No value
    of an element but a view reaches a message. Raises `UserError` for files of two patients, for studies whose order
    is not known, for a folder without a radiograph, and for one with more than 500 files.
    """
    folder = Path(folder)
    counts: Counter[str] = Counter()
    files = [file for path in _walk(folder) if (file := _read(path, counts))]
    if not files:
        others = "; ".join(f"{count} {said}" for said, count in counts.items()) or "it is empty"
        raise UserError(f"{folder}: no radiograph in DICOM there: {others}")
    patients = {file.patient for file in files} - {""}
    if len(patients) > 1:
        raise UserError(f"{folder}: files of {len(patients)} patients; give the folder of one")
    if patients and (unnamed := sum(not file.patient for file in files)):
        counts["files name no patient and are taken as of the same"] += unnamed
    once = {file.instance or str(file.path): file for file in reversed(files)}
    counts["files hold an image that another holds too"] += len(files) - len(once)
    kept = [file for file in files if file in once.values()]
    images = []
    for place, (days, study) in enumerate(_by_age(kept, folder)):
        for file in sorted(study, key=lambda file: str(file.path)):
            view = file.view if views is None or file.view in views else ""
            counts["images have a view that the adapter does not know"] += view != file.view
            images.append(StudyImage(file.path, view, place > 0, days if place else None))
    if most is not None and len(images) > most:
        counts[f"further images were left out; {most} are read, those of the newest study first"] = len(images) - most
        images = images[:most]
    return DicomStudy(images, [f"{folder}: {count} {said}" for said, count in counts.items() if count])


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in order of their names; links are not followed."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    count = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        if len(Path(parent).relative_to(folder).parts) >= MOST_DEPTH:
            folders.clear()
        for name in sorted(names):
            path, count = Path(parent) / name, count + 1
            if count > MOST_FILES:
                raise UserError(f"{folder}: more than {MOST_FILES} files; give the folder of one patient's radiographs")
            if path.is_file() and not path.is_symlink():
                yield path


def _read(path: Path, counts: Counter[str]) -> _File | None:
    """Read the header of a file; None, counted, for one that is no radiograph in DICOM."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if path.name.upper() == "DICOMDIR" or file_type(head) != "DICOM":
        counts["files are not images in DICOM and were left out"] += path.name.upper() != "DICOMDIR"
        return None
    found = read_elements(str(path), head, ELEMENTS)
    kind = found["Modality"].upper()
    if kind not in RADIOGRAPHS:
        named = kind if kind.isalpha() and len(kind) <= 4 else "unknown"
        counts[f"files are no radiographs (modality {named}) and were left out"] += 1
        return None
    try:
        view = view_name(found["ViewPosition"])
    except UserError:
        counts["images have a view position that is no word"] += 1
        view = ""
    day, timed = _moment(found["StudyDate"], found["StudyTime"] or found["AcquisitionTime"])
    study, patient, instance = (_hash(found[name]) for name in ("StudyInstanceUID", "PatientID", "SOPInstanceUID"))
    return _File(path, study, patient, instance, day, timed, view)


def _hash(text: str) -> str:
    """Hash an id, which is never kept itself; empty for none."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() if text else ""


def _moment(day: str, time: str) -> tuple[datetime | None, bool]:
    """Read a DICOM date and time; whether the time is known."""
    for form, text in (("%Y%m%d%H%M%S", day + time.split(".")[0].ljust(6, "0")), ("%Y%m%d", day)):
        try:
            return datetime.strptime(text, form), form.endswith("S") and bool(time)
        except ValueError:
            continue
    return None, False


def _by_age(files: list[_File], folder: Path) -> list[tuple[float, list[_File]]]:
    """Group files by study, the newest first, with the days from each to the newest.

    Raises `UserError` if their order is not known.
    """
    studies: dict[str, list[_File]] = {}
    for file in files:
        studies.setdefault(file.study, []).append(file)
    if len(studies) == 1:
        return [(0.0, files)]
    dated: list[tuple[datetime, list[_File]]] = []
    timed = all(file.timed for file in files)
    for study in studies.values():
        days = [file.day for file in study if file.day is not None]
        if not days or not study[0].study:
            way_out = "give the images one by one, with their roles"
            raise UserError(f"{folder}: {len(studies)} studies, one of them without its date or UID; {way_out}")
        day = min(days)
        dated.append((day if timed else day.replace(hour=0, minute=0, second=0), study))
    dated.sort(key=lambda item: item[0], reverse=True)
    newest = dated[0][0]
    if dated[1][0] == newest:
        raise UserError(f"{folder}: two studies of one time; which is the current one is not known")
    gaps = [round((newest - day).total_seconds() / 86_400, 3) for day, _ in dated]
    return [(check_days(gap, str(folder)), study) for gap, (_, study) in zip(gaps, dated, strict=True)]
