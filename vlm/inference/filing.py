"""File a draft: write it as a FHIR Bundle and as DICOM objects of its study, and store it in an archive."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vlm.atomic import replace_file
from vlm.errors import UserError
from vlm.inference.dicom_report import (
    DraftedObjects,
    SourceImages,
    check_objects,
    label_codes,
    study_day,
    study_uid,
)
from vlm.inference.dicomweb import Archive
from vlm.inference.engine import Engine
from vlm.inference.fhir import Claim, Software, to_fhir
from vlm.inference.given_images import archive_of
from vlm.inference.object_kinds import OBJECTS
from vlm.inference.study_images import StudyImage
from vlm.report import Report


class Filing(NamedTuple):
    """Where a draft goes beside the terminal; nowhere by default."""

    folder: str | None = None
    """Folder of the DICOM objects."""
    kinds: tuple[str, ...] = OBJECTS
    """Kinds of the objects in the folder."""
    archive: Archive | None = None
    fhir: str | None = None
    """File of the FHIR Bundle."""
    subject: str | None = None
    """Its reference to a patient."""
    profiles: tuple[str, ...] = ()
    """Names of the profiles that its DiagnosticReport claims."""
    effective: str | None = None
    """Day or time of the study, as FHIR writes it; None for that of a DICOM image."""

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Filing":
        """Read the options of `draft`."""
        archive = archive_of(arguments) if arguments.store else None
        kinds, profiles = tuple(arguments.dicom_objects or OBJECTS), tuple(arguments.fhir_profile)
        told = arguments.fhir, arguments.fhir_subject, profiles, arguments.fhir_effective
        return cls(arguments.dicom_out, kinds, archive, *told)

    @property
    def option(self) -> str:
        """The option that asks for DICOM objects; empty without one."""
        return "--dicom_out" if self.folder else "--store" if self.archive else ""

    @property
    def _made(self) -> set[str]:
        """Kinds to make: an archive gets the Structured Report, whatever the folder gets."""
        return {*(self.kinds if self.folder else ()), *(["sr"] if self.archive else [])}

    def source(self, images: Sequence[StudyImage], folder: Path) -> SourceImages | None:
        """Read whose study the images are, and make the objects of an empty draft; None where none are asked for.

        `folder` is that of the adapter. Raises `UserError` as `SourceImages.of` and `check_objects` do.
        """
        if not self.option:
            return None
        source = SourceImages.of(images, self.option)
        check_objects(Software.of(folder), source, self.option, self._made)
        return source

    def claim(self, images: Sequence[StudyImage]) -> Claim | None:
        """Return the claim of the Bundle, if it makes one; raises `UserError` where it would not be true."""
        if not self.profiles:
            return None
        if not images:
            raise UserError("--fhir_profile: is for the report of an image, and this case has none")
        effective = self.effective or study_day(images)
        if not effective:
            raise UserError("--fhir_profile: wants the day of the study, and the image does not tell it; give it with "
                            "--fhir_effective, such as 2024-03-01")  # fmt: skip
        return Claim(self.profiles, effective)

    def file(
        self,
        report: Report,
        engine: Engine,
        folder: Path,
        images: Sequence[StudyImage],
        context: str,
        source: SourceImages | None,
    ) -> None:
        """Write the Bundle, write and store the DICOM objects, and say on stderr what went where.

        `folder` is that of the adapter, `source` what the method of this name returned. Raises `UserError` for a full
        disk, and as `claim` and `Archive.store` do.
        """
        if not (self.fhir or source):
            return
        about = Software.of(folder)
        if self.fhir:
            schema, study, claim = engine.model.spec.schema, study_uid(images), self.claim(images)
            bundle = to_fhir(
                report, schema, about, bool(images), self.subject, context=context, study=study, claim=claim
            )
            replace_file(Path(self.fhir), json.dumps(bundle, indent=2, ensure_ascii=False) + "\n")
        if source:
            self._file_objects(report, engine, about, source)

    def _file_objects(self, report: Report, engine: Engine, about: Software, source: SourceImages) -> None:
        spec = engine.model.spec
        codes = label_codes(spec.labels, engine.labeller, spec.label_findings)
        made = DraftedObjects.of(report, about, source, codes, self.option, self._made)
        for file in made.write(Path(self.folder), self.kinds) if self.folder else ():
            print(f"{file}: written", file=sys.stderr)
        if self.archive:
            self.archive.store(made.structured_report)
            print(f"{self.archive.address}: the draft is stored as a Structured Report, unverified", file=sys.stderr)


NOWHERE = Filing()
