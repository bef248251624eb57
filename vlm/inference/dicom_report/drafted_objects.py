"""Make the DICOM objects of a draft, and write them to a folder."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlm.atomic import make_folder, replace_file, writing
from vlm.errors import UserError, require
from vlm.findings.labeller import Labeller
from vlm.findings.structure import findings_of_labels
from vlm.inference.dicom_report.equipment import unlogged
from vlm.inference.dicom_report.pdf_page import encapsulated_pdf
from vlm.inference.dicom_report.secondary_capture import secondary_captures
from vlm.inference.dicom_report.source_images import SourceImages
from vlm.inference.dicom_report.structured_report import Code, structured_report
from vlm.inference.fhir import Software
from vlm.inference.object_kinds import ALL_OBJECTS, OBJECTS
from vlm.report import Report

if TYPE_CHECKING:
    from pydicom import Dataset


class DraftedObjects(NamedTuple):
    """A draft as DICOM objects, each kind in a series of its own in the study of the images."""

    made: "Mapping[str, Sequence[Dataset]]"
    """Kind → its objects: `sr` a Measurement Report (TID 1500), `pdf` an Encapsulated PDF, `sc` a picture a page."""

    @classmethod
    def of(
        cls,
        report: Report,
        about: Software,
        source: SourceImages,
        codes: Mapping[str, Code],
        option: str,
        kinds: Collection[str] = OBJECTS,
    ) -> "DraftedObjects":
        """Make the objects of these kinds; `codes` are those of `label_codes`.

        Raises `UserError` that begins with the `option` that asks for them, where no object can be made of the
        headers of the images.
        """
        require_libraries(option)
        time = datetime.now()  # local, as DICOM's are that name no time zone
        images = source.datasets
        makers: dict[str, Callable[[], Sequence[Dataset]]] = {
            "sr": lambda: [structured_report(report, about, images, codes, time)],
            "pdf": lambda: [encapsulated_pdf(report, about, images, time)],
            "sc": lambda: secondary_captures(report, about, images, time),
        }
        try:
            with unlogged():
                return cls({kind: make() for kind, make in makers.items() if kind in kinds})
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # its message may quote a patient's name
            raise UserError(f"{option}: highdicom makes no object from the headers of these images "
                            f"({type(error).__name__}); write --fhir") from None  # fmt: skip

    @property
    def structured_report(self) -> "Dataset":
        """The Structured Report, where it was made."""
        return self.made["sr"][0]

    def write(self, folder: Path, kinds: Collection[str] = ALL_OBJECTS) -> list[Path]:
        """Write the objects of these kinds atomically to files named by kinds and UIDs, beside those of earlier drafts.

        Raises `UserError` where the disk is full or not writable.
        """
        whole = {f"{kind.upper()}.{one.SOPInstanceUID}.dcm": to_bytes(one)
                 for kind, objects in self.made.items() if kind in kinds for one in objects}  # fmt: skip
        with writing(folder):
            make_folder(folder)
        for name, data in whole.items():
            replace_file(folder / name, data)
        return [folder / name for name in whole]


def require_libraries(option: str) -> None:
    """Raise `UserError` that begins with `option` unless the libraries that make the objects are installed."""
    for package in ("pydicom", "highdicom", "matplotlib"):
        require(package, f"{option}: needs {package}")


def check_objects(about: Software, source: SourceImages, option: str, kinds: Collection[str] = OBJECTS) -> None:
    """Make the objects of an empty draft, so that what stands in their way is told before the wait for a draft.

    Raises `UserError` as `DraftedObjects.of` does.
    """
    DraftedObjects.of(Report("", {}), about, source, {}, option, kinds)


def label_codes(labels: Iterable[str], labeller: Labeller, given: Mapping[str, str]) -> dict[str, Code]:
    """Map labels to the SNOMED CT or RadLex code of the finding they stand for, where it has one for their words.

    `given` are the findings of labels whose names are others.
    """
    found = {}
    for label, finding in findings_of_labels(labels, labeller.names, given).items():
        words = label.replace("_", " ").lower()
        for scheme, system in (("SCT", "snomed"), ("RADLEX", "radlex")):
            if code := labeller.vocabulary.code(system, finding, words):
                found[label] = (scheme, code)
                break
    return found


def to_bytes(dataset: "Dataset") -> bytes:
    """Serialise an object as a DICOM file."""
    file = BytesIO()
    with unlogged():
        dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
