"""What a stranger's request may not do: speak to the server unasked, read a file, take it all."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving import serving
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.guard import Access, read_token
from vlm.app.serve import reserve
from vlm.app.service import Limits, Service
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine

TOKEN = b"0123456789abcdef"
PATHS = ["/", "/v1/schema", "/docs", "/openapi.json", "/theme.css", "/gradio_api/app_id", "/nowhere"]


@pytest.fixture(scope="module")
def service(engine: ReportEngine) -> Iterator[Service]:
    with Service(engine, Limits(tokens=4, upload=1 << 20)) as made:
        yield made


@pytest.fixture(scope="module")
def url(service: Service, adapter: Adapter) -> Iterator[str]:
    """The whole server, page and routes, as the program serves it."""
    from vlm.app.page import add_page

    with serving(add_page(make_api(service, adapter), service, adapter)) as address:
        yield address


@pytest.fixture(scope="module")
def guarded(service: Service, adapter: Adapter) -> Iterator[str]:
    """One that asks for a token, and has a name of its own."""
    from vlm.app.page import add_page

    access = Access.of("0.0.0.0", ["VLM.ward-7.example"], TOKEN)
    with serving(add_page(make_api(service, adapter, access), service, adapter)) as address:
        yield address


def raw(url: str, request: bytes, seconds: float = 5) -> bytes:
    """What the server says to these bytes."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), seconds) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


# ------------------------------------------------------------------------------------------ who may speak


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "host",
    ["evil.example", "xn--localhost", "", "localhost.", "127.0.0.1.evil.example", "localhost.evil.example",
     "evil.example:7860", "localhost@evil.example", "localhost:", "localhost:7860:1", "[::2]", "10.0.0.1", "127.0.0.2",
     "0.0.0.0"],
)  # fmt: skip
def test_another_name_is_refused_everywhere(url: str, host: str, path: str) -> None:
    answer = raw(url, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    assert answer.split()[1] == b"421" and b"--allowed_hosts" in answer, answer[:300]


def test_no_name_or_two_are_refused(url: str) -> None:
    for lines in ("", "Host: localhost\r\nHost: evil.example\r\n"):
        answer = raw(url, f"GET /healthz HTTP/1.0\r\n{lines}\r\n".encode())
        assert answer.split()[1] in (b"400", b"421"), answer


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:99"])
def test_its_own_names_are_answered(url: str, host: str) -> None:
    assert httpx.get(f"{url}/healthz", headers={"host": host}).json() == {"status": "ok", "waiting": 0}


def test_a_name_is_added_by_the_option(guarded: str) -> None:
    own = {"authorization": f"Bearer {TOKEN.decode()}"}
    assert httpx.get(f"{guarded}/v1/schema", headers={**own, "host": "vlm.ward-7.example:80"}).status_code == 200
    assert httpx.get(f"{guarded}/v1/schema", headers={**own, "host": "ward-7.example"}).status_code == 421


@pytest.mark.parametrize("name", ["*", "*.example", "http://a.example", "a.example:80", "a/b", "", "a b", "-"])
def test_a_name_that_is_none_is_named(name: str) -> None:
    with pytest.raises(UserError, match=r"--allowed_hosts: .* is no host name"):
        Access.of("127.0.0.1", [name], b"")


FOREIGN: list[dict[str, str]] = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:1"},
    {"origin": "http://127.0.0.1"},
    {"origin": "file://"},
    {"origin": "chrome-extension://abc"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda it: " ".join(it.values()))
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "PUT"])
def test_another_web_page_is_refused(url: str, method: str, headers: dict[str, str]) -> None:
    for path in ("/v1/report", "/v1/schema", "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/upload"):
        answer = httpx.request(method, url + path, headers=headers, content=b"{}" if method == "POST" else None)
        assert answer.status_code == 403 and "another web page" in answer.json()["detail"]
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "origin", "code"),
    [
        ("localhost", "http://localhost", 200),
        ("localhost:80", "http://localhost", 200),
        ("localhost", "http://localhost:80", 200),
        ("localhost:443", "https://localhost", 200),
        ("localhost", "HTTPS://LOCALHOST", 200),
        ("[::1]:99", "http://[::1]:99", 200),
        ("localhost:443", "http://localhost", 403),
        ("localhost:443", "http://localhost:80", 403),
        ("localhost:80", "https://localhost", 403),
        ("localhost:80", "http://localhost:443", 403),
        ("localhost", "http://localhost:443", 403),
        ("localhost", "http://localhost.", 403),
        ("localhost", "http://a@localhost", 403),
        ("localhost", "ws://localhost", 403),
        ("localhost", "//localhost", 403),
        ("localhost", "", 403),
    ],
)
def test_an_origin_is_ours_at_the_port_of_its_scheme_alone(url: str, host: str, origin: str, code: int) -> None:
    headers = {"host": host, "origin": origin}
    assert httpx.get(f"{url}/v1/schema", headers=headers).status_code == code


