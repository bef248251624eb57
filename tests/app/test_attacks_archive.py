"""An archive that misbehaves, is slow or is down, and a full disk: one line, a status, and nobody else held up."""

import threading
import time

import httpx
import pytest

from tests.archived_studies import SECRETS, STUDY, Ward, ask, drafted, server, ward
from tests.dicomweb_server import DicomWebServer
from tests.orthanc_server import credentials
from vlm.inference.dicomweb import archive

__all__ = ["credentials", "server", "ward"]  # fixtures


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("401", 502, "the archive: answered 401: it wants credentials"),
        ("503", 502, "the archive: answered 503: it failed"),
        ("404", 404, "the archive: answered 404: it has no such study"),
        ("redirect", 502, "the archive: leads to another address"),
        ("compressed", 502, "the archive: the answer is compressed"),
        ("other", 502, "the archive: answered with no DICOMweb"),
        ("cut", 502, "the archive: cannot be reached or broke off"),
        ("endless", 502, "the archive: the study is larger than 1 MiB"),
        ("slow", 504, "the archive: did not answer whole within 2 s"),
    ],
)  # fmt: skip
def test_an_archive_that_misbehaves_is_one_line_and_a_status(
    fault: str, status: int, message: str, ward: Ward, server: DicomWebServer, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setattr(archive, "LARGEST_STUDY", 1 << 20)
    server.fault = fault
    with ward.open(server.url, seconds=2 if fault == "slow" else 60) as client:
        answer = ask(client)
    assert (answer.status_code, answer.json()["detail"][: len(message)]) == (status, message)
    said = "".join(capfd.readouterr())
    assert STUDY not in said and not any(secret in said for secret in SECRETS)


def test_an_archive_that_is_down_or_does_not_store_is_said(ward: Ward, server: DicomWebServer) -> None:
    with DicomWebServer() as gone:
        url = gone.url
    with ward.open(url) as client:
        answer = ask(client)
    assert answer.status_code == 502 and "cannot be reached or broke off" in answer.json()["detail"]
    server.fault = "silent"
    with ward.open(server.url, store=True) as client:
        answer = ask(client, store=True)
    assert answer.status_code == 502 and "does not say that it stored the draft" in answer.json()["detail"]


def test_a_full_disk_is_a_line_for_the_operator_alone(
    ward: Ward, server: DicomWebServer, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "write_file", full)
    with ward.open(server.url) as client:
        answer = ask(client)
    assert answer.status_code == 500 and "the server's log says where" in answer.json()["detail"]
    assert "UserError in atomic.py" in capfd.readouterr().err


def test_a_slow_archive_holds_up_nobody_but_who_asks_it(ward: Ward, server: DicomWebServer) -> None:
    server.fault = "slow"
    with ward.open(server.url, seconds=4, waiting=2) as client:
        slow: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: slow.append(ask(client))) for _ in range(2)]
        for thread in threads:
            thread.start()
        waiting = time.monotonic() + 3
        while len(server.seen) < 1 and time.monotonic() < waiting:
            time.sleep(0.01)
        time.sleep(0.2)
        assert len(server.seen) == 1, "one request at a time asks the archive"
        assert drafted(client.post("/v1/report", json={"vitals": {}})) and not slow, "others are not held up"
        more = ask(client)
        assert more.status_code == 429 and int(more.headers["retry-after"]) >= 1
        for thread in threads:
            thread.join(30)
    codes = {answer.status_code for answer in slow}
    assert len(slow) == 2 and 504 in codes and codes <= {503, 504}, "the second waits for its turn, or has no time left"
