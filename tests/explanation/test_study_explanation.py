"""Explanations of several images: sums over all of them, heat and share of each, names and order."""

import io
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.explained import DRAFT, VITALS, report
from vlm.adapter import save
from vlm.app.explaining import MOST_MAPS, explained, show
from vlm.cli import build_parser
from vlm.config import Config
from vlm.data.case import Example, make_example
from vlm.data.collate import Collator
from vlm.data.ingest.sources import load_cohort
from vlm.data.study import StudyPicture, StudySpec
from vlm.errors import UserError
from vlm.explanation.attribution import TOLERANCE, CaseScorer, label_heats
from vlm.explanation.bars import count_evidence, evidence_bars
from vlm.explanation.explain import explain, image_names
from vlm.explanation.explained_draft import explain_case
from vlm.explanation.heat_panels import MOST_COLUMNS, strips
from vlm.explanation.phrases import finding_spans, token_spans, tokens_of
from vlm.explanation.picture import draw
from vlm.explanation.pointing_game import Case, _begins_frontal, heats
from vlm.explanation.result import overlay
from vlm.inference.engine import ReportEngine
from vlm.inference.study_images import StudyImage
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.run import build_model

STUDY = StudySpec(6, ("PA", "lateral"), ("PA", "lateral", "prior"))
ROLES = ["PA", "lateral", "prior PA, 30 days"]


@pytest.fixture
def model(tiny_config: Config) -> ClinicalVLM:
    """A tiny model of several images with a grid of 2 × 2 cells, whose study parameters are not zero."""
    config = replace(tiny_config, data=replace(tiny_config.data, image_size=64))
    one = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)
    torch.manual_seed(0)
    spec = replace(one.spec, study=STUDY)
    model = ClinicalVLM.from_config(config.model, spec, torch.device("cpu"), torch.float32).eval()
    with torch.no_grad():
        for name, value in model.vision.study.named_parameters():
            if name != "role_score":
                value.copy_(0.3 * torch.randn(value.shape))
        model.vision.missing.normal_()
    return model


@pytest.fixture
def images(tmp_path: Path) -> list[StudyImage]:
    """Three images of different shape, not in the model's order."""
    rng, files = np.random.default_rng(0), []
    for name, shape in (("before", (40, 30)), ("side", (40, 24)), ("front", (30, 40))):
        files.append(tmp_path / f"{name}.png")
        cv2.imwrite(str(files[-1]), cv2.resize(rng.integers(0, 256, (6, 6), dtype=np.uint8), shape[::-1]))
    return [StudyImage(files[0], "PA", True, 30), StudyImage(files[1], "LATERAL"), StudyImage(files[2], "pa")]


def prepared(model: ClinicalVLM, images: list[StudyImage]) -> Example:
    return ReportEngine(model).prepare(images, VITALS)[0]


def test_the_cells_of_all_images_and_the_vitals_add_up(model: ClinicalVLM, images: list[StudyImage]) -> None:
    """As with one image within 1 %, and the share of each image is of its own cells."""
    explanation = explain(model, images, VITALS, report(model), "opacities")
    words = explanation.passages[0]
    case = CaseScorer(model, prepared(model, images), token_spans(model.tokenizer, DRAFT)[0])
    tokens = tokens_of((7, 16), token_spans(model.tokenizer, DRAFT)[1])
    with torch.no_grad():
        given, missing = (float(case.log_probabilities(e, tokens).sum()) for e in (case.given, case.missing))
    assert words.cells.shape == (3, 2, 2) and words.heat.shape == (3, 4, 4)
    added = words.cells.sum() + sum(words.by_vital.values())
    assert abs(added - (given - missing)) <= TOLERANCE * max(abs(given - missing), 0.1)
    assert words.alone == pytest.approx(missing, abs=1e-4)
    assert words.by_image == pytest.approx(words.cells.sum(axis=(1, 2))) and sum(words.by_image) == pytest.approx(
        words.image
    )
    assert sum(words.image_shares) == pytest.approx(1) and min(words.image_shares) > 0
    assert [image.name for image in explanation.pictures] == ROLES
    assert [image.pixels.shape for image in explanation.pictures] == [(30, 40), (40, 24), (40, 30)]


