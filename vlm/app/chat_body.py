"""Read a case from the body of a chat completion: one user message with its images, and the values beside it.

An option that would change the answer, if it was heeded, is refused; no address is ever fetched.
"""

import json
from typing import Any, NamedTuple

from fastapi import HTTPException

from vlm.app.bodies import json_body
from vlm.app.case_body import Case, SentImage, case_of_json

CASE_KEYS = ("vitals", "observations", "prior_report", "signal")
"""Keys of a case, as `/v1/report` takes them, beside those of OpenAI."""
NEUTRAL: dict[str, Any] = {
    "n": 1, "temperature": 0, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "logprobs": False,
    "store": False, "tools": [], "stop": [], "logit_bias": {}, "modalities": ["text"],
    "response_format": {"type": "text"},
}  # fmt: skip
"""Option → the only value that it may have: the one that changes nothing in a greedy draft."""
WITHOUT_EFFECT = frozenset({"seed", "user", "safety_identifier", "metadata"})
"""Options that are ignored, since no draft depends on them."""
_ONE_MESSAGE = "messages: give one, with the role user; the rest of the prompt is the adapter's, and no draft is kept"


class Chat(NamedTuple):
    """What a chat completion asks for."""

    model: str
    stream: bool
    case: Case
    images: list[SentImage]


def read_chat(body: bytes) -> Chat:
    """Read the body; raises `HTTPException` with one line for what is wrong, unknown, or would have to be ignored."""
    values = json_body(body)
    if not isinstance(values, dict):
        raise HTTPException(422, "body: give a JSON object")
    model, stream = values.pop("model", None), values.pop("stream", None) or False
    if not (isinstance(model, str) and model) or not isinstance(stream, bool):
        raise HTTPException(422, "model: give a name of GET /v1/models" if stream in (True, False) else
                            "stream: true or false")  # fmt: skip
    texts, images = _content(values.pop("messages", None))
    given = {name: values.pop(name) for name in CASE_KEYS if values.get(name) is not None}
    for name, value in values.items():
        _check_option(name, value)
    return Chat(model, stream, *case_of_json({"context": "\n".join(texts), "images": images, **given}))


def _check_option(name: str, value: Any) -> None:
    if value is None or name in WITHOUT_EFFECT or (name in NEUTRAL and value == NEUTRAL[name]):
        return
    if name in NEUTRAL:
        raise HTTPException(422, f"{name}: only {json.dumps(NEUTRAL[name])}; a draft is one greedy text")
    raise HTTPException(422, f"{name}: is no option of a draft; leave it away")


def _content(messages: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the texts and the images of the user's message."""
    match messages:
        case [{"role": "user", "content": str(text), **rest}] if not rest:
            return [text], []
        case [{"role": "user", "content": [*parts], **rest}] if not rest:
            texts: list[str] = []
            images: list[dict[str, Any]] = []
            for number, part in enumerate(parts, 1):
                _add_part(part, f"messages: part {number}", texts, images)
            return texts, images
    raise HTTPException(422, _ONE_MESSAGE)


def _add_part(part: Any, where: str, texts: list[str], images: list[dict[str, Any]]) -> None:
    match part:
        case {"type": "text", "text": str(text), **rest} if not rest:
            texts.append(text)
        case {"type": "image_url", "image_url": {"url": str(url), **role}, **rest} if not rest:
            if role.pop("detail", "auto") != "auto":
                raise HTTPException(422, f"{where}: detail: only auto; the adapter knows its size")
            images.append({"data": _base64_of(url, where)} | {str(name): value for name, value in role.items()})
        case _:
            raise HTTPException(422, f"{where}: give a text or an image_url, and nothing beside it")


def _base64_of(url: str, where: str) -> str:
    """Return the base64 text of a data URI."""
    head, _, data = url.partition(",")
    if not (head[:5].lower() == "data:" and head.lower().endswith(";base64")):
        raise HTTPException(422, f"{where}: give the image as data:image/png;base64,…; no address is fetched")
    return data
