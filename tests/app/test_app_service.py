"""The service under load, and what it does between the requests: words as they come, time limits, what is left."""

import json
import os
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch

from tests.http_drafts import TOKENS, VITALS, image, own_answer, same
from tests.serving import serving
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.service import Limits, Service, TokenStreamer
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine

__all__ = ["image"]  # a fixture


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


@pytest.mark.slow
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
