"""What the page's own routes may not be talked into: another file, another session's data, Gradio's other routes."""

import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from tests.serving import serving
from vlm.adapter import load
from vlm.app import gate
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.page import add_page
from vlm.app.service import Limits, Service
from vlm.inference.engine import ReportEngine

META = {"_type": "gradio.FileData"}
JOIN, DATA, UPLOAD = "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/upload"
CANCEL = "/gradio_api/cancel"


@pytest.fixture(scope="module")
def service(tiny_adapter: Path) -> Iterator[Service]:
    with Service(ReportEngine(load(tiny_adapter)), Limits(tokens=4, upload=1 << 20)) as made:
        yield made


@pytest.fixture(scope="module")
def app(service: Service, tiny_adapter: Path) -> Any:
    adapter = Adapter.of(tiny_adapter)
    return add_page(make_api(service, adapter), service, adapter)


@pytest.fixture(scope="module")
def url(app: Any) -> Iterator[str]:
    with serving(app) as address:
        yield address


class Browser:
    """What a page does over HTTP, without a page: an attacker's hands."""

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=30)
        self.page = secrets.token_hex(5)
        config = self.client.get("/").text.split("window.gradio_config = ")[1].split(";</script>")[0]
        self.events = json.loads(config)["dependencies"]

    def event(self, inputs: int) -> dict[str, Any]:
        """The first event with so many inputs."""
        return next(event for event in self.events if len(event["inputs"]) == inputs)

    def uploading(self) -> dict[str, Any]:
        return next(event for event in self.events if event["targets"][0][1] == "upload")

    def upload(self, data: bytes, name: str = "x.png") -> Any:
        return self.client.post(UPLOAD, files={"files": (name, data)})

    def join(self, event: dict[str, Any], data: Any, **more: Any) -> httpx.Response:
        body = {"fn_index": event["id"], "data": data, "session_hash": self.page, "trigger_id": None, **more}
        return self.client.post(JOIN, json=body)

    def results(self) -> str:
        """All that the page's events answer."""
        answer = self.client.get(DATA, params={"session_hash": self.page})
        lines = answer.text.splitlines()
        return "\n".join(str(json.loads(line[6:]) if line.startswith("data: ") else line) for line in lines)


@contextmanager
def browser(url: str) -> Iterator[Browser]:
    made = Browser(url)
    try:
        yield made
    finally:
        made.client.close()


def png(side: int = 40) -> bytes:
    picture = np.random.default_rng(0).integers(0, 256, (side, side), dtype=np.uint8)
    return cv2.imencode(".png", picture)[1].tobytes()


# -------------------------------------------------------------------------------------------- any file


