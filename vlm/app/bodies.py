"""Read request bodies within limits: bytes and seconds of each, and bytes of all that are read at once."""

import asyncio
import json
import math
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import HTTPException, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

from vlm.untrusted import JsonFault, parse_json

IDLE_SECONDS = 10.0
"""Longest wait for the next byte, seconds."""
GRACE_SECONDS = 30.0
SLOWEST = 32 << 10
"""Minimum average rate after the grace period, bytes a second."""
MOST_NON_ASCII = 1 << 20
"""Most non-ASCII bytes in a larger body."""
MOST_VALUES = 100_000
"""Most commas, colons and brackets in a JSON body: parsed, each can take 100 times its bytes in memory."""
MOST_OPTIONS = 16
"""Most semicolons in a header: each costs the parser as much as a kilobyte of a file."""
DEEPEST = 32
LONGEST_NUMBER = 40
_NON_ASCII_BYTES = bytes(range(128, 256))
_NON_ASCII = re.compile(rb"[\x80-\xff]+")
_QUOTED = re.compile(rb'"(?:\\.|[^"\\])*"')


class Bodies:
    """Count the bytes of the bodies in memory. One instance a server."""

    def __init__(self, most: int) -> None:
        self.most, self.total = most, 2 * most
        self.in_memory = 0

    @asynccontextmanager
    async def reading(self, request: Request, most: int | None = None) -> AsyncIterator[Request]:
        """Count a request's body until the end of the block, and refuse it where it breaks a limit.

        Raises `HTTPException`: 408 too slow, 413 too large, 429 while others take all the memory.
        """
        most = most or self.most
        if not 0 <= _length(request) <= most:
            raise HTTPException(413, f"larger than {_in_words(most)}")
        start, mine = time.monotonic(), 0

        async def receive() -> Any:
            nonlocal mine
            left = start + GRACE_SECONDS + mine / SLOWEST - time.monotonic()
            try:
                message = await asyncio.wait_for(request.receive(), max(0, min(IDLE_SECONDS, left)))
            except TimeoutError:
                raise HTTPException(408, "the body did not come in time", {"connection": "close"}) from None
            size = len(message.get("body", b""))
            mine, self.in_memory = mine + size, self.in_memory + size
            if mine > most:
                raise HTTPException(413, f"larger than {_in_words(most)}")
            if self.in_memory > self.total:
                raise HTTPException(429, "too much is being sent at once; try again in a moment", {"retry-after": "1"})
            return message

        try:
            yield Request(request.scope, receive)
        finally:
            self.in_memory -= mine


class _Form(MultiPartParser):
    """Starlette's parser made strict; it writes no file of a case to disk, since the whole body is bounded already."""

    spool_max_size = sys.maxsize
    is_whole = False

    def on_header_end(self) -> None:
        name = self._current_partial_header_name.lower()
        if self._current_partial_header_value.count(b";") > MOST_OPTIONS:
            raise MultiPartException("a part's header has too many options")
        if name == b"content-disposition" and _has_option_twice(self._current_partial_header_value):
            raise MultiPartException("a part's header has an option twice")
        if any(name == other for other, _ in self._current_part.item_headers):
            raise MultiPartException("a part has a header twice")
        super().on_header_end()

    def on_part_end(self) -> None:
        part = self._current_part
        if part.file is None:  # lone surrogates where it is not UTF-8, not another encoding's letters
            self.items.append((part.field_name, part.data.decode("utf-8", "surrogateescape")))
        else:
            super().on_part_end()

    def on_end(self) -> None:
        self.is_whole = True


@asynccontextmanager
async def form_of(request: Request, files: int, fields: int, largest: int) -> AsyncIterator[FormData]:
    """Parse a request's multipart form, in UTF-8 only: Python's other codecs raise nearly anything, or take minutes.

    `largest` is the size limit of a field, in bytes. Raises `HTTPException`.
    """
    header = request.headers.get("content-type", "")
    if header.count(";") > MOST_OPTIONS:
        raise HTTPException(415, "content-type: too many options")
    if _has_option_twice(header.encode("latin-1", "replace")):
        raise HTTPException(415, "content-type: an option stands there twice")
    kind, options = parse_options_header(header)
    if kind != b"multipart/form-data":
        raise HTTPException(415, "send multipart/form-data")
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"us-ascii"):
        raise HTTPException(415, "content-type: a form is sent in UTF-8")
    parser = _Form(request.headers, request.stream(), max_files=files, max_fields=fields, max_part_size=largest)
    try:
        form = await parser.parse()
        if not parser.is_whole:
            await form.close()
            raise MultiPartException("the form is cut short: its last boundary is missing")
    except MultiPartException as error:
        raise HTTPException(400, error.message) from None
    try:
        yield form
    finally:
        await form.close()


def read_json(data: bytes | str) -> Any:
    """Parse strict JSON of few values; raises `ValueError` in one line that quotes no value of the text."""
    if sum(data.count(sign) if isinstance(data, str) else data.count(sign.encode()) for sign in ",:[{") > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values")
    if isinstance(data, bytes) and len(data) > MOST_NON_ASCII:
        data = _with_escapes(data)
    try:
        return parse_json(data, math.inf, DEEPEST, LONGEST_NUMBER, is_encodable)
    except JsonFault as fault:
        raise ValueError(fault.unquoted) from None


def json_body(data: bytes) -> Any:
    """Parse a body as JSON; raises `HTTPException` 400 as `read_json` says it."""
    try:
        return read_json(data)
    except ValueError as error:
        raise HTTPException(400, f"body: {error}") from None


def _with_escapes(data: bytes) -> bytes:
    """Write non-ASCII letters as JSON escapes: as a `str`, one emoji would make a large image take four times as much.

    Raises `ValueError` for more of them than words need.
    """
    if len(data) - len(data.translate(None, _NON_ASCII_BYTES)) > MOST_NON_ASCII:
        raise ValueError(f"more than {_in_words(MOST_NON_ASCII)} of letters beyond ASCII")
    try:
        return _NON_ASCII.sub(lambda found: json.dumps(found[0].decode())[1:-1].encode(), data)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _has_option_twice(header: bytes) -> bool:
    """Check whether a header such as `form-data; name="a"` names an option twice; quoted text is ignored."""
    parts = _QUOTED.sub(b"", header).split(b";")[1:]
    names = [name for part in parts if (name := part.partition(b"=")[0].strip().lower())]
    return len(set(names)) < len(names)


def is_encodable(text: str) -> bool:
    """Check whether a text has no lone surrogate, which cannot be encoded."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _length(request: Request) -> int:
    """Return the body's length from its header; 0 where there is none, -1 where it is no number."""
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1


def _in_words(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
