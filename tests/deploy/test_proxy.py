"""The reverse proxy's example: its limits are those of the service, and a real nginx with it keeps strangers out."""

import base64
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.http_drafts import png
from tests.serving import serving
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.bodies import IDLE_SECONDS
from vlm.app.connections import HEAD_SECONDS, PIECE, READER_SECONDS
from vlm.app.guard import Access
from vlm.app.page import add_page
from vlm.app.service import Limits, Service
from vlm.cli import build_parser
from vlm.inference.engine import ReportEngine

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
TEXT = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
NAME = "vlm.ward-7.example"
TOKEN = "0123456789abcdef"
USER = ("reader", "a password")


def given(directive: str) -> str:
    """The words of a directive that stands once."""
    (words,) = re.findall(rf"^\s*{directive} ([^;]+);", TEXT, re.M)
    return str(words)


def test_its_limits_are_those_of_the_service() -> None:
    defaults = build_parser().parse_args(["serve"])
    largest = (defaults.max_upload << 20) * 4 // 3 + (1 << 20)
    body = int(given("client_max_body_size").removesuffix("m")) << 20
    assert largest <= body < largest + (1 << 20)
    count, size = given("large_client_header_buffers").split()
    assert int(count) * (int(size.removesuffix("k")) << 10) == PIECE
    assert given("client_header_timeout") == f"{HEAD_SECONDS:g}s" and given("send_timeout") == f"{READER_SECONDS:g}s"
    assert given("client_body_timeout") == f"{IDLE_SECONDS:g}s"
    assert int(given("proxy_read_timeout").removesuffix("s")) > defaults.max_seconds
    assert set(re.findall(r"proxy_pass ([^;]+);", TEXT)) == {f"http://{defaults.host}:{defaults.port}"}
    assert given("server_name") == NAME


@pytest.fixture(scope="module")
def proxy(engine: ReportEngine, adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """nginx with the example before the whole service; only places and ports are changed."""
    if not shutil.which("nginx") or not shutil.which("openssl"):
        pytest.skip("nginx and openssl are not installed")
    folder = tmp_path_factory.mktemp("nginx")
    access = Access.of("127.0.0.1", [NAME], TOKEN.encode())
    with Service(engine, Limits(tokens=4)) as service:
        app = add_page(make_api(service, adapter, access), service, adapter)
        with serving(app) as address, running(folder, address.rpartition(":")[2]) as port:
            named = {"headers": {"host": NAME}, "verify": False, "timeout": 60}
            with httpx.Client(base_url=f"https://127.0.0.1:{port}", **named) as client:
                yield client
    warned = (folder / "clinical-vlm.log").read_text()  # nginx warns of each "… is buffered to a temporary file"
    assert "temporary file" not in warned, "a case was written to disk"


@contextmanager
def running(folder: Path, upstream: str) -> Iterator[str]:
    """Run nginx before the service at a port while the block runs; gives its own port."""
    port = prepare(folder, upstream)
    words = ["nginx", "-p", str(folder), "-e", str(folder / "errors"), "-c", str(folder / "nginx.conf")]
    checked = subprocess.run([*words, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen(words)
    try:
        while process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def prepare(folder: Path, upstream: str) -> str:
    """Write the example with other places and ports, a certificate, a user and the token; returns the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    key = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}"]
    names = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    subprocess.run([*key, *names], check=True, capture_output=True)
    (folder / "users").write_text(f"{USER[0]}:{{PLAIN}}{USER[1]}\n")
    (folder / "token.conf").write_text(f'proxy_set_header Authorization "Bearer {TOKEN}";\n')
    site = TEXT.replace("/etc/clinical-vlm", str(folder)).replace(
        "/var/log/nginx/clinical-vlm.log crit", f"{folder}/clinical-vlm.log warn"
    )
    site = site.replace("listen 443", f"listen 127.0.0.1:{port}").replace("    listen [::]:443 ssl;\n", "")
    (folder / "site.conf").write_text(site.replace("127.0.0.1:7860", f"127.0.0.1:{upstream}"))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"  {kind}_temp_path {folder}/body/{kind};\n" for kind in kinds)
    (folder / "body").mkdir()
    user = "user root;\n" if os.name == "posix" and os.getuid() == 0 else ""  # the folder is this user's alone
    main = f"{user}daemon off;\npid {folder}/pid;\nevents {{}}\nhttp {{\n{places}  include {folder}/site.conf;\n}}\n"
    (folder / "nginx.conf").write_text(main)
    return port


def test_nobody_drafts_without_a_user_and_the_token_stays_inside(proxy: httpx.Client) -> None:
    for given_by in (None, (USER[0], "another"), ("", TOKEN)):
        for answer in (proxy.get("/", auth=given_by), proxy.post("/v1/report", json={}, auth=given_by)):
            assert answer.status_code == 401 and TOKEN not in str(answer.headers) + answer.text
    bearer = proxy.get("/v1/schema", headers={"authorization": f"Bearer {TOKEN}"})
    assert bearer.status_code == 401, "who knows the token is no user"
    assert proxy.get("/healthz").json()["status"] == "ok"


def test_a_user_gets_the_page_and_a_draft(proxy: httpx.Client) -> None:
    page = proxy.get("/", auth=USER)
    assert page.status_code == 200 and "Secure" in page.headers["set-cookie"], "the service knows that it is TLS"
    assert "max-age" in page.headers["strict-transport-security"]
    assert "no-store" in page.headers["cache-control"], "the service's own headers come through"
    image = png(
        np.random.default_rng(0).integers(0, 256, (600, 600), dtype=np.uint8)
    )  # more than nginx holds in memory
    answer = proxy.post("/v1/report", files={"image": ("x.png", image)}, data={"glucose": "8.7"}, auth=USER)
    assert answer.status_code == 200 and answer.json()["vitals"]["glucose"] == 8.7
    own = proxy.post("/v1/report", json={}, headers={"origin": f"https://{NAME}"}, auth=USER)
    other = proxy.post("/v1/report", json={}, headers={"origin": "https://elsewhere.example"}, auth=USER)
    assert (own.status_code, other.status_code) == (200, 403)


def test_a_body_beyond_the_services_is_refused_at_the_door(proxy: httpx.Client) -> None:
    login = base64.b64encode(":".join(USER).encode()).decode()
    head = (f"POST /v1/report HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: Basic {login}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {(87 << 20) + 1}\r\n\r\n")  # fmt: skip
    strange = ssl.create_default_context()
    strange.check_hostname, strange.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", proxy.base_url.port or 0), 10) as plain,
        strange.wrap_socket(plain) as connection,
    ):
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413"), "before a byte of it is sent"
