"""What many or slow clients may not do: keep an honest one waiting, fill the memory, the descriptors or the log."""

import base64
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from tests.serving import serving
from vlm.app import bodies, connections, failures
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.page import add_page
from vlm.app.service import Limits, Service
from vlm.app.uploads import Full, Uploads
from vlm.inference.engine import ReportEngine

HOST = b"Host: localhost\r\n"
MOST = 40
"""Connections of the small server."""
PATIENCE = 9.0
"""Seconds for limits that tests set to half of one: ample on a busy machine, and below the server's own ten."""
COOKIE = b"Cookie: clinical-vlm-session=" + b"a" * 43 + b"\r\n"
REPORT = b"POST /v1/report HTTP/1.1\r\n" + HOST
WAYS: dict[str, bytes] = {
    "nothing": b"",
    "half a line": b"GET / HT",
    "half a head": b"GET / HTTP/1.1\r\n" + HOST,
    "no body": REPORT + b"Content-Type: application/json\r\nContent-Length: 99999\r\n\r\n",
    "half a body": REPORT + b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
    "half a form": REPORT + b"Content-Type: multipart/form-data; boundary=x\r\n"
                   b"Content-Length: 99999\r\n\r\n--x\r\n"
                   b"Content-Disposition: form-data; name=image; filename=a\r\n\r\nx",
    "endless": REPORT + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    "half an upload": b"POST /gradio_api/upload HTTP/1.1\r\n" + HOST + COOKIE + b"Content-Type: "
                      b"multipart/form-data; boundary=x\r\nContent-Length: 99999\r\n\r\n--x\r\n",
    "half an event": b"POST /gradio_api/queue/join HTTP/1.1\r\n" + HOST + COOKIE + b"Content-Length: 999\r\n\r\n{",
    "heartbeat": b"GET /gradio_api/heartbeat/abc HTTP/1.1\r\n" + HOST + COOKIE + b"\r\n",
    "refused": b"POST /v1/report HTTP/1.1\r\nHost: evil\r\nContent-Length: 99999\r\n\r\n{",
    "answered": b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def app(engine: ReportEngine, adapter: Adapter) -> Iterator[Any]:
    with Service(engine, Limits(tokens=4, upload=4 << 20)) as service:
        yield add_page(make_api(service, adapter), service, adapter)


@pytest.fixture
def url(app: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with few connections and short patience."""
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", MOST)
    with serving(app) as address:
        yield address


def connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10)


@contextmanager
def crowd(url: str, sent: bytes, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(stack.enter_context(connected(url)))
            made[-1].sendall(sent)
        yield made


def is_closed(connection: socket.socket, dribble: bytes = b"") -> bool:
    """Whether the server ends the connection of a client that sends a byte now and then, before `PATIENCE` is over."""
    start = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - start < PATIENCE:
        try:
            if dribble:
                connection.sendall(dribble)
            if not connection.recv(65536):
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


@pytest.mark.parametrize("way", WAYS)
def test_an_honest_client_is_answered_beside_hundreds(url: str, way: str) -> None:
    with crowd(url, WAYS[way], 4 * MOST):
        for _ in range(3):
            answer = httpx.post(f"{url}/v1/report", json={"vitals": {"glucose": 8}}, timeout=60)
            assert answer.status_code == 200, answer.text
        assert httpx.get(url, timeout=60).status_code == 200


def test_clients_that_read_nothing_keep_nobody_out(url: str) -> None:
    unread = 8 * (b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\n" + HOST + b"\r\n")
    with crowd(url, unread, MOST):
        deadline = time.monotonic() + connections.READER_SECONDS / 2
        while True:
            try:
                assert httpx.get(f"{url}/healthz", timeout=20).status_code == 200
                break
            except httpx.TransportError:  # those before it are still being answered
                assert time.monotonic() < deadline
                time.sleep(0.2)


def test_a_draft_that_is_written_is_not_ended_for_others(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived, crowded, put, do = threading.Semaphore(0), threading.Event(), Service._put, Service._do

    def counted(self: Service, job: Any) -> Any:
        arrived.release()
        return put(self, job)

    monkeypatch.setattr(Service, "_put", counted)
    monkeypatch.setattr(Service, "_do", lambda self, jobs: crowded.wait(PATIENCE) and do(self, jobs))
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(httpx.post, f"{url}/v1/report", json={}, timeout=30) for _ in range(8)]
        assert all(arrived.acquire(timeout=PATIENCE) for _ in asked)
        with crowd(url, WAYS["half a body"], 4 * MOST):
            crowded.set()
            assert [one.result().status_code for one in asked] == [200] * 8


@pytest.mark.parametrize("way", ["nothing", "half a line", "half a head", "refused", "answered"])
def test_a_slow_head_is_ended_however_it_dribbles(url: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.4)
    for dribble in (b"", b"x"):
        with connected(url) as connection:
            connection.sendall(WAYS[way])
            assert is_closed(connection, dribble)


@pytest.mark.parametrize("way", ["no body", "half a body", "half a form", "endless", "half an upload", "half an event"])
def test_a_slow_body_is_ended(url: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "IDLE_SECONDS", 0.3)
    with connected(url) as connection:
        connection.sendall(WAYS[way])
        connection.settimeout(PATIENCE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
    monkeypatch.setattr(bodies, "IDLE_SECONDS", 5)
    monkeypatch.setattr(bodies, "GRACE_SECONDS", 0.5)  # a byte now and then is no progress
    with connected(url) as connection:
        connection.sendall(WAYS[way])
        assert is_closed(connection, b"1\r\nx\r\n" if way == "endless" else b"x")


def test_a_client_that_does_not_read_is_ended(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READER_SECONDS", 0.3)
    with connected(url) as connection:
        request = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\n" + HOST + b"\r\n"
        connection.sendall(request * 20)  # more than the buffers of both sides hold
        time.sleep(1.5)
        read, connection_ended = 0, False
        connection.settimeout(5)
        try:
            while part := connection.recv(1 << 20):
                read += len(part)
        except TimeoutError:
            pytest.fail(f"it was still waited for after {read:,} bytes")
        except ConnectionResetError:
            connection_ended = True
        assert connection_ended or read < 20 << 20


# ---------------------------------------------------------------------------------------------- memory


def test_large_bodies_at_once_share_one_room(engine: ReportEngine, adapter: Adapter) -> None:
    """40 clients with bodies just within the limit of each."""
    image = cv2.imencode(".png", np.zeros((40, 40), np.uint8))[1].tobytes()
    body = json.dumps({"image": base64.b64encode(image + bytes(3 << 20)).decode()}).encode()
    with Service(engine, Limits(tokens=2, upload=4 << 20, waiting=64)) as service:
        app = make_api(service, adapter)
        room, most = app.state.bodies, 0

        def watch() -> None:
            nonlocal most
            while not done.wait(0.001):
                most = max(most, room.in_memory)

        with serving(app) as url:
            done = threading.Event()
            watcher = threading.Thread(target=watch)
            watcher.start()

            def ask(_: int) -> int:
                headers = {"content-type": "application/json"}
                return httpx.post(f"{url}/v1/report", content=body, headers=headers, timeout=60).status_code

            with ThreadPoolExecutor(40) as pool:
                codes = Counter(pool.map(ask, range(40)))
            done.set()
            watcher.join()
            assert set(codes) <= {200, 429} and codes[200] >= 1, codes
            assert len(body) <= most <= room.total + (1 << 20) and room.in_memory == 0
            assert httpx.post(f"{url}/v1/report", json={}).status_code == 200


def test_the_queue_is_asked_before_the_body(engine: ReportEngine, adapter: Adapter) -> None:
    hold = threading.Event()
    with Service(engine, Limits(tokens=2, waiting=1)) as service, serving(make_api(service, adapter)) as url:
        service.ask(lambda _: hold.wait(20))
        with connected(url) as connection:
            head = REPORT + b"Content-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: 50000000\r\n\r\n")
            connection.settimeout(5)
            answer = connection.recv(65536)
        hold.set()
        assert answer.startswith(b"HTTP/1.1 429 ") and b"retry-after" in answer


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999", "+5", "٣"])
def test_an_odd_length_is_refused(url: str, length: str) -> None:
    with connected(url) as connection:
        head = REPORT + b"Content-Type: application/json\r\n"
        connection.sendall(head + f"Content-Length: {length}\r\n\r\n".encode())
        connection.settimeout(5)
        assert connection.recv(65536).split()[1] in (b"400", b"413")


def test_uploads_have_a_total_an_end_and_one_place_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = Uploads(100)
    first = uploads.add("a", b"x" * 60)
    second = uploads.add("a", b"y" * 60)  # in place of the first
    assert uploads.claim("a", first) is None and len(uploads) == 1
    with pytest.raises(Full, match="try again"):
        uploads.add("b", b"z" * 60)
    claimed = uploads.claim("a", second)
    assert claimed and uploads.take(second) is None and uploads.take(claimed) == b"y" * 60
    assert uploads.take(claimed) is None and len(uploads) == 0
    monkeypatch.setattr("vlm.app.uploads.UPLOAD_TTL_SECONDS", -1.0)
    uploads.add("b", b"z" * 100)
    assert len(uploads) == 1
    uploads.remove_expired()
    assert len(uploads) == 0


# ------------------------------------------------------------------------------------------------- log


def failing(message: str) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    return fail


def test_a_defect_that_is_asked_for_a_hundred_times_is_one_line(
    engine: ReportEngine, adapter: Adapter, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In whatever part: the routes', the reader's, the model's."""
    monkeypatch.setattr(failures, "_last_reports", {})
    with Service(engine, Limits(tokens=2)) as service, serving(make_api(service, adapter)) as url:
        for owner, name in ((service, "check_room"), (service, "read_bytes")):
            with monkeypatch.context() as patch, httpx.Client(base_url=url, timeout=30) as client:
                patch.setattr(owner, name, failing("Jane Doe"))
                for _ in range(25):
                    answer = client.post("/v1/report", files={"image": ("x", b"1")})
                    assert answer.status_code == 500 and "Jane" not in answer.text
                    assert answer.json()["detail"].endswith("the server's log says where")
    told = capfd.readouterr().err
    assert told.count("RuntimeError in test_attacks_load.py") == told.count("\n") == 1 and "Jane" not in told


def test_the_handlers_of_other_libraries_stay_open() -> None:
    """absl's closes a file that was stderr when it was made: here pytest's, and every test after it would fail."""
    closed: list[str] = []

    class Watched(logging.NullHandler):
        def close(self) -> None:
            closed.append("closed")

    watched = Watched()
    connections.server_config(None)
    assert not closed and watched in [reference() for reference in logging._handlerList]


def test_warnings_of_libraries_stay_off_the_log() -> None:
    """Such as those of a form's parser, which has one for each broken form, with bytes of it."""
    code = """
import logging
from vlm.app.connections import server_config
server_config(None)
logging.getLogger("python_multipart").warning("Jane Doe")
logging.getLogger("asyncio").error("Jane Doe")
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert told.stderr == told.stdout == ""
