"""The HTTP service under load and under wrong input, on a real socket."""

import base64
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import torch

from tests.serving import serving
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.service import Limits, Service, TokenStreamer
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine
from vlm.report import NOTICE

TOKENS = 6
VITALS: list[dict[str, Any]] = [
    {"glucose": 8.7, "bp": "145/90", "sex": "F"},
    {"glucose": "6,4", "systolic": 120},
    {"glu": 156.5, "sex": "male"},
    {},
]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return png(np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8))


@pytest.fixture(scope="module")
def client(engine: ReportEngine, adapter: Adapter) -> Iterator[httpx.Client]:
    limits = Limits(tokens=TOKENS, upload=1 << 20)
    with Service(engine, limits) as service, serving(make_api(service, adapter)) as address:
        with httpx.Client(base_url=address, timeout=60) as session:
            yield session
        assert not list(service.folder.iterdir()), "an upload was left behind"


def png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture)[1].tobytes()


def own_answer(engine: ReportEngine, folder: Path, image: bytes | None, vitals: dict[str, Any]) -> dict[str, Any]:
    """What the engine says by itself, from a file."""
    file = folder / "case.png"
    file.write_bytes(image or b"")
    return engine.predict([(file if image else None, vitals)], max_new_tokens=TOKENS)[0].to_dict()


def same(answer: dict[str, Any], own: dict[str, Any]) -> bool:
    """Probabilities of a batch may differ in the last places."""
    rest = {name: value for name, value in answer.items() if name != "probabilities"}
    return answer["probabilities"] == pytest.approx(own["probabilities"], abs=1e-5) and rest == {
        name: value for name, value in own.items() if name != "probabilities"
    }


def test_form_and_json_give_the_engines_own_report(
    client: httpx.Client, engine: ReportEngine, image: bytes, tmp_path: Path
) -> None:
    own = own_answer(engine, tmp_path, image, VITALS[0])
    as_base64 = base64.b64encode(image).decode()
    requests = [
        {"json": {"image": as_base64, "vitals": VITALS[0]}},
        {"files": {"image": ("x.png", image)}, "data": {"vitals": json.dumps(VITALS[0])}},
        {"files": {"image": ("x.png", image)}, "data": {name: str(value) for name, value in VITALS[0].items()}},
        {"files": {"image": ("no suffix", image)}, "data": {"vitals": '{"glucose": 8.7}', "bp": "145/90", "sex": "F"}},
    ]
    for request in requests:
        answer = client.post("/v1/report", **request)
        assert answer.status_code == 200 and same(answer.json(), own), answer.text
    assert own["notice"] == NOTICE


def test_the_same_report_as_fhir(client: httpx.Client, image: bytes) -> None:
    from fhir.resources.R4B.bundle import Bundle

    sent = {"image": base64.b64encode(image).decode(), "vitals": VITALS[0]}
    ours, answer = (client.post("/v1/report", json={**sent, "format": form}) for form in ("report", "fhir"))
    assert answer.headers["content-type"] == "application/fhir+json"
    Bundle.model_validate(answer.json())
    (report,) = [entry["resource"] for entry in answer.json()["entry"]
                 if entry["resource"]["resourceType"] == "DiagnosticReport"]  # fmt: skip
    kept = "".join(letter for letter in ours.json()["text"] if letter.isprintable())
    assert "".join(filter(str.isprintable, report["conclusion"])) == kept.strip()


def observation(code: str, value: float, unit: str, subject: str = "Patient/1") -> dict[str, Any]:
    coding = {"system": "http://loinc.org", "code": code}
    quantity = {"value": value, "unit": unit, "system": "http://unitsofmeasure.org", "code": unit}
    return {"resourceType": "Observation", "status": "final", "code": {"coding": [coding], "text": "glucose"},
            "subject": {"reference": subject}, "valueQuantity": quantity}  # fmt: skip


def test_observations_stand_in_place_of_vitals(client: httpx.Client) -> None:
    """The tests' schema has no LOINC codes: what has none is found by its name."""
    known, unknown = observation("", 8.7, "mmol/L"), observation("8867-4", 80, "/min")
    known["code"].pop("coding")
    plain = client.post("/v1/report", json={"vitals": {"glucose": 8.7}}).json()
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": r} for r in (known, unknown)]}
    left_out = "left out 1 of 2 Observations: no vital of the adapter has such a code"
    for request in (
        {"json": {"observations": bundle}},
        {"json": {"observations": [known, unknown]}},
        {"files": {"observations": (None, json.dumps(bundle).encode())}},
    ):
        answer = client.post("/v1/report", **request)
        assert answer.status_code == 200, answer.text
        assert same(answer.json(), plain | {"warnings": [left_out, *plain["warnings"]]})