def test_a_cross_site_form_is_not_drafted(url: str) -> None:
    headers = {"origin": "https://evil.example", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert httpx.post(f"{url}/v1/report", headers=headers, files={"glucose": (None, b"8")}).status_code == 403


def test_programs_and_links_are_answered(url: str) -> None:
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert httpx.get(url, headers=link).status_code == 200
    assert httpx.post(f"{url}/v1/report", json={}).status_code == 200
    own = {"origin": url, "sec-fetch-site": "same-origin"}
    assert httpx.post(f"{url}/v1/report", json={}, headers=own).status_code == 200


def test_a_websocket_is_closed(url: str) -> None:
    head = b"GET /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example\r\n"
    upgrade = b"Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    assert raw(url, head + upgrade + b"Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\n\r\n").split()[1] == b"403"


# ------------------------------------------------------------------------------------------------ token


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "given",
    [None, "", "Bearer", f"Bearer {TOKEN.decode()}x", f"Bearer {TOKEN.decode()[:-1]}", "Basic !!!",
     "Basic dXNlcjpwYXNz", f"Digest {TOKEN.decode()}", TOKEN.decode(), "Bearer \xe9" + 15 * "a"],
)  # fmt: skip
def test_without_its_token_nothing_is_answered(guarded: str, path: str, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given.encode("latin-1")}
    answer = httpx.get(guarded + path, headers=headers)  # type: ignore[arg-type]
    assert answer.status_code == 401 and answer.headers["www-authenticate"].startswith("Basic ")
    assert answer.headers["cache-control"] == "no-store"


def test_the_token_opens_as_bearer_and_as_password(guarded: str) -> None:
    bearer = {"authorization": f"bearer {TOKEN.decode()}"}
    assert httpx.post(f"{guarded}/v1/report", json={}, headers=bearer).status_code == 200
    assert httpx.get(guarded, auth=("anyone", TOKEN.decode())).status_code == 200
    assert httpx.get(f"{guarded}/healthz").json() == {"status": "ok", "waiting": 0}


def test_a_token_is_read_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_bytes(TOKEN + b"\n")
    file.chmod(0o600)
    assert read_token(None) == b"" and read_token(file) == TOKEN and not capsys.readouterr().err
    file.chmod(0o644)
    assert read_token(file) == TOKEN and "chmod 600" in capsys.readouterr().err
    monkeypatch.setenv("CLINICAL_VLM_TOKEN", TOKEN.decode())
    assert read_token(None) == TOKEN
    assert "CLINICAL_VLM_TOKEN" not in os.environ
    for wrong in ("", "short", "with spaces in the middle", "ünicode" * 4):
        monkeypatch.setenv("CLINICAL_VLM_TOKEN", wrong)
        with pytest.raises(UserError, match="CLINICAL_VLM_TOKEN: a token is at least 16"):
            read_token(None)
    with pytest.raises(UserError, match=r"--token_file: .*: No such file"):
        read_token(tmp_path / "none")


@pytest.mark.parametrize("host", ["a" * 70, "a..b", "", "nowhere.invalid"])
def test_a_host_that_is_none_is_one_line(host: str) -> None:
    with pytest.raises(UserError, match=f"^--host, --port: cannot listen on {host}:1: "):
        reserve(host, 1)


# ---------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("path", ["/", "/v1/schema", "/healthz", "/docs", "/openapi.json", "/nowhere", "/theme.css"])
def test_every_answer_is_marked_for_browsers(url: str, path: str) -> None:
    headers = httpx.get(url + path).headers
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"
    assert "camera=()" in headers["permissions-policy"] and "server" not in headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "http" not in policy
    scripts = [part for part in policy.split("; ") if part.startswith("script-src")]
    assert all("unsafe-inline" not in part and "nonce-" in part for part in scripts)
    assert bool(scripts) == (path in ("/", "/docs"))


@pytest.mark.parametrize("folder", ["assets", "static", "static/fonts", "static-offline-docs"])
def test_a_name_that_no_file_may_have_is_not_found(url: str, folder: str) -> None:
    assert httpx.get(f"{url}/{folder}/{'a' * 5000}").status_code == 404


NO_HTTP = {
    "another protocol": b"\x16\x03\x01\x00\xa5\x01\x00\r\n\r\n",
    "no path": b"GET\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "two lengths": b"POST /v1/report HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "another coding": b"POST /v1/report HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
    "NUL": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http_gets_a_marked_answer(url: str, name: str) -> None:
    head = raw(url, NO_HTTP[name]).lower().partition(b"\r\n\r\n")[0].decode()
    assert head.startswith("http/1.1 400 ")
    for line in ("x-content-type-options: nosniff", "x-frame-options: deny", "referrer-policy: no-referrer",
                 "cache-control: no-store", "content-security-policy: default-src 'none'"):  # fmt: skip
        assert f"\r\n{line}" in head
    assert "\r\nserver:" not in head


def test_a_nonce_is_of_one_answer(url: str) -> None:
    first, second = httpx.get(url), httpx.get(url)
    assert first.headers["content-security-policy"] != second.headers["content-security-policy"]
    nonce = first.headers["content-security-policy"].split("'nonce-")[1].split("'")[0]
    assert first.text.count("<script") == first.text.count(f'<script nonce="{nonce}"') > 3
