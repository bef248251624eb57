"""The page as a user meets it: a real server process, and Debian's Chromium."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import cv2
import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright

from tests.forks import Forks
from vlm.report import NOTICE

PROJECT = Path(__file__).resolve().parents[2]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip
PHONE = ViewportSize(width=375, height=700)
TOKENS = 200
expect.set_options(timeout=60_000)


class Server(NamedTuple):
    address: str
    log: Path
    temporary: Path
    process: subprocess.Popen


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`clinical-vlm serve` in a process of its own, with a temporary folder that can be looked into."""
    folder = tmp_path_factory.mktemp("app")
    port, temporary, log = free_port(), folder / "temporary", folder / "log"
    temporary.mkdir()
    command = [sys.executable, "-m", "vlm.cli", "serve", "--adapter", str(tiny_adapter), "--port", str(port),
               "--max_new_tokens", str(TOKENS), "--max_upload", "1"]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=PROJECT, stdout=out, stderr=out, env={**os.environ, "TMPDIR": str(temporary)}
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, process, log)
            yield Server(address, log, temporary, process)
        finally:
            process.kill()


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    while process.poll() is None:
        try:
            if httpx.get(f"{address}/healthz").status_code == 200:
                return
        except httpx.ConnectError:
            time.sleep(0.2)
    pytest.fail(f"the server ended: {log.read_text()}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


def open_page(context: BrowserContext, server: Server) -> Page:
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(server.address)
    expect(page.get_by_role("button", name="Draft the report")).to_be_visible()
    return page


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    yield open_page(context, server)
    context.close()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("images") / "jane-doe.png"
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8))
    return file


def letters(text: str | None) -> str:
    """What is left of an untrained model's words in HTML, which mends control characters."""
    return re.sub(r"\W", "", text or "")


def upload(page: Page, file: Path) -> None:
    page.locator("#vlm-upload input[type=file]").set_input_files(file)


def draft(page: Page) -> str:
    """Ask for a draft and wait for its end."""
    page.get_by_role("button", name="Draft the report").click()
    expect(page.locator(".vlm-notice-line")).to_be_visible()
    return page.locator("#vlm-text").text_content() or ""


@pytest.mark.slow
def test_a_case_is_uploaded_filled_in_and_drafted_word_by_word(page: Page, server: Server, image: Path) -> None:
    upload(page, image)
    expect(page.get_by_alt_text("As the model sees it, 32 × 32 pixels")).to_be_visible()
    page.get_by_label("glucose (mmol/L)").fill("8,7")
    page.get_by_label("blood pressure (mmHg)").fill("145/90")
    page.get_by_label("F", exact=True).check()
    page.evaluate(
        """() => { window.seen = new Set(); new MutationObserver(() => {
            const text = document.querySelector("#vlm-text"); if (text) window.seen.add(text.textContent);
        }).observe(document.body, {childList: true, subtree: true, characterData: true}); }"""
    )
    text = draft(page)
    own = httpx.post(
        f"{server.address}/v1/report", files={"image": image.read_bytes()},
        data={"glucose": "8.7", "bp": "145/90", "sex": "F"}, timeout=60,
    ).json()  # fmt: skip
    assert letters(text) == letters(own["text"])
    seen = [words for words in page.evaluate("[...window.seen]") if words]
    assert len(seen) > 2 and all(letters(text).startswith(letters(words)) for words in seen), "it did not stream"
    shown = page.locator(".vlm-card").inner_text()
    assert all(words in shown for words in (NOTICE, "pathology", "effusion", "not calibrated", "systolic 145 mmHg"))
    expect(page.locator(".vlm-warnings li")).to_have_text([
        "systolic 145 lies above all values that the adapter was trained on",
        f"the draft is not finished: it was cut at {TOKENS} tokens",
    ])  # fmt: skip
    bars = page.locator(".vlm-number").all_inner_texts()
    assert bars == [f"{value:.1%}".replace("%", " %") for value in own["probabilities"].values()]