def test_the_indication_is_shown_and_read_from_a_request(client: httpx.Client) -> None:
    plain = client.post("/v1/report", json={}).json()
    shown = client.post("/v1/report", json={"context": "Cough."}).json()
    assert shown["text"] != plain["text"] and shown["sections"] == {}
    asked = {"resourceType": "ServiceRequest", "status": "active", "reasonCode": [{"text": "Cough."}]}
    for request in (
        {"files": {"context": (None, b"Cough.")}},
        {"json": {"observations": asked}},
        {"files": {"observations": (None, json.dumps(asked).encode())}},
    ):
        assert same(client.post("/v1/report", **request).json(), shown)
    both = client.post("/v1/report", json={"observations": asked, "context": "Fever."}).json()
    assert "left out the reason of a ServiceRequest: a context is given" in both["warnings"]
    bundle = client.post("/v1/report", json={"context": "Cough.", "format": "fhir"}).json()
    reasons = [entry["resource"].get("reasonCode") for entry in bundle["entry"]]
    assert [reason for reason in reasons if reason] == [[{"text": "Cough."}]]


def test_nothing_given_is_a_case_too(client: httpx.Client, engine: ReportEngine, tmp_path: Path) -> None:
    answer = client.post("/v1/report", json={})
    assert answer.status_code == 200 and same(answer.json(), own_answer(engine, tmp_path, None, {}))
    assert answer.json()["warnings"][:2] == ["not given: glucose, systolic, diastolic, sex", "no image given"]


def test_an_implausible_value_is_a_warning(client: httpx.Client) -> None:
    answer = client.post("/v1/report", json={"vitals": {"glucose": 500}})
    assert answer.status_code == 200
    assert answer.json()["warnings"][0] == "glucose 500 is not plausible and was taken as missing"


def huge() -> bytes:
    """A PNG of 65,000 × 65,000 pixels in 100 bytes."""
    small = bytearray(png(np.zeros((4, 4), np.uint8)))
    small[16:24] = (65000).to_bytes(4, "big") * 2
    return bytes(small)


BAD_FILES = {
    "truncated": (png(np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8))[:300], "not a readable"),
    "text": (b"this is no picture", "not a readable image"),
    "empty": (b"", "not a readable image"),
    "huge": (huge(), "image"),
    "dicom": (bytes(128) + b"DICM" + bytes(range(256)) * 4, "no image"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_the_clients_mistake(client: httpx.Client, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    data, message = BAD_FILES[kind]
    answer = client.post("/v1/report", files={"image": ("jane-doe.png", data)})
    detail = answer.json()["detail"]
    assert answer.status_code == 422 and detail.startswith("image: ") and message in detail
    assert "\n" not in detail and "/" not in detail and "jane-doe" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("request_", "code", "detail"),
    [
        ({"json": {"vitals": {"glucos": 8}}}, 422, "vitals: unknown vital glucos; did you mean glucose?"),
        ({"data": {"glucos": "8"}}, 415, "send multipart/form-data or application/json, not application/x-www-form"),
        ({"json": {"vitals": {"glucose": "high"}}}, 422, "vitals: glucose: 'high' is not a number (mmol/L)"),
        ({"json": {"vitals": {"glucose": 1, "glu": 2}}}, 422, "vitals: glucose and glu both give glucose"),
        ({"json": {"vitals": {"bp": "high"}}}, 422, "vitals: bp: 'high' is no blood pressure"),
        ({"json": {"vitals": {"sex": 7}}}, 422, "vitals: sex: '7' is none of F, M"),
        ({"json": {"vitals": {"glucose": [1]}}}, 422, "vitals: glucose"),
        ({"json": {"vitals": []}}, 422, "vitals: "),
        ({"json": {"vital": {}}}, 422, "vital: "),
        ({"json": {"format": "pdf"}}, 422, "format: "),
        ({"json": {"image": "%%%"}}, 400, "image: not valid base64"),
        ({"json": {"context": "x" * 2001}}, 422, "context: 2,001 characters, at most 2,000"),
        ({"json": {"context": "\N{SNOWMAN}" * 1900}}, 422, "context: too long; the prompt has"),
        ({"json": [1]}, 422, "body: "),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "body: Invalid JSON"),
        ({"content": b'{"context": "\\ud800"}', "headers": {"content-type": "application/json"}}, 400, "body: "),
        ({"content": b"x", "headers": {"content-type": "text/plain"}}, 415, "not text/plain"),
        ({"content": b"x"}, 415, "not an untyped body"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "boundary"),
        ({"files": {"vitals": ("v.json", b"{}")}}, 422, "vitals: is no file field"),
        (
            {"files": [("image", ("a", b"1")), ("image", ("b", b"2"))]},
            422,
            "2 images were given; the adapter reads one: it was trained on one a case",
        ),
        ({"files": [("image", ("a", b"1"))] * 33}, 400, "Too many files"),
        ({"files": {"glucose": (None, b"1"), "vitals": (None, b'{"glucose": 2}')}}, 422, "glucose is given twice"),
        ({"files": {"vitals": (None, b"glucose=2")}}, 400, "vitals: not valid JSON"),
        ({"files": {"vitals": (None, b"[1]")}}, 422, "vitals: one JSON object"),
        ({"json": {"vitals": {"glucose": 1}, "observations": []}}, 422, "observations: stand in place of vitals"),
        ({"json": {"observations": {"resourceType": "Patient"}}}, 422, "observations: a Patient; give a Bundle"),
        (
            {"json": {"observations": [observation("1", 1, "", "Patient/1"), observation("1", 1, "", "Patient/2")]}},
            422,
            "observations: Observations of 2 subjects",
        ),
        ({"files": {"observations": (None, b"{")}}, 400, "observations: not valid JSON"),
        ({"files": {"vitals": (None, b"\xff\xfe")}}, 400, "vitals: not valid JSON"),
        ({"files": {"image": (None, b"text")}}, 422, "image: send it as a file"),
    ],
)
def test_a_wrong_field_is_named(client: httpx.Client, request_: dict[str, Any], code: int, detail: str) -> None:
    answer = client.post("/v1/report", **request_)
    assert answer.status_code == code, answer.text
    assert detail in answer.json()["detail"] and "\n" not in answer.json()["detail"]


