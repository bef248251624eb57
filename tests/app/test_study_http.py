"""A study over HTTP: the same as from Python, by form and JSON, and every wrong role, count and size in one line."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from tests.serving import serving_drafts
from tests.studies import save_study_adapter, write_pictures
from vlm import ClinicalVLM, StudyImage
from vlm.app.about import Adapter
from vlm.inference.engine import ReportEngine

VITALS = {"glucose": 8, "bp": "120/80", "sex": "F"}


@pytest.fixture(scope="module")
def folder(tiny_llm: str, table_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_study_adapter(tiny_llm, table_root, tmp_path_factory.mktemp("study") / "adapter")


@pytest.fixture(scope="module")
def model(folder: Path) -> ClinicalVLM:
    return ClinicalVLM.from_pretrained(folder, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def client(folder: Path, model: ClinicalVLM) -> Iterator[httpx.Client]:
    with (
        serving_drafts(ReportEngine(model), Adapter.of(folder), tokens=8, upload=1 << 15) as address,
        httpx.Client(base_url=address, timeout=60) as session,
    ):
        yield session


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def image(file: Path | bytes, **role: Any) -> dict[str, Any]:
    data = file if isinstance(file, bytes) else file.read_bytes()
    return {"data": base64.b64encode(data).decode(), **role}


def fields(*pairs: tuple[str, str | Path]) -> list[tuple[str, Any]]:
    return [(name, (None, value.encode()) if isinstance(value, str) else ("x", value.read_bytes()))
            for name, value in pairs]  # fmt: skip


def test_form_and_json_give_the_same_study(client: httpx.Client, model: ClinicalVLM, files: list[Path]) -> None:
    study = [StudyImage(files[0], "PA"), StudyImage(files[1], "lateral"), StudyImage(files[2], "PA", True, 30)]
    own = model.predict(study, VITALS, 8, context="Cough.", prior_report="Clear.").to_dict()
    roles: list[dict[str, Any]] = [{"view": "PA"}, {"view": "lateral"}, {"view": "PA", "prior": True, "days": 30}]
    told = {"context": "Cough.", "prior_report": "Clear."}
    images = [image(file, **role) for file, role in zip(files, roles, strict=False)]
    as_json = client.post("/v1/report", json={"images": images, "vitals": VITALS, **told})
    form = fields(("image", files[0]), ("view", "PA"), ("image", files[1]), ("view", "lateral"),
                  ("prior", files[2]), ("prior_view", "PA"), ("prior_days", "30"), ("vitals", json.dumps(VITALS)),
                  *told.items())  # fmt: skip
    for answer in (as_json, client.post("/v1/report", files=form)):
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"] == own["text"] and answer.json()["images"] == own["images"]
        assert answer.json()["warnings"] == own["warnings"]
    assert [str(one["view"]) for one in own["images"]] == ["PA", "lateral", "PA"]


def test_what_is_doubtful_of_a_study_is_said(client: httpx.Client, files: list[Path]) -> None:
    twice = client.post("/v1/report", files=fields(("image", files[0]), ("image", files[0]), ("prior", files[1])))
    assert {"two of the images are the same picture", "the time of the prior is not given",
            "no indication given; the adapter was trained with one"} <= set(twice.json()["warnings"])  # fmt: skip
    assert [one["days"] for one in twice.json()["images"]] == [None, None, None]
    alone = client.post("/v1/report", json={"image": image(files[0])["data"]}).json()
    assert alone["images"] == [{"view": "", "prior": False, "days": None}]
    one_for_all = fields(("prior", files[0]), ("prior", files[1]), ("prior_days", "7"))
    assert [one["days"] for one in client.post("/v1/report", files=one_for_all).json()["images"]] == [7, 7]


def test_the_schema_says_what_a_study_may_hold(client: httpx.Client) -> None:
    study = client.get("/v1/schema").json()["study"]
    assert study == {"max_images": 4, "views": ["PA", "lateral"], "expected": ["PA", "lateral", "prior"]}


WRONG: list[tuple[Any, int, str]] = [
    ([{}] * 10, 422, "10 images were given; the adapter reads 4 at most"),
    ([{}] * 33, 422, "images: List should have at most 32 items"),
    ([{"view": "oblique"}], 422, "the image: the adapter knows no view 'oblique', but PA, lateral"),
    ([{}, {"prior": True, "days": -3}], 422, "image 2 of 2: -3 days before the study is after it"),
    ([{"days": 3}], 422, "the image: a current image has no days before the study"),
    ([{"prior": "yes"}], 422, "images: 0: prior: Input should be a valid boolean"),
    ([{"prior": True, "days": "30"}], 422, "images: 0: days: Input should be a valid number"),
    ([{"side": "left"}], 422, "images: 0: side: Extra inputs"),
    ([{"data": "%%%"}], 400, "images: 1: not valid base64"),
    ([{"data": 3}], 422, "images: 0: data: Input should be a valid string"),
    ([{}, {"data": base64.b64encode(b"no picture").decode()}], 422, "image 2 of 2: not a readable image"),
]


@pytest.mark.parametrize(("roles", "code", "detail"), WRONG)
def test_a_wrong_study_in_json_is_named(
    roles: Any, code: int, detail: str, client: httpx.Client, files: list[Path]
) -> None:
    images = [image(files[0]) | role for role in roles]
    answer = client.post("/v1/report", json={"images": images})
    assert answer.status_code == code and detail in answer.json()["detail"], answer.text
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize(
    ("pairs", "detail"),
    [
        ([("image", 0), ("image", 1), ("view", "PA")], "view: 1 given for 2 of image; give one for each, or none"),
        ([("view", "PA")], "view: 1 given for 0 of image"),
        ([("prior", 0), ("prior_days", "3"), ("prior_days", "4")], "prior_days: 2 given for 1 of prior"),
        ([("prior_days", "3")], "prior_days: 1 given for 0 of prior"),
        ([("prior", 0), ("prior_days", "soon")], "prior_days: 'soon' is not a number of days"),
        ([("prior", 0), ("prior_days", "-1")], "-1 days before the study is after it"),
        ([("prior", 0), ("prior_days", "inf")], "longer than a life"),
        ([("prior", "text")], "prior: send it as a file"),
        ([("prior_report", "a"), ("prior_report", "b")], "prior_report: given twice"),
        ([("prior_report", "a" * 2001)], "prior_report: 2,001 characters, at most 2,000"),
        ([("image", 0)] * 5, "5 images were given; the adapter reads 4 at most"),
    ],
)
def test_a_wrong_study_in_a_form_is_named(
    pairs: list[tuple[str, Any]], detail: str, client: httpx.Client, files: list[Path]
) -> None:
    sent = fields(*((name, files[value] if isinstance(value, int) else value) for name, value in pairs))
    answer = client.post("/v1/report", files=sent)
    assert answer.status_code == 422 and detail in answer.json()["detail"], answer.text


def test_the_images_of_a_study_are_bounded_together(client: httpx.Client, files: list[Path]) -> None:
    half = files[0].read_bytes() + bytes(1 << 14)
    one = client.post("/v1/report", json={"images": [image(half)]})
    assert one.status_code == 200
    both = client.post("/v1/report", json={"images": [image(half), image(half)]})
    assert both.status_code == 413 and both.json()["detail"] == "images: together larger than 0 MiB"


def test_image_and_images_are_not_both_given(client: httpx.Client, files: list[Path]) -> None:
    both = {"image": image(files[0])["data"], "images": [image(files[1])]}
    answer = client.post("/v1/report", json=both)
    assert answer.status_code == 422 and answer.json()["detail"] == "images: stand in place of image; give one of them"


def test_nothing_of_a_case_is_logged(
    client: httpx.Client, files: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    told = {"context": "Kanarienvogel \x1b[2J <script>", "prior_report": "Kanarienvogel"}
    answers = [
        client.post("/v1/report", json={"images": [image(files[0])], **told}),
        client.post("/v1/report", json={"images": [image(files[0], view="Kanarienvogel")], **told}),
        client.post("/v1/report", json={**told, "prior_report": "Kanarienvogel" * 1000}),
    ]
    assert [answer.status_code for answer in answers] == [200, 422, 422]
    assert "Kanarienvogel" not in "".join(capfd.readouterr())
    bundle = client.post("/v1/report", json={**told, "format": "fhir"})
    assert "\\u001b" not in bundle.text and "Kanarienvogel [2J <script>" in bundle.text