def test_the_draft_is_copied_and_downloaded(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="Synthetic 3").click()
    expect(page.get_by_label("glucose (mmol/L)")).not_to_have_value("")
    text = draft(page)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert letters(page.evaluate("navigator.clipboard.readText()")) == letters(text)
    for name, kind in (("Text", "txt"), ("JSON", "json"), ("FHIR", "fhir.json")):
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        download.value.save_as(tmp_path / f"draft.{kind}")
        assert download.value.suggested_filename == f"draft.{kind}"
    report = json.loads((tmp_path / "draft.json").read_text(encoding="utf-8"))
    assert letters(report["text"]) == letters(text) and report["warnings"][:2] == ["not given: sex", "no image given"]
    assert json.loads((tmp_path / "draft.fhir.json").read_text(encoding="utf-8"))["resourceType"] == "Bundle"
    assert NOTICE in (tmp_path / "draft.txt").read_text(encoding="utf-8")


def test_what_cannot_be_read_is_a_message(page: Page, tmp_path: Path) -> None:
    (tmp_path / "jane-doe.png").write_text("no picture")
    upload(page, tmp_path / "jane-doe.png")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("image: not a readable image: it seems to be text; PNG, JPEG")
    page.get_by_label("glucose (mmol/L)").fill("<img src=x onerror='document.title=1'>{{1}}${1}")
    page.get_by_role("button", name="Draft the report").click()
    expect(alert).to_contain_text("vitals: glucose: \"<img src=x onerror='document.title=1'>{…' is not a number")
    assert page.title() == "Report drafts"
    page.get_by_label("glucose (mmol/L)").fill("${1+1}{{2}}")
    page.get_by_role("button", name="Draft the report").click()
    expect(alert).to_contain_text("'${1+1}{{2}}' is not a number")


def test_a_file_over_the_limit_is_refused(page: Page, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(b"x" * ((1 << 20) + 1))
    upload(page, tmp_path / "large.png")
    expect(page.get_by_text(re.compile("exceed", re.IGNORECASE)).first).to_be_visible()


def test_a_draft_says_when_the_inputs_are_no_longer_its_own(page: Page) -> None:
    draft(page)
    stale = page.get_by_text("The inputs were changed after this draft.")
    expect(stale).to_be_hidden()
    page.get_by_label("Indication, optional").fill("cough")
    expect(stale).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_label("Indication, optional")).to_have_value("")
    expect(page.locator("#vlm-text")).to_have_count(0)


def test_a_draft_is_explained(page: Page) -> None:
    page.get_by_role("button", name="Synthetic 1").click()
    expect(page.locator(".vlm-picture img")).to_be_visible()
    text = draft(page)
    page.get_by_role("button", name="Explain").click()
    explanation = page.locator(".vlm-explanation")
    expect(explanation).to_contain_text("never whether it is right")
    assert letters(explanation.locator(".vlm-text").text_content()) == letters(text)
    pictures = explanation.locator("img")
    assert pictures.count() >= 1 and pictures.first.evaluate("it => it.naturalWidth") == 32
    page.get_by_role("button", name="Synthetic 3").click()  # another case: nothing of the last one stays
    expect(explanation).to_have_count(0)
    expect(page.get_by_role("button", name="Explain")).to_be_hidden()


def test_an_image_can_be_taken_away_again(page: Page, image: Path) -> None:
    upload(page, image)
    page.get_by_role("button", name="Remove the image").click()
    expect(page.locator("#vlm-upload")).to_be_visible()
    draft(page)
    expect(page.locator(".vlm-warnings")).to_contain_text("no image given")


def test_the_keyboard_reaches_everything(page: Page) -> None:
    expect(page.get_by_role("button", name="Synthetic 1")).to_be_visible()  # the last of the form: the page is whole
    page.locator("#vlm-upload button").focus()
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("(document.activeElement.labels?.[0] ?? document.activeElement).innerText"))
    wanted = ["glucose", "blood pressure", "not given", "Indication", "Draft the report", "Clear", "Synthetic 1"]
    places = [next(place for place, text in enumerate(reached) if text.startswith(name)) for name in wanted]
    assert places == sorted(places)
    page.get_by_role("button", name="Draft the report").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".vlm-notice-line")).to_be_visible()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, ViewportSize(width=1280, height=900)], ids=["phone", "desktop"])
