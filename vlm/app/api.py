"""Define `POST /v1/report` and its OpenAPI documentation; every refusal is one line under `detail`."""

import asyncio
import base64
import binascii
import math
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from vlm.app.about import Adapter
from vlm.app.bodies import Bodies, form_of, is_encodable, read_json
from vlm.app.failures import Failed, TooLate, named_failures
from vlm.app.guard import Access, Guard
from vlm.app.service import Busy, Job, Service
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.series import MOST_POINTS
from vlm.errors import UserError
from vlm.inference.fhir import context_of, from_fhir, to_fhir
from vlm.plain import printable
from vlm.report import NOTICE
from vlm.version import __version__

LONGEST_VALUE, LONGEST_SERIES = 200, 100_000
LONGEST_DETAIL = 400
Format = Literal["report", "fhir"]
"""Format of the answer: our own, or a FHIR Bundle."""


def _check_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are no value of a vital; give a number or a text")
    if isinstance(value, list) and value and len(value) <= MOST_POINTS and all(map(_is_point, value)):
        return value
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"give a number or a text, or a series of at most {MOST_POINTS:,} pairs of time and value")
    longest = LONGEST_SERIES if isinstance(value, str) and "@" in value else LONGEST_VALUE
    if isinstance(value, str) and len(value) > longest:
        raise ValueError(f"longer than {longest:,} characters")
    return value


def _is_point(pair: Any) -> bool:
    """Check for a time and a value, each a short text, a number or null."""
    kinds = (str, int, float, type(None))
    return isinstance(pair, list) and len(pair) == 2 and all(type(part) in kinds for part in pair) and all(
        len(part) <= LONGEST_VALUE for part in pair if isinstance(part, str))  # fmt: skip


Value = Annotated[str | int | float | list[list[str | int | float | None]] | None, BeforeValidator(_check_value)]


class Case(BaseModel):
    """One case. A missing image or vital is a known case, not an error."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = Field(None, description="PNG, JPEG, TIFF, BMP, WebP or DICOM file in base64")
    vitals: dict[Annotated[str, Field(max_length=LONGEST_VALUE)], Value] = Field(
        default_factory=dict,
        description='values by name, such as {"glucose": 8.7, "bp": "145/90"}; of a vital over time also '
        '[["-48 h", 9.1], [0, 11.2]], and the time of the study as study_time',
    )
    observations: dict[str, Any] | list[Any] | None = Field(
        None, description="in place of vitals: FHIR Observations of one patient, as a Bundle or a list; the reason of "
        "a ServiceRequest in it is the context, if none is given"
    )  # fmt: skip
    context: str = Field("", description="the indication, or other text to show in the prompt")
    signal: list[Any] | None = Field(
        None, description="signal such as an ECG: a list of numbers for each channel, null at a gap"
    )
    format: Format = Field("report", description="form of the answer: ours, or a FHIR Bundle")


class Answer(BaseModel):
    """A drafted report, as `clinical-vlm draft --json` prints it."""

    text: str
    probabilities: dict[str, float] = Field(description="label → calibrated probability, 0 to 1")
    vitals: dict[str, Any] = Field(description="the values that the model read, in the schema's units")
    warnings: list[str] = Field(description="missing or implausible inputs")
    calibration: str = Field(description="on whom the probabilities were calibrated")
    notice: str
    finished: bool = Field(description="false for a draft that was cut, which a warning says too")
    sections: dict[str, str] = Field(description="parts of the draft, such as findings; empty without headings")


class Refusal(BaseModel):
    """Why there is no report."""

    detail: str


REFUSALS = {400: "not readable as what it says it is", 401: "the server asks for its token",
            403: "asked by another web page", 408: "the body came too slowly",
            413: "too large", 415: "neither multipart nor JSON",
            422: "a wrong image, vital or field", 421: "not a name of this server",
            429: "the queue is full; see Retry-After", 503: "not done within the time limit"}  # fmt: skip
_FORM = {"type": "object", "additionalProperties": {"type": "string", "description": "a vital under its own name"},
         "properties": {"image": {"type": "string", "format": "binary"},
                        "vitals": {"type": "string", "description": "JSON object of names and values"},
                        "observations": {"type": "string", "description": "FHIR Observations as JSON"},
                        "context": {"type": "string"}, "signal": {"type": "string", "description": "lists as JSON"},
                        "format": {"type": "string"}}}  # fmt: skip
_BODY = {"required": True, "content": {"multipart/form-data": {"schema": _FORM},
                                       "application/json": {"schema": Case.model_json_schema()}}}  # fmt: skip


def make_api(service: Service, adapter: Adapter, access: Access | None = None) -> FastAPI:
    """Make the routes, documented at `/openapi.json` and, without a CDN, at `/docs`."""
    app = FastAPIOffline(
        title="clinical-vlm", version=__version__, description=NOTICE, redoc_url=None, debug=False
    )  # fmt: skip
    app.add_middleware(Guard, access=access or Access())
    bodies = app.state.bodies = Bodies(service.limits.upload * 4 // 3 + (1 << 20))
    schema = adapter.config.spec.schema

    @app.exception_handler(HTTPException)
    async def refuse(_: Request, error: HTTPException) -> JSONResponse:
        """Answer with one line, whatever names and values a client has put into it."""
        line = printable(" ".join(str(error.detail)[: 10 * LONGEST_DETAIL].split()))[:LONGEST_DETAIL]
        return JSONResponse({"detail": line}, error.status_code, error.headers)

    @app.post(
        "/v1/report",
        summary="Draft the report of one case",
        response_model=Answer,
        responses={code: {"model": Refusal, "description": text} for code, text in REFUSALS.items()},
        openapi_extra={"requestBody": _BODY},
    )
    async def report(request: Request) -> JSONResponse:
        try:
            service.check_room()
            async with bodies.reading(request) as counted:
                case, picture = await _read(counted)
            with named_failures():
                vitals, context, noted = _inputs_of(case, schema)
            prepared = await run_in_threadpool(service.prepare, picture, vitals, context, case.signal)
            drafted = await result_of(service.draft(prepared))
            drafted = replace(drafted, warnings=(*noted, *drafted.warnings))
            if case.format == "fhir":
                shown = bool(prepared[0]["has_image"])
                bundle = to_fhir(drafted, schema, adapter.software, shown, context=context)
                return JSONResponse(bundle, media_type="application/fhir+json")
            return JSONResponse(drafted.to_dict())
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        except Busy as error:
            wait = str(max(1, math.ceil(service.batch_seconds)))
            raise HTTPException(429, str(error), headers={"Retry-After": wait}) from None
        except TooLate as error:
            raise HTTPException(503, str(error)) from None
        except Failed as error:
            raise HTTPException(500, str(error)) from None

    async def _read(request: Request) -> tuple[Case, np.ndarray | None]:
        case, image = await read_case(request)
        if image is not None and len(image) > service.limits.upload:
            raise HTTPException(413, f"image: larger than {service.limits.upload >> 20} MiB")
        return case, await service.read_image(image) if image is not None else None

    @app.get("/v1/schema", summary="What the adapter reads and answers")
    async def describe() -> dict[str, Any]:
        return {**adapter.describe(), "limits": asdict(service.limits)}

    @app.get("/healthz", summary="Whether drafts are written, and how many wait")
    async def health() -> JSONResponse:
        state = "ok" if service.alive else "stopped"
        return JSONResponse({"status": state, "waiting": service.waiting}, 200 if service.alive else 503)

    return app


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


# -------------------------------------------------------------------------------------------- reading


async def read_case(request: Request) -> tuple[Case, bytes | None]:
    """Read the case and the bytes of its image; raises `HTTPException` with one line for what cannot be read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await run_in_threadpool(_read_json_case, await request.body())
    if kind == "multipart/form-data":
        async with form_of(request, files=1, fields=500, largest=1 << 18) as form:
            return await _read_form(form)
    raise HTTPException(415, f"send multipart/form-data or application/json, not {kind[:80] or 'an untyped body'}")


