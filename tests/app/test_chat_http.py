"""Chat completions in OpenAI's shape: the same drafts, limits and refusals as `/v1/report`, to the real client too."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http_drafts import TOKENS, VITALS, image, own_answer, same
from tests.serving import serving, serving_drafts
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.guard import Access
from vlm.app.service import Limits, Service
from vlm.inference.engine import ReportEngine
from vlm.report import NOTICE

__all__ = ["image"]  # a fixture
PATH, TOKEN = "/v1/chat/completions", "a-token-of-32-characters-or-so-x"


@pytest.fixture(scope="module")
def address(engine: ReportEngine, adapter: Adapter) -> Iterator[str]:
    with serving_drafts(engine, adapter, tokens=TOKENS, upload=1 << 20) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, timeout=60) as session:
        yield session


@pytest.fixture(scope="module")
def model(client: httpx.Client) -> str:
    (listed,) = client.get("/v1/models").json()["data"]
    return str(listed["id"])


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def picture(image: bytes, **role: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return {"type": "image_url", "image_url": {"url": url, **role}}


def test_a_completion_is_the_engines_own_report(
    client: httpx.Client, model: str, engine: ReportEngine, image: bytes, tmp_path: Path
) -> None:
    own = own_answer(engine, tmp_path, image, VITALS[0])
    neutral = {"n": 1, "temperature": 0.0, "top_p": 1, "tools": [], "seed": 3, "user": "x", "max_tokens": None}
    answer = client.post(PATH, json={"model": model, "messages": user(picture(image)), "vitals": VITALS[0], **neutral})
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert choice["message"]["content"] == f"{own['text']}\n\n{NOTICE}" and choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == ("stop" if own["finished"] else "length") and answer.json()["model"] == model
    assert same(answer.json()["report"], own)


def test_the_words_of_the_message_are_the_context(client: httpx.Client, model: str) -> None:
    by_report = client.post("/v1/report", json={"context": "Cough.\nFever.", "vitals": {"glucose": 8.7}}).json()
    words = {"type": "text", "text": "Cough."}, {"type": "text", "text": "Fever."}
    for messages in (user(*words), [{"role": "user", "content": "Cough.\nFever."}]):
        answer = client.post(PATH, json={"model": model, "messages": messages, "vitals": {"glucose": 8.7}}).json()
        assert same(answer["report"], by_report)


def test_a_stream_has_the_same_words_and_the_report_at_its_end(client: httpx.Client, model: str, image: bytes) -> None:
    request = {"model": model, "messages": user(picture(image)), "vitals": VITALS[0]}
    whole = client.post(PATH, json=request).json()
    answer = client.post(PATH, json={**request, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    chunks = [json.loads(line) for line in lines]
    words = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert words == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert same(chunks[-1]["report"], whole["report"]) and len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("more", "code", "line"),
    [
        ({"model": "gpt-9"}, 404, "model: no 'gpt-9' here; GET /v1/models names "),
        ({"model": None}, 422, "model: give a name of GET /v1/models"),
        ({"stream": "yes"}, 422, "stream: true or false"),
        ({"n": 2}, 422, "n: only 1; a draft is one greedy text"),
        ({"temperature": 0.7}, 422, "temperature: only 0; a draft is one greedy text"),
        ({"tools": [{"type": "function"}]}, 422, "tools: only []; a draft is one greedy text"),
        ({"max_tokens": 9}, 422, "max_tokens: is no option of a draft; leave it away"),
        ({"stream_options": {}}, 422, "stream_options: is no option of a draft; leave it away"),
        ({"messages": []}, 422, "messages: give one, with the role user"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, 422, "messages: give one, with the role user"),
        ({"messages": user() + user()}, 422, "messages: give one, with the role user"),
        ({"messages": user({"type": "input_audio"})}, 422, "messages: part 1: give a text or an image_url"),
        ({"messages": user(picture(b"", detail="low"))}, 422, "messages: part 1: detail: only auto"),
        ({"messages": user({"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}})}, 422,
         "messages: part 1: give the image as data:image/png;base64,…; no address is fetched"),
        ({"messages": user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}})}, 422,
         "messages: part 1: give the image as data:"),
        ({"messages": user({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%"}})}, 400,
         "images: 1: not valid base64"),
        ({"messages": user(picture(b"no picture"))}, 422, "image: not a readable image"),
        ({"messages": user(picture(b"x" * (1 << 20)), picture(b"x"))}, 413, "images: together larger than 1 MiB"),
        ({"vitals": {"glucos": 8}}, 422, "vitals: unknown vital glucos; did you mean glucose?"),
        ({"vitals": {"glucose": True}}, 422, "vitals: glucose: true and false are no value"),
    ],
)  # fmt: skip
def test_what_is_wrong_or_would_be_ignored_is_refused_in_openais_shape(
    client: httpx.Client, model: str, more: dict[str, Any], code: int, line: str
) -> None:
    answer = client.post(PATH, json={"model": model, "messages": user(), **more})
    error = answer.json()["error"]
    assert answer.status_code == code and error["message"].startswith(line) and "\n" not in error["message"]
    assert error["type"] == "invalid_request_error" and error.keys() == {"message", "type", "param", "code"}


def test_other_bodies_and_doubled_keys_are_refused(client: httpx.Client) -> None:
    for request, code in (({"data": {"model": "x"}}, 415), ({"content": b'{"model": "a", "model": "b"}'}, 400),
                          ({"content": b"[]"}, 422), ({"content": b"{"}, 400)):  # fmt: skip
        headers = {"content-type": "application/json"} if "content" in request else {}
        answer = client.post(PATH, headers=headers, **request)  # type: ignore[arg-type]
        assert answer.status_code == code and answer.json()["error"]["message"]


def test_token_host_and_a_full_queue_hold_here_too(engine: ReportEngine, adapter: Adapter) -> None:
    access = Access.of("127.0.0.1", (), TOKEN.encode())
    with Service(engine, Limits(waiting=1)) as service, serving(make_api(service, adapter, access)) as address:
        asked = {"model": adapter.name, "messages": user()}
        refused = httpx.post(address + PATH, json=asked)
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        assert httpx.get(f"{address}/v1/models").json()["error"]["message"].startswith("send the server's token")
        bearer = {"authorization": f"Bearer {TOKEN}"}
        other = httpx.post(address + PATH, json=asked, headers={**bearer, "host": "evil.example"})
        assert other.status_code == 421 and "error" in other.json()
        service.limits.__dict__["waiting"] = 0
        full = httpx.post(address + PATH, json=asked, headers=bearer)
        assert full.status_code == 429 and full.json()["error"]["type"] == "rate_limit_error"
        assert int(full.headers["retry-after"]) >= 1


def test_a_stream_that_fails_says_so_in_an_event(engine: ReportEngine, adapter: Adapter) -> None:
    with serving_drafts(engine, adapter, seconds=1e-6) as address:
        answer = httpx.post(address + PATH, json={"model": adapter.name, "messages": user(), "stream": True})
    last = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error" and "not done within the time limit" in last["error"]["message"]


def test_openais_own_client_asks_and_streams(
    address: str, model: str, engine: ReportEngine, image: bytes, tmp_path: Path
) -> None:
    openai = pytest.importorskip("openai")
    own = own_answer(engine, tmp_path, image, VITALS[0])
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        assert [listed.id for listed in client.models.list()] == [model]
        asked: dict[str, Any] = {"model": model, "messages": user(picture(image)), "extra_body": {"vitals": VITALS[0]}}
        answer = client.chat.completions.create(**asked)
        assert answer.choices[0].message.content == f"{own['text']}\n\n{NOTICE}"
        assert answer.report["probabilities"] == pytest.approx(own["probabilities"], abs=1e-5)
        chunks = list(client.chat.completions.create(**asked, stream=True))
        words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert words == f"{own['text']}\n\n{NOTICE}" and chunks[-1].report["text"] == own["text"]
        with pytest.raises(openai.UnprocessableEntityError, match="n: only 1"):
            client.chat.completions.create(**asked, n=2)
        with pytest.raises(openai.NotFoundError, match="no 'other' here"):
            client.chat.completions.create(**{**asked, "model": "other"})
