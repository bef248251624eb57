"""Take a case of a request to the queue and wait for its report; what goes wrong becomes the answer's code and line."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool

from vlm.app.archived_study import ArchivedStudies, ArchivedStudy, fetched, within
from vlm.app.case_body import Case, SentImage, inputs_of, read_images
from vlm.app.failures import Failed, TooLate, named_failures
from vlm.app.served import ServedAdapters
from vlm.app.service import Busy, Draft, Job, Service
from vlm.errors import UserError
from vlm.inference.dicomweb import ArchiveError
from vlm.inference.study_images import StudyImage, check_roles
from vlm.report import Report


class Asked(NamedTuple):
    """A queued case."""

    job: Draft
    context: str
    notes: tuple[str, ...]
    """Warnings on resources that were skipped."""
    has_image: bool
    study: ArchivedStudy | None
    """The study of the archive that it is of, if it is of one."""

    def noted(self, report: Report) -> Report:
        """Return the report with these warnings before its own."""
        return replace(report, warnings=(*self.notes, *report.warnings))


async def decode_images(service: Service, sent: Sequence[SentImage]) -> list[StudyImage]:
    """Decode the files of a case; raises `HTTPException` and `UserError` for any that cannot be taken."""
    if sum(len(data) for data, _ in sent) > service.limits.upload:
        which = "image: larger" if len(sent) == 1 else "images: together larger"
        raise HTTPException(413, f"{which} than {service.limits.upload >> 20} MiB")
    check_roles([role for _, role in sent], service.engine.model.spec)  # before any is decoded
    return await read_images(service, sent)


async def ask(service: Service, case: Case, images: list[StudyImage], studies: ArchivedStudies | None = None) -> Asked:
    """Queue a case; raises `UserError` for what the adapter does not take, `Busy`, and as `ArchivedStudies.fetch`."""
    with named_failures():
        vitals, context, noted = inputs_of(case, service.engine.model.spec.schema)
    study = await fetched(studies, case.study_uid, case.store, bool(images))
    if study:
        images, noted = study.images, (*study.notes, *noted)
    prepared = await run_in_threadpool(service.prepare, images, vitals, context, case.prior_report, case.signal)
    return Asked(within(service.draft(prepared), study), context, noted, bool(prepared[0]["has_image"]), study)


async def result_of(job: Job[Any]) -> Any:
    """Await a job's result; raises what it raised, or `TooLate` at its deadline. Cancelled: the client disconnected."""
    coming = asyncio.wrap_future(job.result)
    coming.add_done_callback(lambda it: it.cancelled() or it.exception())  # retrieved even if nobody awaits it any more
    try:
        return await asyncio.wait_for(asyncio.shield(coming), job.seconds_left)
    except TimeoutError:
        raise TooLate from None
    finally:
        job.cancelled = True


@contextmanager
def http_codes(served: ServedAdapters) -> Iterator[None]:
    """Raise an `HTTPException` with the code of what goes wrong in the block."""
    try:
        yield
    except ArchiveError as error:
        raise HTTPException(error.status, str(error)) from None
    except UserError as error:
        raise HTTPException(422, str(error)) from None
    except Busy as error:
        wait = str(max(1, math.ceil(served.batch_seconds)))
        raise HTTPException(429, str(error), headers={"Retry-After": wait}) from None
    except TooLate as error:
        raise HTTPException(503, str(error)) from None
    except Failed as error:
        raise HTTPException(500, str(error)) from None
