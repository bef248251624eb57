"""Define `POST /v1/report` and its OpenAPI documentation; every refusal is one line under `detail`."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field

from vlm.app.about import Adapter
from vlm.app.archived_study import ArchivedStudies
from vlm.app.asking import ask, decode_images, http_codes, result_of
from vlm.app.bodies import Bodies
from vlm.app.case_body import BODY, read_case
from vlm.app.chat import add_chat
from vlm.app.guard import Access, Guard
from vlm.app.refusals import refusal
from vlm.app.served import Served, ServedAdapters
from vlm.app.service import Service
from vlm.inference.fhir import to_fhir
from vlm.report import NOTICE
from vlm.version import __version__


class Answer(BaseModel):
    """A drafted report, as `clinical-vlm draft --json` prints it."""

    format: int = Field(description="version of this answer; draft-1.schema.json in the documentation describes it")
    text: str
    probabilities: dict[str, float] = Field(description="label → calibrated probability, 0 to 1")
    vitals: dict[str, Any] = Field(description="the values that the model read, in the schema's units")
    warnings: list[str] = Field(description="missing or implausible inputs")
    calibration: str = Field(description="on whom the probabilities were calibrated")
    notice: str
    finished: bool = Field(description="false for a draft that was cut, which a warning says too")
    images: list[dict[str, Any]] = Field(description="images that the model read, in its order: view, prior, days")
    sections: dict[str, str] = Field(description="parts of the draft, such as findings; empty without headings")
    findings: list[dict[str, Any]] = Field(
        description="what each sentence says of a finding: finding, status, sides, sites, severities, section, "
        "sentence, text, label, probability, snomed, radlex"
    )
    label_sets: dict[str, list[str]] = Field(description="label → answers that fit: present, absent, both or none")
    coverage: float | None = Field(description="share of cases whose sets hold the truth; null without sets")
    contradictions: list[dict[str, str]] = Field(description="doubtful sentences: sentence, kind, why")
    sentences: list[dict[str, Any]] = Field(description="sentence, text, confidence, labels, vitals of each sentence")
    confidence: float | None = Field(description="probability that all sentences with a confidence are right, or null")
    withheld: str = Field(description="why no draft is given (serve --abstain); empty where one is")


class Refusal(BaseModel):
    """Why there is no report."""

    detail: str


REFUSALS = {400: "not readable as what it says it is", 401: "the server asks for its token",
            403: "asked by another web page", 404: "no such adapter or study", 408: "the body came too slowly",
            413: "too large", 415: "neither multipart nor JSON",
            422: "a wrong image, vital or field", 421: "not a name of this server",
            429: "the queue is full; see Retry-After", 502: "the archive fails", 503: "not done within the time limit",
            504: "the archive does not answer within the time limit"}  # fmt: skip


def make_api(
    service: Service,
    adapter: Adapter,
    access: Access | None = None,
    others: Sequence[Served] = (),
    studies: ArchivedStudies | None = None,
) -> FastAPI:
    """Make the routes, documented at `/openapi.json` and, without a CDN, at `/docs`.

    Requests may name one of the `others` beside the first adapter; `studies` are of an archive.
    """
    app = FastAPIOffline(
        title="clinical-vlm", version=__version__, description=NOTICE, redoc_url=None, debug=False
    )  # fmt: skip
    app.add_middleware(Guard, access=access or Access())
    bodies = app.state.bodies = Bodies(service.limits.upload * 4 // 3 + (1 << 20))
    served = ServedAdapters(Served(adapter, service), others)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        return refusal(request.url.path, error)

    @app.post(
        "/v1/report",
        summary="Draft the report of one case",
        response_model=Answer,
        responses={code: {"model": Refusal, "description": text} for code, text in REFUSALS.items()},
        openapi_extra={"requestBody": BODY},
    )
    async def report(request: Request) -> JSONResponse:
        with http_codes(served):
            served.check_room()
            async with bodies.reading(request) as counted:
                case, sent = await read_case(counted)
                chosen = served.of(case.adapter, "adapter")
                images = await decode_images(chosen.service, sent)
            asked = await ask(chosen.service, case, images, studies)
            drafted = asked.noted(await result_of(asked.job))
            if studies and asked.study and case.store:
                await studies.store(drafted, asked.study)
            if case.format == "fhir":
                about = chosen.adapter
                bundle = to_fhir(drafted, about.config.spec.schema, about.software, asked.has_image,
                                 context=asked.context, study=case.study_uid)  # fmt: skip
                return JSONResponse(bundle, media_type="application/fhir+json")
            return JSONResponse(drafted.to_dict())

    add_chat(app, served, bodies)

    @app.get("/v1/schema", summary="What the adapter reads and answers")
    async def describe(adapter: str = "") -> dict[str, Any]:
        chosen = served.of(adapter, "adapter")
        archive = {"store": studies.may_store} if studies else None
        return {**chosen.adapter.describe(), "limits": asdict(chosen.service.limits), "archive": archive}

    @app.get("/healthz", summary="Whether drafts are written, and how many wait")
    async def health() -> JSONResponse:
        state = "ok" if served.alive else "stopped"
        return JSONResponse({"status": state, "waiting": served.waiting}, 200 if served.alive else 503)

    return app
