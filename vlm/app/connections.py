"""Bound what open connections may take: uvicorn has no time limit for a request's head, and none for slow readers."""

import asyncio
import logging
import time
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vlm.app.headers import with_security_headers

MOST_CONNECTIONS = 512
HEAD_SECONDS = 10.0
"""Longest time from a connection, or its last answer, to the end of a request's head."""
READER_SECONDS = 30.0
"""Longest pause of a client that does not read what is written to it."""
PIECE = 16 << 10
"""Bytes that are parsed at once, so that a head can hardly exceed it."""
FREE_CHUNKS, SMALLEST_CHUNK = 256, 512
"""Free chunks of a body, and the least average bytes beyond them: each costs the parser as much as a kilobyte."""
_STREAMS = "/gradio_api/"
"""Path prefix of the page's streams, which stay open as long as the page does."""


def server_config(app: Any, **named: Any) -> uvicorn.Config:
    """Configure uvicorn without logs: an access log holds what clients sent, an error log may quote a case.

    Its own configuration of logs would close the handlers of all libraries, and absl's closes a file that stood for
    stderr with it.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # else Python prints warnings of libraries on stderr
    return uvicorn.Config(app, http=BoundedProtocol, ws="none", log_config=None, log_level="critical",
                          access_log=False, server_header=False, timeout_graceful_shutdown=3, **named)  # fmt: skip


class _Connection(h11.Connection):
    """HTTP connection that refuses a body in tiny chunks."""

    chunks = 0
    received = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.chunks = self.received = 0
        elif isinstance(event, h11.Data):
            self.chunks, self.received = self.chunks + event.chunk_start, self.received + len(event.data)
            if self.chunks > FREE_CHUNKS + self.received // SMALLEST_CHUNK:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        return event


class BoundedProtocol(H11Protocol):
    """Protocol that closes a connection when its client is slow, or when others need its place."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = _Connection(h11.SERVER, PIECE)
        self.since = time.monotonic()
        self._head: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= most_connections():
            _make_room(self.connections)
        if len(self.connections) >= most_connections():
            transport.abort()
            return
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._reader):
            if timer is not None:
                timer.cancel()
        if self.transport is not None:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            if not self.transport.is_closing():
                super().data_received(data[start : start + PIECE])

    def handle_events(self) -> None:
        super().handle_events()
        if self._head is not None and not self.is_idle:
            self._head.cancel()
            self._head = None

    def on_response_complete(self) -> None:
        self._await_head()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self.loop.call_later(READER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed HTTP request, with the same headers as every other answer."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            start = h11.Response(status_code=400, headers=with_security_headers(headers), reason=b"Bad Request")
            for event in (start, h11.Data(data=msg.encode("ascii", "replace")), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        self.transport.close()

    @property
    def is_idle(self) -> bool:
        """True if no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_waiting(self) -> bool:
        """True if the client has not sent a whole request yet, or does not read its answer."""
        return self.is_idle or self.cycle.more_body or self._reader is not None

    @property
    def is_stream(self) -> bool:
        return not self.is_idle and self.scope["path"].startswith(_STREAMS)

    def _await_head(self) -> None:
        """Start the timeout for a request's head; more bytes of the same head do not renew it."""
        self.since = time.monotonic()
        if self._head is not None:
            self._head.cancel()
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)


def _make_room(connections: set[Any]) -> None:
    """Close the connection that has waited longest for its client, or else the oldest stream of a page."""
    for state in ("is_waiting", "is_stream"):
        if fitting := [each for each in connections if getattr(each, state)]:
            oldest = min(fitting, key=lambda each: each.since)
            connections.discard(oldest)
            oldest.transport.abort()
            return


def most_connections() -> int:
    """Return the connection limit: the file descriptors there are, with some left for files."""
    try:
        import resource  # not on Windows
    except ImportError:
        return MOST_CONNECTIONS
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(16, min(MOST_CONNECTIONS, soft - 128))