def test_the_words_are_scored_as_the_model_reads_a_study(model: ClinicalVLM, images: list[StudyImage]) -> None:
    """With all images as in the text loss, and with none as the model reads a case without any: with other tokens."""
    example, ids = prepared(model, images), model.prompt.report_ids(DRAFT)
    bare = make_example(model.spec, [], example["vitals"].numpy())
    case = CaseScorer(model, example, ids)
    for key, read in (((True, True), example), ((False, True), bare)):
        with torch.no_grad():
            loss = model(**Collator(model.prompt)([{**read, "report": DRAFT}])).case_losses[0]
        assert -case.corners[key].sum() == pytest.approx(float(loss), rel=1e-4)
    assert case.withheld.ids.shape[1] - case.ids.shape[1] == 3 - 2 * 4, "three lacking roles for two images of 2 × 2"
    one = CaseScorer(model, prepared(model, [StudyImage(images[0].image)]), ids)
    assert one.withheld is one, "an image without a role has the place of none"


def test_an_image_that_the_model_does_not_read_gets_nothing(model: ClinicalVLM, images: list[StudyImage]) -> None:
    """With silenced image tokens the pooled vector alone carries the images, and no head attends to the prior."""
    with torch.no_grad():
        model.vision.projector.norm.weight.zero_()
        model.joint.from_image.weight.mul_(30)
        model.vision.study.role_score[3] = -60.0  # a prior PA
    explanation = explain(model, images, VITALS, report(model), "opacities")
    words = explanation.passages[0]
    assert words.image_shares[2] < 1e-6 and min(words.image_shares[:2]) > 1e-3
    assert np.abs(words.heat[2]).max() < 1e-6 * np.abs(words.heat[:2]).max()
    for label in explanation.labels:
        assert np.abs(label.heat[2]).max() < 1e-6 * np.abs(label.heat[:2]).max()


def test_heats_of_a_study_share_one_scale(model: ClinicalVLM, images: list[StudyImage]) -> None:
    explanation = explain(model, images, VITALS, report(model), "opacities")
    for name in ("opacities", "pathology"):
        largest = [float(explanation.heat_of(name, place).max()) for place in range(3)]
        assert max(largest) == pytest.approx(1) and min(largest) < 1
    assert overlay(explanation, "pathology", 1).shape == (40, 24, 3)
    with pytest.raises(UserError, match="image 3: the case has 3, numbered from 0"):
        overlay(explanation, "pathology", 3)


def test_the_order_of_images_does_not_matter_and_blank_ones_are_left_out(
    model: ClinicalVLM, images: list[StudyImage], tmp_path: Path
) -> None:
    cv2.imwrite(str(tmp_path / "blank.png"), np.full((20, 20), 7, np.uint8))
    first = explain(model, images, VITALS, report(model), "opacities")
    again = explain(model, [StudyImage(tmp_path / "blank.png", "PA"), *images[::-1]], VITALS, report(model),
                    "opacities")  # fmt: skip
    assert again.to_dict() == first.to_dict()
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first.pictures, again.pictures, strict=True))


def test_images_are_named_by_their_roles(model: ClinicalVLM) -> None:
    square = np.random.default_rng(0).integers(0, 256, (5, 64, 64), dtype=np.uint8)
    roles = [("", False, 0.0), ("PA", False, 0.0), ("PA", False, 0.0), ("", True, float("nan")), ("PA", True, 1.0)]
    pictures = [StudyPicture(pixels, *role) for pixels, role in zip(square, roles, strict=True)]
    example = make_example(model.spec, pictures, np.full(4, np.nan))
    assert image_names(example, STUDY) == ["image", "PA", "PA (2)", "prior", "prior PA, 1 day"]
    assert image_names(make_example(model.spec, pictures[:1], np.full(4, np.nan)), None) == ["image"]


