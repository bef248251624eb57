"""What is dear to parse: refused before it keeps the one thread busy that answers everybody."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest

from tests.serving import serving_drafts
from vlm.app.about import Adapter
from vlm.inference.engine import ReportEngine

REPORT = b"POST /v1/report HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def url(engine: ReportEngine, adapter: Adapter) -> Iterator[str]:
    with serving_drafts(engine, adapter, tokens=4, upload=4 << 20) as address:
        yield address


def connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 30)


CRUMBS = b"1\r\n \r\n" * 4000
PARSED: dict[str, tuple[bytes, bytes]] = {
    "chunks of a byte": (REPORT + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n", CRUMBS),
    "options of the type": (b"", REPORT + b"Content-Length: 2\r\nContent-Type: multipart/form-data"
                            + b";" * 60_000 + b"\r\n\r\n{}"),
    "options of a part": (REPORT + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 4000000\r\n\r\n",
                          b"--x\r\nContent-Disposition: form-data; name=a" + b";" * 3900 + b"\r\n\r\n\r\n"),
    "headers": (b"", REPORT + b"a:b\r\n" * 40_000 + b"\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("way", PARSED)
def test_what_is_dear_to_parse_is_ended_before_it_is_parsed(url: str, way: str) -> None:
    """The parsers are written in Python, on the one thread that answers everybody."""
    head, piece = PARSED[way]
    start, sent = time.process_time(), 0
    with ExitStack() as stack:
        made = [stack.enter_context(connected(url)) for _ in range(8)]
        for connection in made:
            with suppress(OSError):
                connection.sendall(head)
                while sent < 1 << 20:
                    connection.sendall(piece)
                    sent += len(piece)
            sent = 0
        assert httpx.post(f"{url}/v1/report", json={}, timeout=60).status_code == 200
        for connection in made:
            with suppress(OSError):
                connection.recv(65536)
    assert time.process_time() - start < 3, "of this process, server and clients: 8 MiB took more than it should"


@pytest.mark.parametrize(("size", "count", "code"), [(1, 200, 200), (600, 2000, 200), (1, 2000, 400), (100, 2000, 400)])
def test_a_body_in_chunks_is_read_unless_they_are_crumbs(url: str, size: int, count: int, code: int) -> None:
    body = b'{"vitals": {"glucose": 8}}'.ljust(size * count)
    with connected(url) as connection:
        connection.settimeout(30)
        connection.sendall(REPORT + b"Connection: close\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Transfer-Encoding: chunked\r\n\r\n")
        with suppress(OSError):
            for start in range(0, len(body), size):
                connection.sendall(b"%x\r\n%b\r\n" % (size, body[start : start + size]))
            connection.sendall(b"0\r\n\r\n")
        answer = b""
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    assert answer.split()[1] == str(code).encode() and (b'"glucose":8.0' in answer) == (code == 200), answer
