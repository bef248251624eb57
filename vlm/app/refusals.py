"""Write a refusal as one line, in the shape that the clients of its path know."""

from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from vlm.plain import printable

LONGEST_DETAIL = 400
OPENAI_PATHS = ("/v1/chat/", "/v1/models")
"""Beginnings of the paths whose refusals have OpenAI's shape."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def refusal(path: str, error: HTTPException) -> JSONResponse:
    """Answer with one line, whatever names and values a client has put into it."""
    return JSONResponse(refusal_body(path, error.status_code, str(error.detail)), error.status_code, error.headers)


def refusal_body(path: str, code: int, detail: str) -> dict[str, Any]:
    """Return the JSON of a refusal: OpenAI's on its paths, else the line under `detail`."""
    line = printable(" ".join(detail[: 10 * LONGEST_DETAIL].split()))[:LONGEST_DETAIL]
    if not path.startswith(OPENAI_PATHS):
        return {"detail": line}
    kind = _TYPES.get(code, "server_error" if code >= 500 else "invalid_request_error")
    return {"error": {"message": line, "type": kind, "param": None, "code": None}}
