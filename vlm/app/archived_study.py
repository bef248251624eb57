"""Fetch studies of the operator's archive, one request at a time, and store drafts there if the operator allows it.

A client names a study by its UID, never an address. A study lies in the service's private folder until it is read.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from vlm.app.case_body import SentImage, read_images, role_of
from vlm.app.failures import Failed, TooLate, named_failures, report_failure
from vlm.app.service import Busy, Draft, Service
from vlm.data.images.image import read_file
from vlm.errors import UserError
from vlm.inference.dicom_folder import study_from_dicom
from vlm.inference.dicom_report import DraftedObjects, SourceImages, check_objects, label_codes
from vlm.inference.dicomweb import Archive, ArchiveError, is_uid
from vlm.inference.dicomweb.archive import MOST_SECONDS
from vlm.inference.fhir import Software
from vlm.inference.study_images import StudyImage
from vlm.report import Report

NAME = "the archive"
"""What messages call it: its address is the operator's business."""
KINDS = ("sr",)
"""What is stored of a draft."""


class ArchivedStudy(NamedTuple):
    """A study that was fetched for one draft."""

    uid: str
    images: list[StudyImage]
    """Its radiographs as the model sees them."""
    notes: tuple[str, ...]
    """Warnings on what was left out."""
    deadline: float
    """Time by `time.monotonic` when draft and storing must be done."""
    source: SourceImages | None
    """Whose study it is, where the draft is to be stored."""


class ArchivedStudies:
    """The archive of one server."""

    def __init__(self, archive: Archive, service: Service, software: Software, may_store: bool = False) -> None:
        self.service, self.software, self.may_store = service, software, may_store
        self._address = archive.address
        self._turn = asyncio.Lock()
        self._asked = 0
        """Requests that wait for a study, or fetch it."""

    async def fetch(self, uid: str, store: bool = False) -> ArchivedStudy:
        """Fetch a study and read its radiographs; with `store` its draft can be stored afterwards.

        Raises `UserError` for a study that cannot be drafted or stored, `ArchiveError` as `Archive.fetch` does, `Busy`
        where as many requests wait for the archive as the queue takes, and `TooLate`.
        """
        if store and not self.may_store:
            raise UserError("store: this server stores nothing; it was started without --store")
        if not is_uid(uid):
            raise UserError("study_uid: is no DICOM UID, such as 1.2.840.113619.2")
        self.service.check_room()
        if self._asked >= self.service.limits.waiting:
            raise Busy(f"{self._asked} requests wait for the archive already; try again in a moment")
        deadline = time.monotonic() + self.service.limits.seconds
        self._asked += 1
        try:
            files, notes, source = await self._alone(deadline, partial(self._fetch, uid, store, deadline))
        finally:
            self._asked -= 1
        return ArchivedStudy(uid, await read_images(self.service, files), notes, deadline, source)

    async def store(self, report: Report, study: ArchivedStudy) -> None:
        """Store a draft in its study as a Structured Report, unverified; raises as `Archive.store`, and `TooLate`."""
        await self._alone(study.deadline, partial(self._store, report, study))

    async def _alone(self, deadline: float, work: Callable[[], Any]) -> Any:
        """Run work in a thread while no other request asks the archive."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._turn.acquire()
        except TimeoutError:
            raise TooLate from None
        try:
            with named_failures():
                return await anyio.to_thread.run_sync(work)
        finally:
            self._turn.release()

    def _archive(self, deadline: float) -> Archive:
        return Archive(self._address, min(max(deadline - time.monotonic(), 0), MOST_SECONDS), NAME)

    def _fetch(
        self, uid: str, store: bool, deadline: float
    ) -> tuple[list[SentImage], tuple[str, ...], SourceImages | None]:
        spec = self.service.engine.model.spec
        with tempfile.TemporaryDirectory(dir=self.service.folder, ignore_cleanup_errors=True) as folder:
            try:
                self._archive(deadline).fetch(uid, Path(folder))
            except UserError as error:
                if isinstance(error, ArchiveError):
                    raise
                report_failure(error)  # such as a full disk: no fault of the archive or the client
                raise Failed from None
            with _unnamed(folder):
                found = study_from_dicom(folder, spec.study_images, spec.study.views if spec.study else ())
                source = SourceImages.of(found.images, "store") if store else None
                if source:
                    check_objects(self.software, source, "store", KINDS)
                files = self._read(found.images)
            notes = [note.replace(folder, "the study") for note in found.notes]
            return files, (*notes, *(source.notes if source else ())), source

    def _read(self, images: list[StudyImage]) -> list[SentImage]:
        paths = [Path(str(image.image)) for image in images]
        if sum(path.stat().st_size for path in paths) > (most := self.service.limits.upload):
            raise UserError(f"study_uid: its images are larger than {most >> 20} MiB, the --max_upload of this server")
        return [(read_file(path), role_of(image.view)) for path, image in zip(paths, images, strict=True)]

    def _store(self, report: Report, study: ArchivedStudy) -> None:
        assert study.source is not None
        engine, spec = self.service.engine, self.service.engine.model.spec
        codes = label_codes(spec.labels, engine.labeller, spec.label_findings)
        made = DraftedObjects.of(report, self.software, study.source, codes, "store", KINDS)
        self._archive(study.deadline).store(made.structured_report)


async def fetched(studies: ArchivedStudies | None, uid: str, store: bool, has_images: bool) -> ArchivedStudy | None:
    """Fetch the study that a client names, if it names one; raises `UserError`, and as `ArchivedStudies.fetch` does."""
    if not uid:
        if store:
            raise UserError("store: stores the draft of a study in the archive; name it with study_uid")
        return None
    if studies is None:
        raise UserError("study_uid: this server has no archive; it was started without --dicomweb")
    if has_images:
        raise UserError("study_uid: brings its own images; leave the others away")
    return await studies.fetch(uid, store)


def within(job: Draft, study: ArchivedStudy | None) -> Draft:
    """Let the time of a draft have begun when its study was asked for."""
    if study:
        job.deadline = study.deadline
    return job


@contextmanager
def _unnamed(folder: str) -> Iterator[None]:
    """Take the name of a folder of ours out of the errors within the block."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error.args[0]).replace(folder, "study_uid")) from None
