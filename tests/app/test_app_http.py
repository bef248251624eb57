"""The HTTP service under right and wrong input, on a real socket."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.http_drafts import TOKENS, VITALS, image, own_answer, png, same
from tests.serving import serving
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.service import Limits, Service
from vlm.inference.engine import ReportEngine
from vlm.report import NOTICE

__all__ = ["image"]  # a fixture


@pytest.fixture(scope="module")
def client(engine: ReportEngine, adapter: Adapter) -> Iterator[httpx.Client]:
    limits = Limits(tokens=TOKENS, upload=1 << 20)
    with Service(engine, limits) as service, serving(make_api(service, adapter)) as address:
        with httpx.Client(base_url=address, timeout=60) as session:
            yield session
        assert not list(service.folder.iterdir()), "an upload was left behind"


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
