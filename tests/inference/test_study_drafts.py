"""Several images a case from Python and the command line: roles, counts, times, and every way to get them wrong."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forks import Forks
from tests.studies import save_study_adapter, write_pictures
from vlm import ClinicalVLM, StudyImage, UserError
from vlm.cli import build_parser
from vlm.explanation.explain import explain
from vlm.inference.command import draft_case
from vlm.inference.options import check_draft_options, images_of
from vlm.report import ReadImage, Report

VITALS = {"glucose": 8, "bp": "120/80", "sex": "F"}


@pytest.fixture(scope="module")
def adapter(tiny_llm: str, table_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_study_adapter(tiny_llm, table_root, tmp_path_factory.mktemp("study") / "adapter")


@pytest.fixture(scope="module")
def model(adapter: Path) -> ClinicalVLM:
    return ClinicalVLM.from_pretrained(adapter, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def parsed(*options: str) -> argparse.Namespace:
    return build_parser().parse_args(["draft", *options])


# ------------------------------------------------------------------------------------------------ Python


def test_a_study_is_drafted_and_says_what_it_read(model: ClinicalVLM, files: list[Path]) -> None:
    study = [StudyImage(files[2], "lateral", True, 30), StudyImage(files[1], "LL"), StudyImage(files[0], "pa")]
    report = model.predict(study, VITALS, 8, context="Cough.", prior_report="Clear lungs.")
    read = (ReadImage("PA"), ReadImage("lateral"), ReadImage("lateral", True, 30.0))
    assert report.images == read and report.to_dict()["images"][2] == {"view": "lateral", "prior": True, "days": 30.0}
    assert "read: PA image; lateral image; prior lateral image, 30 days before" in str(report)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()
    assert model.predict(study[::-1], VITALS, 8, context="Cough.", prior_report="Clear lungs.").text == report.text
    for changed in (
        model.predict(study[1:], VITALS, 8, context="Cough.", prior_report="Clear lungs."),
        model.predict(study, VITALS, 8, context="Cough."),
        model.predict(study, VITALS, 8, prior_report="Clear lungs."),
    ):
        assert changed.text != report.text
    (many,) = model.predict_many([(study, VITALS, "Cough.", "Clear lungs.")], max_new_tokens=8)
    assert many.text == report.text


def test_what_is_missing_or_doubtful_of_a_study_is_said(model: ClinicalVLM, files: list[Path]) -> None:
    prior = model.predict([StudyImage(files[0], prior=True)], VITALS, 2)
    assert {"no current image given", "the time of the prior is not given", "not given: PA view, lateral view"} <= set(
        prior.warnings
    )
    assert str(prior.images[0]) == "prior image, time unknown" and prior.to_dict()["images"][0]["days"] is None
    twice = model.predict([files[0], files[0]], VITALS, 2)
    assert "two of the images are the same picture" in twice.warnings
    none = model.predict([], VITALS, 2)
    assert "no image given" in none.warnings and none.images == () and "read:" not in str(none)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ([("", False, None)] * 10, "10 images were given; the adapter reads 4 at most"),
        ([("oblique", False, None)], "the image: the adapter knows no view 'oblique', but PA, lateral"),
        (
            [("", False, None), ("latral", False, None)],
            "image 2 of 2: the adapter knows no view 'latral', but PA",
        ),
        ([("", False, None), ("", True, -3)], "image 2 of 2: -3 days before the study is after it"),
        ([("", True, 1e6)], "longer than a life"),
        ([("", False, 3)], "a current image has no days before the study; say that it is a prior"),
        ([("prior", False, None)], "prior says when an image was taken, not its view"),
        ([("<b>", False, None)], "is no view"),
    ],
)
def test_a_wrong_study_is_one_line(study: list[Any], message: str, model: ClinicalVLM, files: list[Path]) -> None:
    with pytest.raises(UserError) as error:
        model.predict([StudyImage(files[0], *role) for role in study], VITALS)
    assert message in str(error.value) and "\n" not in str(error.value) and "jane" not in str(error.value)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ([("", False)] * 2, "2 images were given; the adapter reads one: it was trained on one a case"),
        ([("", True)], "an earlier image was given; the adapter was trained without any"),
        ([("PA", False)], "the image: the adapter was trained without views; leave PA away"),
    ],
)
def test_an_adapter_of_one_image_takes_no_study(
    study: list[Any], message: str, tiny_model: ClinicalVLM, files: list[Path]
) -> None:
    with pytest.raises(UserError) as error:
        tiny_model.predict([StudyImage(files[0], *role) for role in study], VITALS)
    assert message in str(error.value)


def test_one_image_in_a_list_is_one_image(tiny_model: ClinicalVLM, files: list[Path]) -> None:
    alone, listed = tiny_model.predict(files[0], VITALS, 8), tiny_model.predict([files[0]], VITALS, 8)
    assert alone == listed and alone.images == (ReadImage(),) and "read:" not in str(alone)
    assert str(alone.images[0]) == "image"


def test_a_study_is_not_explained_yet(model: ClinicalVLM, files: list[Path]) -> None:
    with pytest.raises(UserError, match="--explain: this adapter reads several images a case"):
        explain(model, [files[0]], VITALS, Report("No.", {}))


# --------------------------------------------------------------------------------------------- the command


def test_images_and_roles_are_paired_in_turn() -> None:
    options = parsed("--image", "a", "--view", "PA", "--image", "b", "--view", "", "--prior", "c", "--prior", "d",
                     "--prior_days", "30", "--prior_view", "lateral", "--prior_view", "PA")  # fmt: skip
    assert images_of(options) == [("a", "PA", False, None), ("b", "", False, None), ("c", "lateral", True, 30.0),
                                  ("d", "PA", True, 30.0)]  # fmt: skip
    assert images_of(parsed()) == [] and images_of(parsed("--image", "a")) == [("a", "", False, None)]
    days = parsed("--prior", "c", "--prior", "d", "--prior_days", "30", "--prior_days", "60")
    assert [image[3] for image in images_of(days)] == [30, 60]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "a", "--image", "b", "--view", "PA"], "--view: 1 given for 2 of --image; give one for each"),
        (["--view", "PA"], "--view: 1 given for 0 of --image"),
        (["--prior_days", "3"], "--prior_days: 1 given for 0 of --prior"),
        (["--prior", "c", "--prior_days", "3", "--prior_days", "4"], "--prior_days: 2 given for 1 of --prior"),
        (["--prior", "c", "--prior_view", "PA", "--prior_view", "AP"], "--prior_view: 2 given for 1 of --prior"),
        (["--input", "t.csv", "--prior", "c"], "--input: a table brings its own images"),
        (["--input", "t.csv", "--prior_report", "c"], "--prior_report: is for one case"),
    ],
)
def test_roles_that_do_not_pair_are_one_line(options: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_draft_options(parsed(*options))
    assert message in str(error.value)


def test_the_command_drafts_a_study_as_python_does(
    adapter: Path, model: ClinicalVLM, files: list[Path], forks: Forks
) -> None:
    case = ("--adapter", str(adapter), "--max_new_tokens", "8", "--vitals", json.dumps(VITALS), "--json")
    study = ("--image", str(files[0]), "--image", str(files[1]), "--view", "PA", "--view", "lateral",
             "--prior", str(files[2]), "--prior_days", "30",
             "--prior_report", "Clear lungs.", "--context", "Cough.")  # fmt: skip
    result = forks.command(*case, *study)
    assert result.returncode == 0 and result.stderr == ""
    images = [StudyImage(files[0], "PA"), StudyImage(files[1], "lateral"), StudyImage(files[2], "", True, 30)]
    own = model.predict(images, VITALS, 8, context="Cough.", prior_report="Clear lungs.")
    said = json.loads(result.stdout)
    assert said["text"] == own.text and said["images"] == own.to_dict()["images"]
    assert said["warnings"] == list(own.warnings)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("oblique", False, None), "the image: the adapter knows no view 'oblique'"),
        (("", True, -1), "-1 days before the study is after it"),
        (("", True, float("inf")), "longer than a life"),
    ],
)
def test_a_wrong_role_costs_no_wait(roles: Any, message: str, adapter: Path, files: list[Path], monkeypatch) -> None:
    monkeypatch.setattr(
        "vlm.inference.open_engine.make_engine", lambda *_, **__: pytest.fail("the model was loaded first")
    )
    with pytest.raises(UserError, match=message):
        draft_case(str(adapter), [StudyImage(files[0], *roles)], "", 4, None)
    with pytest.raises(UserError, match=r"image 2 of 2|none\.png"):
        draft_case(str(adapter), [files[0], "/no/none.png"], "", 4, None)
    with pytest.raises(UserError, match="the prior report has 20,001 characters"):
        draft_case(str(adapter), None, "", 4, None, prior_report="x" * 20_001)
