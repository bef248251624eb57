"""File a draft with its study: write its DICOM objects to a folder, and store its Structured Report in an archive."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlm.inference.dicom_report import DraftedObjects, SourceImages, check_objects, label_codes
from vlm.inference.dicomweb import Archive
from vlm.inference.engine import Engine
from vlm.inference.fhir import Software
from vlm.inference.given_images import archive_of
from vlm.inference.object_kinds import OBJECTS
from vlm.inference.study_images import StudyImage
from vlm.report import Report


class Filing(NamedTuple):
    """Where a draft goes as DICOM objects; nowhere by default."""

    folder: str | None = None
    kinds: tuple[str, ...] = OBJECTS
    """Kinds of the objects in the folder."""
    archive: Archive | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Filing":
        """Read the options of `draft`."""
        archive = archive_of(arguments) if arguments.store else None
        return cls(arguments.dicom_out, tuple(arguments.dicom_objects or OBJECTS), archive)

    @property
    def option(self) -> str:
        """The option that asks for DICOM objects; empty without one."""
        return "--dicom_out" if self.folder else "--store" if self.archive else ""

    @property
    def _made(self) -> set[str]:
        """Kinds to make: an archive gets the Structured Report, whatever the folder gets."""
        return {*(self.kinds if self.folder else ()), *(["sr"] if self.archive else [])}

    def source(self, images: Sequence[StudyImage], about: Software) -> SourceImages | None:
        """Read whose study the images are, and make the objects of an empty draft; None where none are asked for.

        Raises `UserError` as `SourceImages.of` and `check_objects` do.
        """
        if not self.option:
            return None
        source = SourceImages.of(images, self.option)
        check_objects(about, source, self.option, self._made)
        return source

    def file(self, report: Report, engine: Engine, about: Software, source: SourceImages) -> None:
        """Write and store the draft, and say so on stderr.

        Raises `UserError` for a full disk, and as `Archive.store` does.
        """
        spec = engine.model.spec
        codes = label_codes(spec.labels, engine.labeller, spec.label_findings)
        made = DraftedObjects.of(report, about, source, codes, self.option, self._made)
        for file in made.write(Path(self.folder), self.kinds) if self.folder else ():
            print(f"{file}: written", file=sys.stderr)
        if self.archive:
            self.archive.store(made.structured_report)
            print(f"{self.archive.address}: the draft is stored as a Structured Report, unverified", file=sys.stderr)


NOWHERE = Filing()
