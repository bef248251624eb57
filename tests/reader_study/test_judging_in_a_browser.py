"""A study in Chromium: judged by keyboard alone, on a phone, under its own policy."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.app.test_app_page import browser
from tests.reader_studies import CODES, small_study, written
from tests.serving import serving
from vlm.app.guard import Access
from vlm.reader_study.answers import AnswerLog
from vlm.reader_study.judging_page import Judging, make_study_app
from vlm.reader_study.study_file import Layout, read_study

__all__ = ["browser"]  # a fixture


def page_of(browser: Browser, folder: Path, layout: Layout, faults: list[str], **options: object) -> Iterator[Page]:
    written(small_study(layout=layout), folder)
    log = AnswerLog(folder / "answers.jsonl", read_study(folder))
    with serving(make_study_app(Judging(folder, CODES, log), Access())) as url:
        page = browser.new_page(**options)  # type: ignore[arg-type]
        page.on("console", lambda said: faults.append(said.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(url)
        yield page
        page.close()


def test_keys_alone_judge_a_case(browser: Browser, tmp_path: Path) -> None:
    """The form carries an Origin that the server takes, though no other site is told where it comes from."""
    faults: list[str] = []
    for page in page_of(browser, tmp_path / "study", "single", faults):
        expect(page.get_by_role("textbox")).to_be_focused()  # what is typed before is lost
        page.keyboard.type("aaaa-bbbb-cccc")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Page 1 of 24")).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_text("To the judgement")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Page 2 of 24")).to_be_visible()
    (kept,) = [json.loads(line) for line in (tmp_path / "study" / "answers.jsonl").read_text().splitlines()]
    assert kept["judgements"] == [{"verdict": "minor_edits", "errors": ["invented_finding"]}]
    assert kept["showings"] == 1 and kept["seconds"] > 0 and faults == []


@pytest.mark.parametrize("layout", ["single", "side_by_side"])
def test_a_phone_shows_it_whole(layout: Layout, browser: Browser, tmp_path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    faults: list[str] = []
    for page in page_of(browser, tmp_path / "study", layout, faults, viewport={"width": 360, "height": 700}):
        page.get_by_label("Your code").fill("dddd-eeee-ffff")
        page.get_by_role("button", name="Begin").click()
        expect(page.get_by_role("button", name="Save and go on")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        found = Axe().run(page).response["violations"]
        assert found == [], [one["id"] for one in found]
        page.get_by_role("button", name="leave").click()
        expect(page.get_by_label("Your code")).to_be_visible()
    assert faults == []
