"""Read request bodies within limits: bytes and seconds of each, bytes of all that are read at once."""

import asyncio
import json
import math
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

from fastapi import HTTPException, Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser

IDLE_SECONDS = 10.0
"""Without a byte."""
GRACE_SECONDS = 30.0
SLOWEST = 32 << 10
"""Bytes a second on average, after the grace."""
MOST_VALUES = 100_000
"""Commas, colons and brackets in a JSON body: a few bytes of them become a hundred times as many in memory."""
DEEPEST = 32
LONGEST_NUMBER = 40


class Bodies:
    """Counts the bytes of the bodies that are in memory. One for a server."""

    def __init__(self, most: int) -> None:
        self.most, self.total = most, 2 * most
        self.held = 0

    @asynccontextmanager
    async def reading(self, request: Request, most: int | None = None) -> AsyncIterator[Request]:
        """A request whose body is counted until the end of the block, and refused where it breaks a limit.

        Raises `HTTPException`: 408 too slow, 413 too large, 429 while others take all the room.
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
            mine, self.held = mine + size, self.held + size
            if mine > most:
                raise HTTPException(413, f"larger than {_in_words(most)}")
            if self.held > self.total:
                raise HTTPException(429, "too much is being sent at once; try again in a moment", {"retry-after": "1"})
            return message

        try:
            yield Request(request.scope, receive)
        finally:
            self.held -= mine


class _InMemory(MultiPartParser):
    """Starlette's parser, which writes no file of a case to the disk; the whole body is bounded already."""

    spool_max_size = sys.maxsize


@asynccontextmanager
async def form_of(request: Request, files: int, fields: int, largest: int) -> AsyncIterator[FormData]:
    """A request's multipart form, of UTF-8 alone: Python's other codecs raise nearly anything, or take minutes.

    `largest` is of a field, in bytes. Raises `HTTPException`.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise HTTPException(415, "send multipart/form-data")
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"us-ascii"):
        raise HTTPException(415, "content-type: a form is sent in UTF-8")
    parser = _InMemory(
        request.headers, request.stream(), max_files=files, max_fields=fields, max_part_size=largest
    )  # fmt: skip
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise HTTPException(400, error.message) from None
    try:
        yield form
    finally:
        await form.close()


def read_json(data: bytes | str) -> Any:
    """Strict JSON: no key twice, no NaN or Infinity, no number beyond a double, little depth, few values.

    Raises `ValueError` in one line without a value of the text.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        if sum(map(text.count, ",:[{")) > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values")
        values = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant,
                            parse_float=_finite, parse_int=_short)  # fmt: skip
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"Invalid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError:
        raise ValueError("Invalid JSON: not UTF-8") from None
    _check(values)
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:60]!a} stands there twice")
    return values


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _short(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError("a number is too large")
    return int(text)


def _check(values: Any) -> None:
    """Refuse too deep a nesting, and half a character, which no text may hold."""
    rest = [(values, 0)]
    while rest:
        value, depth = rest.pop()
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError("Invalid JSON: half a surrogate pair") from None
        if isinstance(value, dict):
            rest += [(part, depth + 1) for pair in value.items() for part in pair]
        elif isinstance(value, list):
            rest += [(item, depth + 1) for item in value]


def _length(request: Request) -> int:
    """The body's length as the header says it; 0 where it does not, -1 where it is no number."""
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else -1


def _in_words(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"