def _read_json_case(body: bytes) -> tuple[Case, bytes | None]:
    values = _json("body", body)
    image = values.get("image") if isinstance(values, dict) else None
    if isinstance(image, str):
        values["image"] = ""  # the largest part is not copied again
    case = _validated(values)
    return case, _from_base64(image) if isinstance(image, str) else None


def _json(name: str, text: bytes | str) -> Any:
    try:
        return read_json(text)
    except ValueError as error:
        message = str(error) if name == "body" else str(error).replace("Invalid JSON", "not valid JSON")
        raise HTTPException(400, f"{name}: {message}") from None


def _validated(values: Any) -> Case:
    try:
        return Case.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ": ".join(str(part)[:80] for part in first["loc"][:2])
        raise HTTPException(422, f"{where or 'body'}: {first['msg'].removeprefix('Value error, ')}") from None


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(400, "image: not valid base64") from None


def _inputs_of(case: Case, schema: VitalsSchema) -> tuple[dict[str, Any], str, tuple[str, ...]]:
    """Return a case's vitals by name, its context, and warnings on skipped resources.

    Raises `UserError` as `from_fhir` and `context_of` do.
    """
    if case.observations is None:
        return case.vitals, case.context, ()
    if case.vitals:
        raise UserError("observations: stand in place of vitals; give one of them")
    vitals, noted = from_fhir(case.observations, schema, "observations")
    context, more = context_of(case.observations, "observations", case.context)
    return vitals, context, (*noted, *more)


async def _read_form(form: FormData) -> tuple[Case, bytes | None]:
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise HTTPException(422, f"{name}: given twice")
        if isinstance(value, UploadFile) != (name == "image"):
            raise HTTPException(422, f"{name}: {'send it as a file' if name == 'image' else 'is no file field'}")
        if isinstance(value, str) and name not in ("vitals", "observations", "signal") and not is_encodable(value):
            raise HTTPException(400, f"{name}: not UTF-8")
        fields[name] = value
    image: UploadFile | None = fields.pop("image", None)
    known: dict[str, Any] = {name: fields.pop(name) for name in ("context", "format") if name in fields}
    vitals = _json("vitals", fields.pop("vitals", "").strip() or "{}")
    if not isinstance(vitals, dict):
        raise HTTPException(422, 'vitals: one JSON object, such as {"glucose": 8.7, "bp": "145/90"}')
    for name, nothing in (("observations", "{}"), ("signal", "null")):
        if name in fields:
            known[name] = _json(name, fields.pop(name).strip() or nothing)
    for name in fields:
        if name in vitals:
            raise HTTPException(422, f"vitals: {name} is given twice")
    case = _validated({**known, "vitals": {**vitals, **fields}})
    return case, await image.read() if image is not None else None
