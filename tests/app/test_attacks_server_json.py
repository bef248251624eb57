"""What a request's content may not do: mean two things, take a wrong type for a value, end in a traceback."""

import json
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from tests.serving import serving_drafts
from vlm.adapter import load
from vlm.app.about import Adapter
from vlm.app.bodies import read_json
from vlm.inference.engine import ReportEngine


@pytest.fixture(scope="module")
def url(tiny_adapter: Path) -> Iterator[str]:
    adapter, engine = Adapter.of(tiny_adapter), ReportEngine(load(tiny_adapter))
    with serving_drafts(engine, adapter, tokens=4, upload=1 << 20) as address:
        yield address


def as_json(text: str | bytes) -> dict[str, Any]:
    return {"content": text, "headers": {"content-type": "application/json"}}


def as_field(name: str, text: str) -> dict[str, Any]:
    return {"files": {name: (None, text.encode())}}


TWICE = ['{"vitals": {"glucose": 8, "glucose": 9}}', '{"vitals": {}, "vitals": {"glucose": 9}}',
         '{"context": "a", "context": "b"}',
         '{"observations": [{"resourceType": "Observation", "resourceType": "Patient"}]}',
         '{"observations": {"resourceType": "Bundle", "entry": [{"resource": {"status": "a", "status": "final"}}]}}',
         '{"format": "fhir", "form\\u0061t": "report"}', '{"image": "", "image": "QUJD"}']  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "code", "detail"),
    [
        *((as_json(text), 400, "stands there twice") for text in TWICE),
        (as_field("vitals", '{"glucose": 8, "glucose": 9}'), 400, "vitals: the key 'glucose' stands there twice"),
        (as_field("observations", '[{"a": {"b": 1, "b": 2}}]'), 400, "observations: the key 'b' stands there twice"),
        (as_json('{"vitals": {"glucose": true}}'), 422, "vitals: glucose: true and false are no value of a vital"),
        (as_json('{"vitals": {"glucose": false}}'), 422, "vitals: glucose: true and false are no value of a vital"),
        (as_json('{"vitals": {"sex": true}}'), 422, "vitals: sex: true and false are no value of a vital"),
        (as_field("vitals", '{"glucose": true}'), 422, "vitals: glucose: true and false are no value of a vital"),
        (as_json('{"vitals": {"glucose": {"value": 8}}}'), 422, "vitals: glucose: give a number or a text"),
        (as_json('{"vitals": {"glucose": [8]}}'), 422, "vitals: glucose: give a number or a text"),
        (as_json('{"vitals": {"glucose": "' + "8" * 201 + '"}}'), 422, "vitals: glucose: longer than 200"),
        (as_json('{"vitals": {"glucose": NaN}}'), 400, "body: NaN is no number"),
        (as_json('{"vitals": {"glucose": -Infinity}}'), 400, "body: -Infinity is no number"),
        (as_json('{"vitals": {"glucose": 1e999}}'), 400, "body: a number is too large"),
        (as_json('{"vitals": {"glucose": ' + "9" * 5000 + "}}"), 400, "body: a number is too large"),
        (as_field("vitals", '{"glucose": NaN}'), 400, "vitals: NaN is no number"),
        (as_json("[" * 100_000), 400, "body: "),
        (as_json("[" * 900 + "]" * 900), 400, "body: nested deeper than 32 levels"),
        (as_json('{"observations": ' + "[" * 50 + "]" * 50 + "}"), 400, "body: nested deeper than 32 levels"),
        (as_json("[" + "[]," * 200_000 + "[]]"), 400, "body: more than 100,000 values"),
        (as_json(b'{"context": "\xff"}'), 400, "body: Invalid JSON"),
        (as_json('{"context": 7}'), 422, "context: "),
        (as_json('{"context": null}'), 422, "context: "),
        (as_json('{"image": {"path": "/etc/passwd"}}'), 422, "image: "),
        (as_json('{"image": ["QUJD"]}'), 422, "image: "),
        (as_json("null"), 422, "body: "),
        (as_json('"text"'), 422, "body: "),
        (as_json(""), 400, "body: Invalid JSON"),
        (as_field("observations", '"text"'), 422, "observations: "),
    ],
)
def test_json_means_one_thing_or_is_refused(
    url: str, request_: dict[str, Any], code: int, detail: str, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = httpx.post(f"{url}/v1/report", timeout=30, **request_)
    assert answer.status_code == code, answer.text
    assert detail in answer.json()["detail"] and "\n" not in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 300 and not capfd.readouterr().err


@pytest.mark.parametrize(
    "request_",
    [
        {"json": {"vitals": {"a\nb\x1b[31m\u202e": 1}}},
        {"json": {"a\r\nb\x1b" + "x" * 5000: 1}},
        {"json": {"vitals": {"x" * 500_000: 1}}},
        {"files": {"a\nb": (None, b"1")}},
        {"files": [("a\rb", (None, b"1")), ("a\rb", (None, b"1"))]},
        {"files": {"x" * 5000: ("f", b"1")}},
        as_json('{"a\\nb": 1, "a\\nb": 2}'),
    ],
)
def test_an_untrusted_name_in_a_refusal_is_one_short_line(url: str, request_: dict[str, Any]) -> None:
    answer = httpx.post(f"{url}/v1/report", timeout=30, **request_)
    detail = answer.json()["detail"]
    assert answer.status_code in (400, 422) and detail.isprintable() and 0 < len(detail) <= 400, detail


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "0x10", "1_0", "true", "8;drop", "٨"])
def test_a_text_that_is_no_finite_number_is_no_value(url: str, value: str) -> None:
    answer = httpx.post(f"{url}/v1/report", json={"vitals": {"glucose": value}}, timeout=30)
    assert answer.status_code == 422 or answer.json()["vitals"].get("glucose") in (None, 8.0), answer.text
    assert "NaN" not in answer.text and "Infinity" not in answer.text