def test_an_own_upload_is_read_once(url: str, service: Service) -> None:
    with browser(url) as own:
        (name,) = own.upload(png()).json()
        file = {"path": name, "meta": META, "orig_name": "jane.png", "url": "http://evil.example/x.png", "size": 1}
        assert own.join(own.uploading(), [file]).status_code == 200
        assert "As the model sees it, 32 × 32 pixels" in own.results()
        assert own.join(own.uploading(), [file]).status_code == 403
    assert len(service.uploads) == 0 and not list(service.folder.rglob("*.png"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths that the process could read."""
    folder = tmp_path_factory.mktemp("foreign")
    secret, link, pipe = folder / "secret.png", folder / "link.png", folder / "pipe"
    secret.write_bytes(png())
    link.symlink_to(secret)
    os.mkfifo(pipe)
    return {"file": str(secret), "link": str(link), "pipe": str(pipe), "folder": str(folder), "zero": "/dev/zero",
            "stdin": "/dev/stdin", "fd": "/proc/self/fd/0", "mem": "/proc/self/mem", "passwd": "/etc/passwd",
            "relative": os.path.relpath(secret), "dots": f"{folder}/../{folder.name}/secret.png", "empty": "",
            "url": "http://127.0.0.1:1/x.png", "file url": f"file://{secret}", "nul": f"{secret}\0.png"}  # fmt: skip


FILES = ["file", "link", "pipe", "folder", "zero", "stdin", "fd", "mem", "passwd", "relative", "dots", "empty", "url",
         "file url", "nul"]  # fmt: skip


def hidden(path: str) -> list[Any]:
    """Ways to write a file into an event's data."""
    file = {"path": path, "meta": META}
    return [file, [file], [[file]], {"file": file}, {"value": file}, {"path": file}, {"path": path},
            {"path": path, "is_stream": True, "meta": META}, {"path": "x", "url": path, "meta": META},
            {"url": path, "meta": META}, {"files": [file], "text": ""}, {"__type__": "update", "value": file},
            {**file, "orig_name": "x.png", "mime_type": "image/png", "size": 1}]  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_no_event_reads_a_file_that_was_not_uploaded(url: str, foreign: dict[str, str], kind: str) -> None:
    """Every event of the page, every input, every shape."""
    with browser(url) as own:
        for event in own.events:
            for place in range(len(event["inputs"])):
                for value in hidden(foreign[kind]):
                    data = [value if number == place else None for number in range(len(event["inputs"]))]
                    answer = own.join(event, data)
                    assert answer.status_code in (403, 422), (event["id"], value)
                    assert foreign[kind] not in answer.text or kind == "empty"


@pytest.mark.parametrize("kind", ["file", "zero", "url", "passwd"])
def test_a_plain_text_is_no_file(url: str, foreign: dict[str, str], kind: str) -> None:
    with browser(url) as own:
        answer = own.join(own.uploading(), [foreign[kind]])
        told = own.results() if answer.status_code == 200 else ""
        assert "data:image" not in told and "root:" not in told


def test_another_sessions_upload_is_refused(url: str, service: Service) -> None:
    with browser(url) as victim, browser(url) as thief:
        (name,) = victim.upload(png()).json()
        file = {"path": name, "meta": META}
        assert thief.join(thief.uploading(), [file]).status_code == 403
        claimed = str(service.folder / name)
        assert thief.join(thief.uploading(), [{"path": claimed, "meta": META}]).status_code == 403
        assert victim.join(victim.uploading(), [file]).status_code == 200, "the thief's try took it away"


def test_another_sessions_results_are_its_own(url: str) -> None:
    with browser(url) as victim, browser(url) as thief:
        filler = next(event for event in victim.events if not event["inputs"] and event["targets"][0][1] == "click")
        assert victim.join(filler, []).status_code == 200
        assert thief.client.get(DATA, params={"session_hash": victim.page}).status_code == 404
        assert "process_completed" in victim.results()


def test_without_the_cookie_nothing_is_done(url: str) -> None:
    with httpx.Client(base_url=url) as client:
        body = {"fn_index": 0, "data": [], "session_hash": "abc"}
        assert client.post(JOIN, json=body).status_code == 403
        assert client.get(DATA, params={"session_hash": "abc"}).status_code == 403
        assert client.get("/gradio_api/heartbeat/abc").status_code == 403
        assert client.post(UPLOAD, files={"files": ("x", b"1")}).status_code == 403
        for cookie in ("", "short", "a" * 44, "a" * 42 + "/"):
            headers = {"cookie": f"{gate.COOKIE}={cookie}"}
            assert client.post(JOIN, json=body, headers=headers).status_code == 403


def test_the_cookie_is_for_this_page_alone(url: str) -> None:
    answer = httpx.get(url)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie
    again = httpx.get(url, headers={"cookie": f"{gate.COOKIE}={answer.cookies[gate.COOKIE]}"})
    assert "set-cookie" not in again.headers


# ------------------------------------------------------------------------------------------ other routes


REMOVED = ["/config", "/config/", "/gradio_api/info", "/gradio_api/info/", "/gradio_api/openapi.json", "/login",
           "/logout", "/gradio_api/user", "/gradio_api/token", "/gradio_api/login_check", "/gradio_api/dev/reload",
           "/monitoring", "/monitoring/summary", "/gradio_api/deep_link", "/gradio_api/runs",
           "/gradio_api/queue/status", "/robots.txt",
           "/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd", "/gradio_api/file=http://127.0.0.1:1/",
           "/file=/etc/passwd", "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/vibe-code", "/manifest.json",
           "/gradio_api/custom_component/a/client/b/c", "/gradio_api/stream/a/b/1/playlist.m3u8",
           "/gradio_api/profiling/traces", "/gradio_api/startup-events", "/gradio_api/call/x/y", "/svelte/svelte.js",
           "/static/../config", "/assets/..%2f..%2f..%2fetc/passwd", "/assets/.hidden", "/pwa_icon", "//etc/passwd",
           "/gradio_api/queue/data/", "/gradio_api//queue/data", "/gradio_api/mcp",
           "/gradio_api/theme.css"]  # fmt: skip
WRITES = ["/gradio_api/run/predict", "/gradio_api/api/predict", "/gradio_api/call/predict",
          "/gradio_api/call/v2/predict",
          "/gradio_api/component_server", "/gradio_api/process_recording", "/gradio_api/vibe-edit",
          "/gradio_api/undo-vibe-edit", "/gradio_api/vibe-starter-queries", "/gradio_api/stream/x", "/login", "/",
          "/gradio_api/stream/x/close", "/gradio_api/run-history/connect", "/gradio_api/profiling/clear",
          "/gradio_api/queue/join/", "/gradio_api/queue/data", "/gradio_api/heartbeat/a"]  # fmt: skip


def test_no_other_route_of_gradio_is_there(url: str) -> None:
    with browser(url) as own:
        for path in REMOVED:
            answer = own.client.get(path)
            assert answer.status_code == 404 and answer.json()["detail"], path
        for path in WRITES:
            answer = own.client.post(path, json={"data": [{"path": "/etc/passwd", "meta": META}], "session_hash": "a"})
            assert answer.status_code in (404, 405), path
        for method in ("PUT", "DELETE", "PATCH", "TRACE"):
            assert own.client.request(method, JOIN).status_code in (404, 405)
        assert own.client.get("/?deep_link=../../x&page=config").status_code == 200


EVENTS: list[Any] = [
    b"{", b"[]", b"null", b'{"session_hash": "a"}', b'{"session_hash": "a", "fn_index": 0, "fn_index": 1, "data": []}',
    {"session_hash": "../x", "fn_index": 0, "data": []}, {"session_hash": 7, "fn_index": 10**6, "data": []},
    {"session_hash": "a", "fn_index": "0", "data": []}, {"session_hash": "a", "fn_index": True, "data": []},
    {"session_hash": "a", "fn_index": -1, "data": []}, {"session_hash": "a", "fn_index": 10**30, "data": []},
    {"session_hash": "a", "fn_index": 0, "data": {}}, {"session_hash": "a", "fn_index": 0, "data": [1] * 99},
    {"session_hash": "a", "fn_index": 0, "data": [], "trigger_id": {"a": 1}}, {"fn_index": 0, "data": []},
    {"session_hash": "a", "fn_index": 0, "data": ["x" * (1 << 19)]},
]  # fmt: skip


def test_an_odd_event_is_one_line(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    with browser(url) as own:
        for event in EVENTS:
            content = event if isinstance(event, bytes) else json.dumps(event).encode()
            for path in (JOIN, "/gradio_api/cancel"):
                answer = own.client.post(path, content=content, headers={"content-type": "application/json"})
                assert answer.status_code in (400, 413, 422), (path, content[:80], answer.text)
                assert "\n" not in answer.json()["detail"] and len(answer.json()["detail"]) < 200
    assert not capfd.readouterr().err


def test_values_of_another_type_end_in_no_traceback(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever plain value each event gets: nothing of it is on stderr."""
    with browser(url) as own:
        for event in own.events:
            if event["targets"][0][1] == "load":
                continue
            for value in ("Jane Doe", 7, True, -1e300, None):
                assert own.join(event, [value] * len(event["inputs"])).status_code == 200
            own.results()
    told = capfd.readouterr().err
    assert "Traceback" not in told and "Jane" not in told and "input_value" not in told and told.count("\n") < 10


# ---------------------------------------------------------------------------------------------- room


def test_cancelling_leaves_nothing_behind(url: str, app: Any, service: Service) -> None:
    """Unknown ids, another browser's event, and one's own while it runs."""
    hold = threading.Event()
    with browser(url) as own, browser(url) as other:
        queue = app.routes[-1].app.blocks._queue
        writing = own.event(max(len(event["inputs"]) for event in own.events))
        service.ask(lambda _: hold.wait(30))
        kept = {"fn_index": writing["id"], "session_hash": own.page}
        event = own.join(writing, [None] * len(writing["inputs"])).json()["event_id"]
        while event not in queue.server_app.iterators:
            time.sleep(0.01)
        for number in range(50):
            assert own.client.post(CANCEL, json={**kept, "event_id": secrets.token_hex(16)}).status_code == 200
            answer = other.client.post(CANCEL, json={**kept, "event_id": event, "session_hash": f"{number}"})
            assert answer.status_code == 200
        assert event in queue.server_app.iterators, "another browser ended it"
        assert own.client.post(CANCEL, json={**kept, "event_id": event}).status_code == 200
        assert event not in queue.server_app.iterators
        assert not queue.server_app.iterators_to_reset, "no sweep clears it; Gradio ends the event before it answers"
        hold.set()
        own.results()
        assert own.join(writing, [None] * len(writing["inputs"])).status_code == 200
        assert not queue.server_app.iterators_to_reset
        own.results()


def test_uploads_beyond_the_total_are_refused(url: str, service: Service) -> None:
    codes = []
    for _ in range(6):  # 4 MiB is the total, each is nearly 1 MiB, each of a browser of its own
        with browser(url) as own:
            codes.append(own.upload(b"x" * ((1 << 20) - 1)).status_code)
    assert codes == [200] * 4 + [429] * 2
    service.uploads.__init__(service.uploads.total)  # type: ignore[misc]


@pytest.mark.parametrize(
    "files", [[], [("other", b"1")], [("files", b"1"), ("files", b"2")], [("files", b"x" * (3 << 20))]]
)
def test_an_odd_upload_is_refused(url: str, files: list[tuple[str, bytes]]) -> None:
    with browser(url) as own:
        answer = own.client.post(UPLOAD, files=[(name, ("x", data)) for name, data in files] or None)
        assert answer.status_code in (400, 413, 415, 422) and answer.json()["detail"]


def test_a_page_that_does_not_listen_keeps_no_more_than_its_share(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with browser(url) as own:
        filler = next(event for event in own.events if not event["inputs"] and event["targets"][0][1] == "click")
        codes = [own.join(filler, []).status_code for _ in range(gate.MOST_EVENTS + 2)]
        assert codes == [200] * gate.MOST_EVENTS + [429] * 2
    monkeypatch.setattr(gate, "MOST_EVENTS_OF_ALL", gate.MOST_EVENTS + 1)
    with browser(url) as other:  # the silent page's results go, and this one's come
        assert other.join(filler, []).status_code == other.join(filler, []).status_code == 200
        assert other.results().count("process_completed") == 2


def test_a_hostile_adapters_words_are_words(service: Service, tiny_adapter: Path) -> None:
    """What is Markdown on the page is escaped; the browser's part is in the page's tests."""
    from vlm.app.form import fields

    adapter = Adapter.of(tiny_adapter)
    vital = adapter.config.spec.schema.vitals[0]
    bad = replace(vital, accepts={"[x](https://evil.example)": [1.0, 0.0]})
    schema = replace(adapter.config.spec.schema, vitals=(bad, *adapter.config.spec.schema.vitals[1:]))
    help_ = fields(schema)[0].help
    assert "](" not in help_ and help_.replace("\N{WORD JOINER}", "").count("[x](https://evil.example)") == 1
