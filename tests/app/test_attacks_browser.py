"""A hostile adapter's words and another site's page, in Chromium; and the program's own doors."""

import copy
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.forks import Forks
from tests.serving import serving
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.form import _plain
from vlm.app.guard import Access
from vlm.app.page import add_page
from vlm.app.service import Limits, Service
from vlm.data.vitals.schema import VitalsSchema
from vlm.inference.engine import ReportEngine

PROJECT = Path(__file__).resolve().parents[2]
TOKEN = b"0123456789abcdef"
WORDS = ["[press](https://evil.example/a)", "[press](javascript:document.title=1)", "https://evil.example/b",
         "www.evil.example", "![](https://evil.example/c.png)", "**bold** `code` # head", "$x^2$ $$y$$",
         "a@evil.example",
         "${document.title=1}{{7*7}}", "&lt;b&gt;", "~~s~~ _i_ |a|b|", "\\[x\\](https://evil.example)", "- a", "1. a",
         "__i18n__ x", "&#106;avascript:1", "\\(y\\) \\[z\\]"]  # fmt: skip
"""Units, names and categories as a schema takes them: it refuses `<` and `>` itself."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@contextmanager
def page_of(engine: ReportEngine, adapter: Adapter, token: bytes = b"", tokens: int = 4) -> Iterator[str]:
    with Service(engine, Limits(tokens=tokens)) as service:
        app = make_api(service, adapter, Access(token=token))
        with serving(add_page(app, service, adapter)) as url:
            yield url


@contextmanager
def watched(browser: Browser, url: str, **options: object) -> Iterator[tuple[Page, list[str]]]:
    """A page, and what its console and its network say that should not be."""
    context = browser.new_context(**options)  # type: ignore[arg-type]
    page, told = context.new_page(), []
    page.set_default_timeout(30_000)
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("response", lambda it: told.append(f"{it.status} {it.url}") if it.status >= 400 else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda it: told.append(it.url) if not it.url.startswith((url, "data:", "blob:")) else None)
    page.goto(url)
    expect(page.get_by_role("button", name="Draft the report")).to_be_visible(timeout=30_000)
    yield page, told
    context.close()


def hostile(adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> Adapter:
    """The adapter with a vital for each of the words: its name, unit, other units and categories."""
    plain = adapter.config.spec.schema.vitals
    made = [replace(plain[0], name=f"n{number} {word}", aliases=[], unit=f"u {word}", accepts={f"o {word}": [2.0, 0.0]})
            for number, word in enumerate(WORDS)]  # fmt: skip
    chosen = replace(plain[-1], name="choice", aliases=[], categories=[*WORDS])
    spec = copy.copy(adapter.config.spec)  # for the page alone: there are no statistics of these vitals
    object.__setattr__(spec, "schema", VitalsSchema((*plain, *made, chosen)))
    object.__setattr__(spec, "labels", ("pathology", WORDS[0]))
    monkeypatch.setattr(type(adapter.config), "spec", property(lambda _: spec))
    return Adapter(adapter.config, adapter.software._replace(base="a/<img src=x onerror=document.title=1>"))


def test_a_hostile_adapters_words_stay_words(
    browser: Browser, engine: ReportEngine, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = hostile(Adapter.of(tiny_adapter), monkeypatch)
    with page_of(engine, adapter) as url, watched(browser, url) as (page, told):
        form = page.locator("#vlm-inputs").text_content() or ""
        for word in WORDS:
            assert f"or in o {_plain(word)}, the unit" in form and f"{word.replace('_', ' ')} (u {word})" in form, word
        assert page.locator("a[href*='evil'], a[href^='javascript'], a[href^='mailto'], img[src*='evil']").count() == 0
        assert page.locator("#vlm-inputs strong, #vlm-inputs em, #vlm-inputs code, #vlm-inputs .katex").count() == 0
        assert page.title() == "Report drafts" and told == []


def test_the_page_works_under_its_policy(
    browser: Browser, engine: ReportEngine, tiny_adapter: Path, tmp_path: Path
) -> None:
    """Upload, draft and explain, without one violation or error in the console."""
    with page_of(engine, Adapter.of(tiny_adapter), tokens=30) as url, watched(browser, url) as (page, told):
        cv2.imwrite(str(tmp_path / "x.png"), np.full((30, 40), 99, np.uint8))
        page.locator("#vlm-upload input[type=file]").set_input_files(tmp_path / "x.png")
        expect(page.get_by_alt_text("As the model sees it, 32 × 32 pixels")).to_be_visible(timeout=30_000)
        page.get_by_role("button", name="Draft the report").click()
        expect(page.locator(".vlm-notice-line")).to_be_visible(timeout=30_000)
        page.get_by_role("button", name="Explain").click()
        expect(page.locator(".vlm-explanation")).to_be_visible(timeout=30_000)
        page.evaluate("""() => { const made = document.createElement("script"); made.textContent = "window.ran = 1";
            document.body.append(made);
            document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.ran=2'>"); }""")
        page.wait_for_timeout(300)
        assert page.evaluate("window.ran") is None
        assert [line for line in told if "Content Security Policy" not in line and "404" not in line] == []
        assert len([line for line in told if "Content Security Policy" in line]) == 2, told  # the two planted above


def test_a_page_of_another_site_reads_and_writes_nothing(
    browser: Browser, engine: ReportEngine, tiny_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse

    other = FastAPI()
    other.get("/")(lambda: HTMLResponse("<p>another site</p>"))
    with page_of(engine, Adapter.of(tiny_adapter)) as url, serving(other) as evil:
        page = browser.new_context().new_page()
        page.goto(evil)
        drafted: list[object] = []
        monkeypatch.setattr(engine, "prepare", lambda *given: drafted.append(given))
        script = """async (url) => { const body = new FormData(); body.append("glucose", "8");
            try { await fetch(url, {method: "POST", mode: "no-cors", body}); } catch {}
            try { return await (await fetch(url)).text(); } catch { return ""; } }"""
        for path in ("/v1/report", "/v1/schema", "/", "/gradio_api/app_id"):
            assert page.evaluate(script, url + path) == ""
        assert drafted == []
        page.evaluate("""url => { const frame = document.createElement("iframe"); frame.src = url;
            document.body.append(frame); }""", url)  # fmt: skip
        page.wait_for_timeout(500)
        assert "Draft a report" not in "".join(frame.content() for frame in page.frames if frame != page.main_frame)
        page.context.close()


def test_a_browser_sends_the_token_as_a_password(browser: Browser, engine: ReportEngine, tiny_adapter: Path) -> None:
    credentials = {"username": "ward", "password": TOKEN.decode()}
    with page_of(engine, Adapter.of(tiny_adapter), TOKEN) as url:
        assert httpx.get(url).status_code == 401
        with watched(browser, url, http_credentials=credentials) as (page, _):
            page.get_by_role("button", name="Draft the report").click()
            expect(page.locator(".vlm-notice-line")).to_be_visible(timeout=30_000)


# --------------------------------------------------------------------------------------------- program


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: others can reach it"),
        (["--host", "::"], "--host ::: others can reach it"),
        (["--token_file", "/no/file"], "--token_file: /no/file: No such file"),
        (["--allowed_hosts", "http://a"], "--allowed_hosts: 'http://a' is no host name"),
    ],
)
def test_a_door_is_not_opened_unasked(arguments: list[str], message: str, forks: Forks) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    result = forks.command("serve", *arguments, "--port", str(port), program="vlm.cli")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1
