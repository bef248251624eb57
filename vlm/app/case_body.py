"""Read a case from a request's body, JSON or a form; every refusal is one line."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import HTTPException, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from vlm.app.bodies import form_of, is_encodable, json_body, read_json
from vlm.app.service import Service
from vlm.data.study import MOST_IMAGES
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.series import MOST_POINTS
from vlm.errors import UserError
from vlm.inference.fhir import context_of, from_fhir
from vlm.inference.study_images import StudyImage

LONGEST_VALUE, LONGEST_SERIES = 200, 100_000
Format = Literal["report", "fhir"]
"""Format of the answer: our own, or a FHIR Bundle."""
SentImage = tuple[bytes, StudyImage]
"""The file of an image, and its role; without a picture yet."""


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


class CaseImage(BaseModel):
    """One image of a study."""

    model_config = ConfigDict(extra="forbid", strict=True)

    data: str = Field(description="PNG, JPEG, TIFF, BMP, WebP or DICOM file in base64")
    view: str = Field("", description="view, such as PA, AP or lateral; empty if it is not known")
    prior: bool = Field(False, description="true for an image of an earlier study")
    days: float | None = Field(None, description="days from the earlier study to this one")


class Case(BaseModel):
    """One case. A missing image or vital is a known case, not an error."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = Field(None, description="PNG, JPEG, TIFF, BMP, WebP or DICOM file in base64")
    images: list[CaseImage] = Field(
        default_factory=list, max_length=MOST_IMAGES, description="in place of image: the images of a study"
    )
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
    prior_report: str = Field("", description="report of the earlier study")
    signal: list[Any] | None = Field(
        None, description="signal such as an ECG: a list of numbers for each channel, null at a gap"
    )
    format: Format = Field("report", description="form of the answer: ours, or a FHIR Bundle")
    study_uid: str = Field(
        "", max_length=LONGEST_VALUE, description="in place of images: Study Instance UID of a study in the archive "
        "that the server was started with"
    )  # fmt: skip
    store: bool = Field(False, description="store the draft of that study in the archive, unverified")
    adapter: str = Field("", description="adapter, of those that GET /v1/models lists; empty for the first")


_FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
_WORDS = {"type": "array", "items": {"type": "string"}}
_FORM = {"type": "object", "additionalProperties": {"type": "string", "description": "a vital under its own name"},
         "properties": {"image": {**_FILES, "description": "image file; several for a study"},
                        "view": {**_WORDS, "description": "view of each image in turn"},
                        "prior": {**_FILES, "description": "image files of an earlier study"},
                        "prior_view": {**_WORDS, "description": "view of each of them in turn"},
                        "prior_days": {**_WORDS, "description": "days to this study, of each in turn or once for all"},
                        "prior_report": {"type": "string", "description": "report of the earlier study"},
                        "vitals": {"type": "string", "description": "JSON object of names and values"},
                        "observations": {"type": "string", "description": "FHIR Observations as JSON"},
                        "study_uid": {"type": "string", "description": "in place of images: study in the archive"},
                        "store": {"type": "boolean", "description": "store its draft there, unverified"},
                        "context": {"type": "string"}, "signal": {"type": "string", "description": "its lists as JSON"},
                        "format": {"type": "string"}, "adapter": {"type": "string"}}}  # fmt: skip
BODY = {"required": True, "content": {"multipart/form-data": {"schema": _FORM},
                                      "application/json": {"schema": Case.model_json_schema()}}}  # fmt: skip
"""Description of the body for OpenAPI."""