@pytest.mark.parametrize("value", [True, "8", None, [8], {"a": 1}])
def test_an_observation_of_another_type_is_no_value(url: str, value: Any) -> None:
    quantity = {"value": value, "unit": "mmol/L", "system": "http://unitsofmeasure.org", "code": "mmol/L"}
    observation = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "glucose"},
        "valueQuantity": quantity,
    }
    answer = httpx.post(f"{url}/v1/report", json={"observations": [observation]}, timeout=30)
    assert answer.status_code == 422 and "not a number" in answer.json()["detail"], answer.text


def test_random_bodies_cost_one_line_each_and_never_a_traceback(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Any resource, with a part of it replaced by something of another kind."""
    chosen = np.random.default_rng(3)
    odd: list[Any] = [None, True, -1, 1e300, "", "x" * 50, [], {}, [[]], {"value": 1}, [None], "Jane Doe"]
    quantity = {"value": 8, "unit": "mmol/L", "system": "http://unitsofmeasure.org", "code": "mmol/L"}
    code = {"coding": [{"system": "http://loinc.org", "code": "1"}], "text": "glucose"}
    whole = {"resourceType": "Observation", "status": "final", "code": code, "valueQuantity": quantity,
             "subject": {"reference": "Patient/1"}, "effectiveDateTime": "2020-01-01",
             "component": [{"code": {"text": "glucose"}, "valueQuantity": quantity}]}  # fmt: skip
    codes = set()
    with httpx.Client(base_url=url, timeout=30) as client:
        for _ in range(150):
            case = json.loads(json.dumps(whole))
            part = case
            while True:
                key = chosen.choice(list(part))
                inner = part[key][0] if isinstance(part[key], list) and part[key] else part[key]
                if not isinstance(inner, dict) or chosen.random() < 0.3:
                    part[key] = odd[chosen.integers(len(odd))]
                    break
                part = inner
            answer = client.post("/v1/report", json={"observations": [case]})
            codes.add(answer.status_code)
            assert answer.status_code in (200, 422), (answer.text, case)
    assert codes == {200, 422}
    told = capfd.readouterr().err
    assert "Traceback" not in told and "Jane" not in told and told.count("\n") == 0


CODECS = ["punycode", "idna", "undefined", "utf-16", "utf-7", "unicode_escape", "raw_unicode_escape", "zlib", "rot13"]


@pytest.mark.parametrize("codec", CODECS)
def test_a_form_names_no_codec_of_python(url: str, codec: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Some take minutes for a megabyte, some raise what nobody expects, some read other keys than those that came."""
    for charset in (codec, f'"{codec.upper()}"'):
        text = b"a-" + b"kva" * 80_000
        body = b'--x\r\nContent-Disposition: form-data; name="vitals"\r\n\r\n' + text + b"\r\n--x--\r\n"
        headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
        answer = httpx.post(f"{url}/v1/report", content=body, headers=headers, timeout=30)  # of minutes
        assert answer.status_code == 415 and answer.json()["detail"] == "content-type: a form is sent in UTF-8"
    assert not capfd.readouterr().err


@pytest.mark.parametrize("charset", ["", "; charset=utf-8", '; charset="UTF-8"', "; charset=us-ascii"])
def test_a_form_in_utf_8_is_read(url: str, charset: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="glucose"\r\n\r\n8.5\r\n--x--\r\n'
    headers = {"content-type": f"Multipart/Form-Data; boundary=x{charset}"}
    answer = httpx.post(f"{url}/v1/report", content=body, headers=headers, timeout=30)
    assert answer.status_code == 200 and answer.json()["vitals"] == {"glucose": 8.5}


def test_an_image_that_is_sent_is_no_file_on_the_disk(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette writes what is larger than 1 MiB into the temporary folder."""

    def roll(file: Any) -> None:
        raise AssertionError("written to the disk")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", roll)
    monkeypatch.setattr("starlette.formparsers.MultiPartParser.spool_max_size", 1000)
    picture = np.random.default_rng(0).integers(0, 256, (100, 100), dtype=np.uint8)
    data = cv2.imencode(".bmp", picture)[1].tobytes()
    assert len(data) > 10_000
    assert httpx.post(f"{url}/v1/report", files={"image": data}, timeout=30).status_code == 200


# ------------------------------------------------------------------------------------------------ forms


def as_form(*parts: bytes, end: bytes = b"--x--\r\n", options: str = "") -> dict[str, Any]:
    headers = {"content-type": f"multipart/form-data; boundary=x{options}"}
    return {"content": b"".join(b"--x\r\n" + part for part in parts) + end, "headers": headers}


def part(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + value + b"\r\n"


GLUCOSE = part(b"glucose", b"8.5")
CUT = "the form is cut short: its last boundary is missing"


@pytest.mark.parametrize(
    ("request_", "code", "detail"),
    [
        (as_form(GLUCOSE, end=b""), 400, CUT),
        (as_form(GLUCOSE, end=b"--x"), 400, CUT),
        (as_form(GLUCOSE, end=b"--x\r\n"), 400, CUT),
        (as_form(GLUCOSE, part(b"bp", b"120/80")[:-4], end=b""), 400, CUT),
        (as_form(GLUCOSE, part(b"image", b"x", b'; filename="a"')[:-2], end=b""), 400, CUT),
        (as_form(end=b""), 400, CUT),
        (as_form(end=b"\r\n" * 9), 400, CUT),
        (as_form(part(b"context", b"\xea\xe0\xf8\xe5\xeb\xfc")), 400, "context: not UTF-8"),
        (as_form(part(b"glucose", b"8\xe9")), 400, "glucose: not UTF-8"),
        (as_form(part(b"vitals", b'{"sex": "\xe9"}')), 400, "vitals: not valid JSON"),
        (as_form(b"Content-Disposition: form-data; name=sex\r\n" + GLUCOSE), 400, "a part has a header twice"),
        (as_form(part(b"glucose", b"8", b";" * 100)), 400, "a part's header has too many options"),
        *(
            (as_form(part(b"sex", b"8.5", more)), 400, "a part's header has an option twice")
            for more in (
                b'; name="glucose"',
                b"; name=glucose",
                b'; NAME = "glucose"',
                b';name="sex"',
                b'; a="\\";"; name=glucose',
                b'; filename="a"; filename="b"',
            )
        ),
        (as_form(GLUCOSE, options="; boundary=y"), 415, "content-type: an option stands there twice"),
        (as_form(GLUCOSE, options="; charset=utf-8; charset=utf-7"), 415, "content-type: an option stands there twice"),
        (as_form(GLUCOSE, options=";" * 100), 415, "content-type: too many options"),
    ],
)
def test_a_form_means_one_thing_or_is_refused(url: str, request_: dict[str, Any], code: int, detail: str) -> None:
    answer = httpx.post(f"{url}/v1/report", timeout=30, **request_)
    assert answer.status_code == code and answer.json()["detail"].startswith(detail), answer.text


def test_a_whole_form_is_read_to_its_last_letter(url: str) -> None:
    context = part(b"context", "кашель 咳".encode())
    answer = httpx.post(f"{url}/v1/report", timeout=30, **as_form(GLUCOSE, context, end=b"--x--\r\nepilogue"))
    assert answer.status_code == 200 and answer.json()["vitals"] == {"glucose": 8.5}
    assert httpx.post(f"{url}/v1/report", timeout=30, **as_form()).json()["vitals"] == {}


DEEP_PATHS = '{"' + "k" * 60 + '":'


def test_strict_json_is_quick_and_small_whatever_it_is_given() -> None:
    """Long keys, and a long path to each of many values: paths for messages must not take what the values do not."""
    deep = DEEP_PATHS * 30 + "[" + "1," * 49_000 + "1]" + "}" * 30
    tracemalloc.start()
    assert read_json(deep)["k" * 60]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6
    start = time.process_time()
    with pytest.raises(ValueError, match="is longer than 1,000 characters"):
        read_json('{"' + "é" * 5_000_000 + '": 1}')
    assert time.process_time() - start < 1, "each of its letters was looked up"


def test_wide_letters_beside_a_large_image_cost_no_more_than_themselves() -> None:
    """One emoji makes a Python text of all of a body four bytes a letter."""
    image = "A" * (20 << 20)
    body = json.dumps({"context": "Ж😀" * 1000, "image": image}, ensure_ascii=False).encode()
    tracemalloc.start()
    values = read_json(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert values == {"context": "Ж😀" * 1000, "image": image} and peak < 4 * len(image)
    for text, why in (("😀" * (1 << 20), "letters beyond ASCII"), ("\udcff" + image, "not UTF-8")):
        with pytest.raises(ValueError, match=why):
            read_json(f'{{"context": "{text}"}}'.encode("utf-8", "surrogateescape"))