def test_what_is_too_large_is_refused_before_it_is_read(client: httpx.Client) -> None:
    over = b"x" * ((1 << 20) + 1)
    answer = client.post("/v1/report", files={"image": ("x.png", over)})
    assert answer.status_code == 413 and answer.json()["detail"] == "image: larger than 1 MiB"
    assert client.post("/v1/report", content=b"x" * (3 << 20)).status_code == 413
    pieces = (b"x" * (1 << 18) for _ in range(12))  # sent in chunks, without a length
    headers = {"content-type": "application/json"}
    assert client.post("/v1/report", content=pieces, headers=headers).status_code == 413


def test_the_schema_says_what_can_be_sent(client: httpx.Client, adapter: Adapter) -> None:
    schema = client.get("/v1/schema").json()
    assert [vital["name"] for vital in schema["vitals"]] == ["glucose", "systolic", "diastolic", "sex"]
    assert schema["labels"] == ["pathology", "effusion"] and schema["adapter_digest"] == adapter.software.adapter
    assert schema["limits"]["upload"] == 1 << 20 and schema["limits"]["tokens"] == TOKENS
    assert client.get("/healthz").json() == {"status": "ok", "waiting": 0}


def test_the_documentation_needs_no_other_host(client: httpx.Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/report"]["post"]
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert {"200", "400", "413", "415", "422", "429", "503"} <= set(operation["responses"])
    page = client.get("/docs").text
    assert "swagger-ui" in page and "https://" not in page
    scripts = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert scripts and all(client.get(script).status_code == 200 for script in scripts)


# ------------------------------------------------------------------------------------------------ load


def crowd(engine: ReportEngine, adapter: Adapter, folder: Path, image: bytes, count: int, waiting: int) -> Counter[int]:
    """32 clients ask `count` times in all; returns how often each status came, every 200 being the engine's own."""
    cases = [(picture, vitals) for picture in (image, None) for vitals in VITALS]
    own = [own_answer(engine, folder, *case) for case in cases]
    codes: Counter[int] = Counter()
    with Service(engine, Limits(tokens=TOKENS, waiting=waiting)) as service, serving(make_api(service, adapter)) as url:

        def ask(number: int) -> None:
            picture, vitals = cases[number % len(cases)]
            files = {"image": ("x.png", picture)} if picture else {"context": (None, b"")}
            answer = sessions[number % 32].post("/v1/report", files=files, data={"vitals": json.dumps(vitals)})
            codes[answer.status_code] += 1
            if answer.status_code == 200:
                assert same(answer.json(), own[number % len(cases)])
            else:
                assert "try again" in answer.json()["detail"] and int(answer.headers["retry-after"]) >= 1

        sessions = [httpx.Client(base_url=url, timeout=120) for _ in range(32)]
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(ask, range(count)))
        for session in sessions:
            session.close()
        settled = time.monotonic() + 30  # an answer is sent a moment before its draft is counted out
        while service.waiting and time.monotonic() < settled:
            time.sleep(0.01)
        assert service.waiting == 0 and not list(service.folder.iterdir())
    return codes