async def read_case(request: Request) -> tuple[Case, list[SentImage]]:
    """Read the case and the files of its images; raises `HTTPException` with one line for what cannot be read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await run_in_threadpool(_read_json_case, await request.body())
    if kind == "multipart/form-data":
        async with form_of(request, files=MOST_IMAGES, fields=500, largest=1 << 18) as form:
            return await _read_form(form)
    raise HTTPException(415, f"send multipart/form-data or application/json, not {kind[:80] or 'an untyped body'}")


async def read_images(service: Service, sent: Sequence[SentImage]) -> list[StudyImage]:
    """Decode the images of a case; raises as `Service.read_image` does."""
    count, images = len(sent), []
    for number, (data, role) in enumerate(sent, 1):
        name = "image" if count == 1 else f"image {number} of {count}"
        images.append(role._replace(image=await service.read_image(data, name)))
    return images


def inputs_of(case: Case, schema: VitalsSchema) -> tuple[dict[str, Any], str, tuple[str, ...]]:
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


# ----------------------------------------------------------------------------------------------- JSON


def _read_json_case(body: bytes) -> tuple[Case, list[SentImage]]:
    return case_of_json(json_body(body))


def case_of_json(values: Any) -> tuple[Case, list[SentImage]]:
    """Read the case and the files of its images from parsed JSON; raises `HTTPException` as `read_case` does."""
    texts = _taken_out(values)
    case = _validated(values)
    if case.image is not None and case.images:
        raise HTTPException(422, "images: stand in place of image; give one of them")
    roles = [role_of(image.view, image.prior, image.days) for image in case.images] or [role_of()] * len(texts)
    files = (_from_base64(text, where) for where, text in texts.items())
    return case, list(zip(files, roles, strict=True))


def _taken_out(values: Any) -> dict[str, str]:
    """Replace the base64 texts, the largest part, so that they are not copied again; returns them by their place."""
    texts: dict[str, str] = {}
    if not isinstance(values, dict):
        return texts
    if isinstance(values.get("image"), str):
        texts["image"], values["image"] = values["image"], ""
    images = values.get("images")
    for number, image in enumerate(images if isinstance(images, list) else [], 1):
        if isinstance(image, dict) and isinstance(image.get("data"), str):
            texts[f"images: {number}"], image["data"] = image["data"], ""
    return texts


def role_of(view: str = "", prior: bool = False, days: float | None = None) -> StudyImage:
    """Make the role of an image, without a picture yet."""
    return StudyImage(np.empty(0, np.uint8), view, prior, days)


def _json(name: str, text: str) -> Any:
    try:
        return read_json(text)
    except ValueError as error:
        raise HTTPException(400, f"{name}: {str(error).replace('Invalid JSON', 'not valid JSON')}") from None


def _validated(values: Any) -> Case:
    try:
        return Case.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ": ".join(str(part)[:80] for part in first["loc"][: 3 if first["loc"][:1] == ("images",) else 2])
        raise HTTPException(422, f"{where or 'body'}: {first['msg'].removeprefix('Value error, ')}") from None


def _from_base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise HTTPException(400, f"{where}: not valid base64") from None


# ----------------------------------------------------------------------------------------------- forms

_FILE_FIELDS, _ROLE_FIELDS = ("image", "prior"), ("view", "prior_view", "prior_days")
_JSON_FIELDS = ("vitals", "observations", "signal")
_TEXT_FIELDS = ("context", "prior_report", "format", "study_uid", "store", "adapter")


async def _read_form(form: FormData) -> tuple[Case, list[SentImage]]:
    fields: dict[str, Any] = {}
    repeated: dict[str, list[Any]] = {name: [] for name in (*_FILE_FIELDS, *_ROLE_FIELDS)}
    for name, value in form.multi_items():
        if name in fields:
            raise HTTPException(422, f"{name}: given twice")
        if isinstance(value, UploadFile) != (name in _FILE_FIELDS):
            what = "send it as a file" if name in _FILE_FIELDS else "is no file field"
            raise HTTPException(422, f"{name}: {what}")
        if isinstance(value, str) and name not in _JSON_FIELDS and not is_encodable(value):
            raise HTTPException(400, f"{name}: not UTF-8")
        if name in repeated:
            repeated[name].append(value)
        else:
            fields[name] = value
    case = _case_of(fields)
    roles = _form_roles(repeated)
    return case, [(await file.read(), role) for file, role in zip(repeated["image"] + repeated["prior"], roles,
                                                                   strict=True)]  # fmt: skip


def _case_of(fields: dict[str, Any]) -> Case:
    """Make the case of a form's texts; the fields that are none of ours are vitals."""
    known: dict[str, Any] = {name: fields.pop(name) for name in _TEXT_FIELDS if name in fields}
    vitals = _json("vitals", fields.pop("vitals", "").strip() or "{}")
    if not isinstance(vitals, dict):
        raise HTTPException(422, 'vitals: one JSON object, such as {"glucose": 8.7, "bp": "145/90"}')
    for name, nothing in (("observations", "{}"), ("signal", "null")):
        if name in fields:
            known[name] = _json(name, fields.pop(name).strip() or nothing)
    for name in fields:
        if name in vitals:
            raise HTTPException(422, f"vitals: {name} is given twice")
    return _validated({**known, "vitals": {**vitals, **fields}})


def _form_roles(given: dict[str, list[Any]]) -> list[StudyImage]:
    """Pair the images of a form with their views and times, in turn."""
    current, earlier = len(given["image"]), len(given["prior"])
    days: list[float | None] = [_number(text) for text in given["prior_days"]]
    if len(days) == 1 and earlier:
        days *= earlier
    views = _paired(given["view"], current, "view", "image", "")
    prior_views = _paired(given["prior_view"], earlier, "prior_view", "prior", "")
    times = _paired(days, earlier, "prior_days", "prior", None)
    return [role_of(view) for view in views] + [role_of(*role) for role in zip(prior_views, [True] * earlier, times,
                                                                           strict=True)]  # fmt: skip


def _paired(roles: Sequence[Any], images: int, role: str, image: str, unknown: Any) -> Sequence[Any]:
    if roles and len(roles) != images:
        raise HTTPException(422, f"{role}: {len(roles)} given for {images} of {image}; give one for each, or none")
    return roles or [unknown] * images


def _number(text: str) -> float | None:
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise HTTPException(422, f"prior_days: {text!r:.40} is not a number of days") from None