@pytest.mark.slow
def test_the_picture_and_the_numbers_name_each_image(
    model: ClinicalVLM, images: list[StudyImage], tmp_path: Path
) -> None:
    explanation = explain(model, images, VITALS, report(model), "opacities, elevated")
    draw(explanation, tmp_path / "study.png")
    assert min(cv2.imread(str(tmp_path / "study.png")).shape[:2]) > 500
    bars = evidence_bars(explanation)
    assert [bar.name for bar in bars[:3]] == ROLES and len(bars) == count_evidence(explanation) == 3 + 4
    assert sum(float(bar.aside.split("(")[1].rstrip("%)")) for bar in bars[:3]) == pytest.approx(100, abs=2)
    said = json.loads(json.dumps(explanation.to_dict()))
    words = said["passages"][0]
    assert said["images"] == list(words["cells"]) == list(said["labels"][0]["heat"]) == list(words["by_image"]) == ROLES
    assert sum(words["image_shares"].values()) == pytest.approx(1)
    assert "of the images: PA " in explanation.lines()[0] and "; prior PA, 30 days " in explanation.lines()[0]
    assert all(panel.caption for strip in strips(explanation) for panel in strip.panels)


@pytest.mark.parametrize(("count", "rows"), [(1, [1]), (2, [2]), (4, [4]), (5, [3, 2]), (6, [3, 3])])
def test_many_images_break_into_rows(model: ClinicalVLM, tmp_path: Path, count: int, rows: list[int]) -> None:
    squares = np.random.default_rng(0).integers(0, 256, (count, 64, 64), dtype=np.uint8)
    example, _ = ReportEngine(model).prepare([StudyImage(square) for square in squares], None)
    explanation = explained(ReportEngine(model), (example, ()), [StudyImage(s) for s in squares], report(model))
    laid = [len(strip.panels) for strip in strips(explanation)]
    assert laid == rows and max(laid) <= MOST_COLUMNS, "the labels alone have heat here"
    draw(explanation, tmp_path / "rows.png")


def test_the_quick_explanation_shows_each_image(model: ClinicalVLM, images: list[StudyImage]) -> None:
    engine = ReportEngine(model)
    squares = [item._replace(image=engine.read_picture(item.image)) for item in images]
    explanation = explained(engine, engine.prepare(squares, VITALS), squares, report(model))
    page = show(explanation)
    assert page.count("<img") == 2 * 3 <= MOST_MAPS and all(f"pathology: {role}" in page for role in ROLES)
    none = explained(engine, engine.prepare(None, VITALS), None, report(model))
    assert "No image was read" in show(none)


def test_the_command_explains_a_study(model: ClinicalVLM, images: list[StudyImage], tmp_path: Path) -> None:
    before, side, front = (str(item.image) for item in images)
    case = ["--image", side, "--view", "lateral", "--image", front, "--view", "PA", "--prior", before, "--prior_view",
            "PA", "--prior_days", "30", "--context", "cough", "--json", "--max_new_tokens", "6"]  # fmt: skip
    adapter, file, out = str(save(model, tmp_path / "adapter")), tmp_path / "why.png", io.StringIO()
    explain_case(build_parser().parse_args(["draft", "--adapter", adapter, *case, "--explain", str(file)]), out)
    assert json.loads(out.getvalue())["explanation"]["images"] == ROLES and file.stat().st_size > 10_000


def test_the_indication_and_the_prior_report_are_read(model: ClinicalVLM) -> None:
    plain, asked, before = (
        explain(model, None, None, report(model), "zone", *texts).words[0].alone
        for texts in ((), ("cough",), ("cough", "No opacity."))
    )
    assert len({plain, asked, before}) == 3


def test_the_pointing_game_looks_at_the_frontal_image(model: ClinicalVLM, images: list[StudyImage]) -> None:
    example = prepared(model, images)
    case = Case(example, np.ones((64, 64), bool), DRAFT, finding_spans(DRAFT)[0])
    maps = heats(model, [case], "explaining")
    assert np.allclose(maps["label pathology"][0], label_heats(model, example)[0][0]) and maps["finding words"][
        0
    ].shape == (4, 4)
    assert _begins_frontal(example, model)
    assert not any(_begins_frontal(prepared(model, part), model) for part in (images[:1], images[:2], []))