def test_a_crowd_is_served_and_what_is_beyond_the_queue_told_to_wait(
    engine: ReportEngine, adapter: Adapter, image: bytes, tmp_path: Path
) -> None:
    assert crowd(engine, adapter, tmp_path, image, 160, waiting=32) == {200: 160}
    codes = crowd(engine, adapter, tmp_path, image, 160, waiting=4)
    assert set(codes) == {200, 429} and codes[200] >= 4


@pytest.mark.soak
def test_a_thousand_requests(engine: ReportEngine, adapter: Adapter, image: bytes, tmp_path: Path) -> None:
    assert crowd(engine, adapter, tmp_path, image, 1000, waiting=32) == {200: 1000}
    assert set(crowd(engine, adapter, tmp_path, image, 1000, waiting=8)) == {200, 429}


# --------------------------------------------------------------------------------------------- service


def test_words_come_while_a_batch_is_written(engine: ReportEngine) -> None:
    with Service(engine, Limits(tokens=12)) as service:
        hold = threading.Event()
        service.ask(lambda _: hold.wait(10))  # the drafts gather behind it
        drafts = [service.draft(service.prepare(None, vitals)) for vitals in VITALS]
        seen: list[list[str]] = [[] for _ in drafts]
        hold.set()
        while not all(draft.result.done() for draft in drafts):
            for draft, texts in zip(drafts, seen, strict=True):
                if draft.text not in texts:
                    texts.append(draft.text)
            time.sleep(0.0005)
        for draft, texts, vitals in zip(drafts, seen, VITALS, strict=True):
            report = draft.result.result()
            assert report.text == engine.predict([(None, vitals)], max_new_tokens=12)[0].text
            assert draft.text == report.text.rstrip("\N{REPLACEMENT CHARACTER}") and all(
                report.text.startswith(text) for text in texts
            )
        assert max(map(len, seen)) > 2, "the words came all at once"


def test_a_draft_that_takes_too_long_is_given_up(
    engine: ReportEngine, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    put = TokenStreamer.put

    def counted(streamer: TokenStreamer, value: torch.Tensor) -> None:
        written.append(value.numel())
        put(streamer, value)

    monkeypatch.setattr(TokenStreamer, "put", counted)
    limits = Limits(tokens=400, seconds=0.05)
    with Service(engine, limits) as service, serving(make_api(service, adapter)) as url:
        answer = httpx.post(f"{url}/v1/report", json={}, timeout=60)
        assert answer.status_code == 503 and "time limit" in answer.json()["detail"]
        while service.waiting:
            time.sleep(0.01)
        assert len(written) < 200, "the model went on for nobody"
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_defect_is_told_without_the_case(
    engine: ReportEngine, adapter: Adapter, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("Jane Doe, glucose 8.7")

    with Service(engine) as service, serving(make_api(service, adapter)) as url:
        monkeypatch.setattr(service.engine, "reports", broken)
        answer = httpx.post(f"{url}/v1/report", json={}, timeout=60)
        assert (
            answer.status_code == 500
            and answer.json()["detail"] == "this failed on our side; the server's log says where"
        )
        monkeypatch.undo()
        assert httpx.post(f"{url}/v1/report", json={"vitals": {"glucose": 8}}, timeout=60).status_code == 200
    told = capfd.readouterr().err
    assert "ValueError in test_app_http.py" in told and "Jane" not in told and "Traceback" not in told


def test_what_a_client_left_is_swept(engine: ReportEngine) -> None:
    with Service(engine) as service:
        (service.folder / "upload").mkdir()
        old, new = service.folder / "upload" / "old", service.folder / "new"
        for file in (old, new):
            file.write_bytes(b"half an image")
        os.utime(old, (0, 0))
        service.remove_expired()
        assert new.exists() and not old.exists()
    assert not service.folder.exists()


def test_a_user_error_of_one_draft_is_its_own(engine: ReportEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm.app.service.LONGEST_PROMPT", 200)
    with Service(engine, Limits(tokens=2)) as service:
        hold = threading.Event()
        service.ask(lambda _: hold.wait(10))
        long, short = (service.draft(service.prepare(None, {}, text)) for text in ("\N{SNOWMAN}" * 100, "cough"))
        hold.set()
        assert short.result.result(30).text
        with pytest.raises(UserError, match="context: too long"):
            long.result.result(30)