def test_it_is_readable_fits_and_asks_no_other_host(
    browser: Browser, server: Server, size: ViewportSize, scheme
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    hosts: set[str] = set()
    page = browser.new_context(viewport=size, color_scheme=scheme).new_page()
    page.set_default_timeout(60_000)
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "//" in request.url else ""))
    page.goto(server.address)
    page.get_by_role("button", name="Synthetic 1").click()
    expect(page.locator(".vlm-picture img")).to_be_visible()
    draft(page)
    page.get_by_role("button", name="Explain").click()
    expect(page.locator(".vlm-explanation")).to_be_visible()
    page.wait_for_timeout(600)  # colours fade in
    found = Axe().run(page).response
    assert len(found["passes"]) > 20, "the checker did not run"
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.locator("#vlm-notice").evaluate("it => it.getBoundingClientRect().top") >= 0, "the notice left the view"
    assert hosts - {""} == {server.address.removeprefix("http://")}
    page.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("users", [4, pytest.param(20, marks=pytest.mark.soak)])
def test_users_at_once(browser: Browser, server: Server, users: int) -> None:
    with ExitStack() as stack:  # each with connections of its own: a browser has six for a host
        pages = [open_page(stack.enter_context(browser.new_context()), server) for _ in range(users)]
        for number, page in enumerate(pages):
            page.get_by_label("glucose (mmol/L)").fill(f"{3 + number / 2}")
        for page in pages:
            page.get_by_role("button", name="Draft the report").click(no_wait_after=True)
        for number, page in enumerate(pages):
            expect(page.locator(".vlm-notice-line")).to_be_visible()
            assert f"glucose {3 + number / 2:g} mmol/L" in page.locator(".vlm-card").inner_text()
            vitals = json.dumps({"glucose": 3 + number / 2})
            own = httpx.post(f"{server.address}/v1/report", files={"vitals": (None, vitals)}, timeout=60).json()
            assert letters(page.locator("#vlm-text").text_content()) == letters(own["text"])


def test_nothing_of_a_patient_stays(server: Server) -> None:
    """The last one: it ends the server."""
    left = [file for file in server.temporary.rglob("*") if file.is_file() and file.stat().st_size]
    left = [file for file in left if file.name != "_remote_module_non_scriptable.py"]  # early PyTorch's own
    assert left == []
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(30)
    assert list(server.temporary.glob("clinical-vlm-app-*")) == []
    log = server.log.read_text()
    assert "jane" not in log and "Traceback" not in log and "8.7" not in log


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "/no/adapter"], "no such adapter folder"),
        (["--max_seconds", "0"], "--max_seconds: must be more than 0"),
        (["--port", "70000"], "--port: must be between 1 and 65535"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1:7860"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], message: str, forks: Forks) -> None:
    result = forks.command("serve", *arguments, program="vlm.cli")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1


def test_the_indication_and_the_sections_are_shown_as_text(adapter, monkeypatch) -> None:
    """Named parts stand under their headings, with what a model or a user writes as letters."""
    from dataclasses import replace

    from vlm.app import view
    from vlm.report import Report

    spec = replace(adapter.config.spec, sections=("findings", "impression"))
    described = replace(adapter, config=adapter.config._replace(spec=spec))
    text = "Findings: <i>Shadow.</i> Impression: Pneumonia."
    report = Report(text, {"pathology": 0.5}, sections={"findings": "<i>Shadow.</i>", "impression": "Pneumonia."})
    shown = view.finished(report, described, "<b>Cough</b>")
    assert '<b class="vlm-heading">Findings:</b> &lt;i&gt;Shadow.&lt;/i&gt;\n' in shown
    assert '<b class="vlm-heading">Impression:</b> Pneumonia.</p>' in shown
    assert "no image, the indication" in shown and "<b>Cough</b>" not in shown
    plain = view.finished(replace(report, sections={}), described)
    assert "vlm-heading" not in plain and "Findings: &lt;i&gt;Shadow" in plain and "the indication" not in plain
