"""Define `POST /v1/chat/completions` and `GET /v1/models`, in OpenAI's shape, for clients that know no other."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from vlm.app.asking import Asked, ask, decode_images, http_codes, result_of
from vlm.app.bodies import Bodies
from vlm.app.case_body import Case
from vlm.app.chat_body import CASE_KEYS, read_chat
from vlm.app.failures import Failed
from vlm.app.refusals import refusal_body
from vlm.app.served import ServedAdapters
from vlm.report import Report

PATH = "/v1/chat/completions"
POLL_SECONDS = 0.05
"""Seconds between two looks at the words of a streamed draft."""
_CASE = Case.model_json_schema()["properties"]
_BODY = {"required": True, "content": {"application/json": {"schema": {
    "type": "object", "required": ["model", "messages"],
    "properties": {"model": {"type": "string"}, "messages": {"type": "array", "items": {"type": "object"}},
                   "stream": {"type": "boolean"}, **{name: _CASE[name] for name in CASE_KEYS}}}}}}  # fmt: skip


def add_chat(app: FastAPI, served: ServedAdapters, bodies: Bodies) -> None:
    """Add the routes to the app; its own handler answers what they raise."""

    @app.post(PATH, summary="Draft the report of one case, as a chat completion", openapi_extra={"requestBody": _BODY})
    async def complete(request: Request) -> Any:
        with http_codes(served):
            served.check_room()
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise HTTPException(415, "send application/json")
            async with bodies.reading(request) as counted:
                chat = await run_in_threadpool(read_chat, await counted.body())
                chosen = served.of(chat.model, "model")
                images = await decode_images(chosen.service, chat.images)
            asked = await ask(chosen.service, chat.case, images)
            if chat.stream:
                return StreamingResponse(_events(served, chat.model, asked), media_type="text/event-stream")
            report = asked.noted(await result_of(asked.job))
        message = {"role": "assistant", "content": _content(report), "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": _reason(report), "logprobs": None}
        return JSONResponse(_answer("", chat.model) | {"choices": [choice], "report": report.to_dict()})

    @app.get("/v1/models", summary="The names of the adapters, as OpenAI lists models")
    async def models() -> dict[str, Any]:
        kind = {"object": "model", "created": 0, "owned_by": "clinical-vlm"}
        return {"object": "list", "data": [{"id": name, **kind} for name in served.by_name]}


def _answer(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": f"chat.completion{kind}", "created": int(time.time()),
            "model": model}  # fmt: skip


def _content(report: Report) -> str:
    """Return the draft, or why there is none, with the notice."""
    return f"{report.text or report.no_draft()}\n\n{report.notice}"


def _reason(report: Report) -> str:
    return "stop" if report.finished else "length"


async def _events(served: ServedAdapters, model: str, asked: Asked) -> AsyncIterator[str]:
    """Yield the server-sent events of a draft: its words as they come, the notice, and the report in the last chunk."""
    base, sent = _answer(".chunk", model), ""

    def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _event(base | {"choices": [choice]} | more)

    yield chunk({"role": "assistant", "content": ""})
    coming = asyncio.ensure_future(result_of(asked.job))
    try:
        with http_codes(served):
            while not coming.done():
                await asyncio.wait([coming], timeout=POLL_SECONDS)
                text = asked.job.text
                if len(text) > len(sent) and text.startswith(sent):
                    sent, new = text, text[len(sent) :]
                    yield chunk({"content": new})
            report = asked.noted(coming.result())
            content = _content(report)
            if not content.startswith(sent):
                raise Failed("the draft ended with other words than it began with; ask without stream")
            yield chunk({"content": content[len(sent) :]})
            yield chunk({}, _reason(report), report=report.to_dict())
            yield "data: [DONE]\n\n"
    except HTTPException as error:
        yield _event(refusal_body(PATH, error.status_code, str(error.detail)))
    finally:
        coming.cancel()  # the client disconnected: the job is cancelled with it


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"
