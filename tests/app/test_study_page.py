"""The page of an adapter of several images: files, roles side by side, and what the draft read."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from playwright.sync_api import Browser, Page, expect

from tests.app.test_app_page import browser, draft, letters, upload
from tests.serving import serving
from tests.studies import save_study_adapter, write_pictures
from vlm import ClinicalVLM, UserError
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.image_form import Arrived, ImageForm
from vlm.app.page import add_page
from vlm.app.service import Limits, Service
from vlm.app.uploads import Uploads
from vlm.data.images.square import Square
from vlm.inference.engine import ReportEngine

__all__ = ["browser"]  # a fixture


@pytest.fixture(scope="module")
def folder(tiny_llm: str, table_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_study_adapter(tiny_llm, table_root, tmp_path_factory.mktemp("study") / "adapter")


@pytest.fixture(scope="module")
def model(folder: Path) -> ClinicalVLM:
    return ClinicalVLM.from_pretrained(folder, device=torch.device("cpu"))


@contextmanager
def page_of(service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(service.folder))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    adapter = Adapter.of(folder)
    with serving(add_page(make_api(service, adapter), service, adapter)) as address:
        yield address


@pytest.fixture(scope="module")
def address(folder: Path, model: ClinicalVLM) -> Iterator[str]:
    with (
        pytest.MonkeyPatch.context() as patch,
        Service(ReportEngine(model), Limits(tokens=8)) as service,
        page_of(service, folder, patch) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 6)


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(address)
    expect(page.get_by_role("button", name="Draft the report")).to_be_visible()
    yield page
    context.close()


def choose(page: Page, number: int, role: str) -> None:
    page.get_by_label(f"Image {number} is").click()
    option = page.get_by_role("option", name=role, exact=True)
    option.click()
    expect(option).to_have_count(0)  # its list has gone


@pytest.mark.slow
def test_a_study_is_uploaded_named_and_drafted(page: Page, address: str, files: list[Path]) -> None:
    page.locator("#vlm-upload input[type=file]").set_input_files(files[:2])
    expect(page.get_by_alt_text("Image 2 as the model sees it")).to_be_visible()
    upload(page, files[2])
    expect(page.get_by_alt_text("Image 3 as the model sees it")).to_be_visible()
    boxes = [page.get_by_alt_text(f"Image {number} as").bounding_box() for number in (1, 2)]
    assert boxes[0] and boxes[1] and boxes[0]["y"] == boxes[1]["y"], "they stand side by side"
    choose(page, 1, "PA")
    choose(page, 2, "lateral")
    choose(page, 3, "earlier PA")
    page.get_by_label("Image 3: days before").fill("30")
    page.get_by_label("Indication, optional").fill("Cough.")
    page.get_by_label("Report of the earlier study, optional").fill("Clear.")
    text = draft(page)
    shown = page.locator(".vlm-card").inner_text()
    assert "PA image, lateral image, prior PA image, 30 days before, the indication, the earlier report" in shown
    own = httpx.post(
        f"{address}/v1/report", timeout=60, data={"context": "Cough.", "prior_report": "Clear.", "prior_days": "30",
                                                  "view": ["PA", "lateral"], "prior_view": "PA"},
        files=[("image", files[0].read_bytes()), ("image", files[1].read_bytes()), ("prior", files[2].read_bytes())],
    ).json()  # fmt: skip
    assert letters(text) == letters(own["text"])
    page.get_by_role("button", name="Explain").click()
    maps = page.locator(".vlm-explanation .vlm-maps img")
    expect(maps.first).to_be_visible()
    assert maps.count() % 3 == 0, "each likely label over each image"
    assert "prior" in " ".join(maps.evaluate_all("all => all.map(it => it.alt)"))


def test_an_image_is_taken_away_and_the_others_keep_their_roles(page: Page, files: list[Path]) -> None:
    page.locator("#vlm-upload input[type=file]").set_input_files(files[:3])
    expect(page.get_by_alt_text("Image 3 as")).to_be_visible()
    choose(page, 2, "lateral")
    page.get_by_role("button", name="Remove image 1").click()
    expect(page.get_by_alt_text("Image 3 as")).to_have_count(0)
    expect(page.get_by_label("Image 1 is")).to_have_value("lateral")
    draft(page)
    expect(page.locator(".vlm-card")).to_contain_text("image, lateral image")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_alt_text("as the model sees it")).to_have_count(0)


def test_too_many_images_and_wrong_days_are_messages(page: Page, files: list[Path]) -> None:
    alert = page.get_by_role("alert")
    page.locator("#vlm-upload input[type=file]").set_input_files(files[:3])
    expect(page.get_by_alt_text("Image 3 as")).to_be_visible()
    page.locator("#vlm-upload input[type=file]").set_input_files(files[3:5])
    expect(alert).to_contain_text("5 images were given; at most 4 can be")
    expect(page.get_by_alt_text("Image 3 as")).to_be_visible()
    choose(page, 3, "earlier study")
    for days, message in (("soon", "image 3: 'soon' is not a number of days"), ("-3", "-3 days before the study is")):
        page.get_by_label("Image 3: days before").fill(days)
        page.get_by_role("button", name="Draft the report").click()
        expect(alert).to_contain_text(message)


def test_a_study_is_readable_on_the_page(page: Page, files: list[Path]) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.locator("#vlm-upload input[type=file]").set_input_files(files[:3])
    expect(page.get_by_alt_text("Image 3 as")).to_be_visible()
    choose(page, 3, "earlier study")
    expect(page.get_by_label("Image 3: days before")).to_be_visible()
    page.wait_for_timeout(600)
    found = Axe().run(page).response
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]] == []


# ------------------------------------------------------------------------------------- without a browser


@pytest.fixture
def form(model: ClinicalVLM) -> Iterator[ImageForm]:
    with Service(ReportEngine(model)) as service:
        yield ImageForm(service, model.spec)


def test_roles_become_those_of_the_images(form: ImageForm) -> None:
    pictures = [model_picture(value) for value in range(3)]
    images = form.given(pictures, ["PA", "", "prior:lateral", "", "9", "", "30,5", ""])
    assert [image[1:] for image in images] == [("PA", False, None), ("", False, None), ("lateral", True, 30.5)]
    assert form.given(None, [""] * 8) == [] and form.given(pictures[:1], ["prior:"] + [""] * 7)[0].days is None
    with pytest.raises(UserError, match="image 1: 'x' is not a number of days"):
        form.given(pictures[:1], ["prior:", "", "", "", "x", "", "", ""])


def test_an_arrival_that_does_not_fit_changes_nothing(form: ImageForm) -> None:
    pictures = [model_picture(value) for value in range(3)]
    updates, message = form.place(Arrived(pictures[:2]), pictures, *[""] * 8)
    assert message == "5 images were given; at most 4 can be" and len(updates[0]) == 3
    updates, message = form.place(Arrived(pictures[:1]), pictures, *[""] * 8)
    assert message == "" and len(updates[0]) == 4
    assert form.place(None, None)[1] == ""


def test_uploads_of_one_case_are_kept_together() -> None:
    uploads = Uploads(100)
    first, second = uploads.add_all("a", [b"x", b"y"])
    assert uploads.claim("b", first) is None
    claimed = [uploads.claim("a", name) for name in (first, second)]
    assert [uploads.take(name or "") for name in claimed] == [b"x", b"y"]
    uploads.add_all("a", [b"x", b"y"])
    uploads.add("a", b"z")
    assert len(uploads) == 1, "the next choice stands in place of the last"


def model_picture(value: int) -> Square:
    import numpy as np

    return Square(np.full((32, 32), value, np.uint8))
