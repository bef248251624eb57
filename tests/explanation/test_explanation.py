"""Explanations: sums that hold, heat where it belongs, and nothing where nothing was given."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch

from tests.explained import DRAFT, VITALS, image, model, report, scorer
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.data.vitals.schema import VitalsSchema
from vlm.errors import UserError
from vlm.explanation.attribution import TOLERANCE, CaseScorer, finer_stage, label_heats
from vlm.explanation.explain import explain
from vlm.explanation.phrases import decisive_spans, finding_spans, named_spans, token_spans, tokens_of
from vlm.explanation.picture import draw
from vlm.explanation.result import Attribution, overlay, resample_to_image
from vlm.inference.engine import ReportEngine
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.run import build_model

__all__ = ["image", "model"]  # fixtures


# ------------------------------------------------------------------------------------------- the sums


def test_the_attributions_add_up(model: ClinicalVLM, image: Path) -> None:
    """Image cells and vitals together are what the evidence adds to the words, within 1 %."""
    words = explain(model, image, VITALS, report(model), "opacities").passages[0]
    with torch.no_grad():
        case = scorer(model, image, VITALS)
        tokens = tokens_of((7, 16), token_spans(model.tokenizer, DRAFT)[1])
        given, missing = (float(case.log_probabilities(e, tokens).sum()) for e in (case.given, case.missing))
    assert words.text == "opacities" and words.cells is not None and words.cells.shape == (1, 2, 2)
    added = words.cells.sum() + sum(words.by_vital.values())
    assert abs(added - (given - missing)) <= TOLERANCE * max(abs(given - missing), 0.1)
    assert words.alone == pytest.approx(missing, abs=1e-4) and words.completeness_error <= TOLERANCE
    assert words.image == pytest.approx(words.cells.sum()) and words.by_vital["sex"] == 0
    assert words.vitals == pytest.approx(sum(words.by_vital.values()))


def test_the_words_are_scored_as_the_model_reads_them(model: ClinicalVLM, image: Path) -> None:
    """The log-probabilities are those of the text loss, with everything given."""
    from vlm.data.collate import Collator

    example, _ = ReportEngine(model).prepare(image, VITALS)
    case = scorer(model, image, VITALS)
    with torch.no_grad():
        loss = model(**Collator(model.prompt)([{**example, "report": DRAFT}])).case_losses[0]
        end = CaseScorer(model, example, model.prompt.report_ids(DRAFT))
        ours = end.log_probabilities(end.given, range(end.draft.shape[1])).sum()
    torch.testing.assert_close(-ours, loss, rtol=1e-4, atol=1e-3)
    assert case.corners[True, True].sum() == pytest.approx(float(ours) - float(end.corners[True, True][-1]), abs=1e-3)


def test_stretches_are_divided_and_too_large_an_error_is_said(model: ClinicalVLM, image: Path, monkeypatch) -> None:
    fine = scorer(model, image, VITALS).parts(range(1, 3))
    monkeypatch.setattr("vlm.explanation.attribution.FIRST_ENDS", (0.0, 1.0))
    divided = scorer(model, image, VITALS).parts(range(1, 3))
    assert divided.error <= TOLERANCE and divided.steps > 6
    assert np.allclose(divided.vitals, fine.vitals, atol=0.05) and np.allclose(divided.cells, fine.cells, atol=0.05)
    monkeypatch.setattr("vlm.explanation.attribution.MOST_STEPS", 6)
    explanation = explain(model, image, VITALS, report(model), "opacities")
    assert explanation.completeness_error > TOLERANCE and len(explanation.notes) == 1
    assert "'opacities': completeness error" in explanation.notes[0] and "do not rely" in explanation.notes[0]


def test_the_heads_path_counts_though_training_cuts_it(model: ClinicalVLM, image: Path) -> None:
    """With all other tokens silenced the label token alone carries the evidence, and it is found."""
    with torch.no_grad():
        for part in (model.vision.projector, *model.vitals.projectors, model.evidence.z_projector):
            part.norm.weight.zero_()
        model.joint.from_image.weight.mul_(30)
    case = scorer(model, image, VITALS)
    parts = case.parts(range(1, 3))
    given, missing = (float(case.log_probabilities(e, range(1, 3)).sum()) for e in (case.given, case.missing))
    added = parts.cells.sum() + parts.vitals.sum()
    assert abs(given - missing) > 0.01 and added == pytest.approx(given - missing, abs=2e-3) and parts.cells.any()
    encoded = model.encode(case.pixels, torch.tensor([True]), torch.tensor([[9.0, 150, 80, 1]]))
    with pytest.raises(RuntimeError, match="not have been used"):  # in training the text bends no head
        torch.autograd.grad(encoded.tokens[:, -1].sum(), model.joint.head[-1].weight)


# ----------------------------------------------------------------------------- where nothing is, nothing is


def test_a_model_that_ignores_the_image_gives_it_nothing(model: ClinicalVLM, image: Path) -> None:
    with torch.no_grad():
        model.vision.projector.norm.weight.zero_()
        model.joint.from_image.weight.zero_()
    explanation = explain(model, image, VITALS, report(model), "opacities, elevated")
    for words in explanation.passages:
        assert np.abs(words.cells).max() < 1e-4 and abs(words.image) < 1e-4 < abs(words.vitals)
    assert max(piece.image for piece in explanation.tinted_words()) < 1e-3
    assert max(piece.vitals for piece in explanation.tinted_words()) > 0.01


def test_a_missing_vital_and_a_missing_image_get_exactly_nothing(model: ClinicalVLM, tmp_path: Path) -> None:
    explanation = explain(model, None, {"glucose": 9}, report(model), "elevated")
    words = explanation.passages[0]
    assert words.by_vital["glucose"] != 0 and words.image == 0 and words.heat is None
    assert [words.by_vital[name] for name in ("systolic", "diastolic", "sex")] == [0, 0, 0]
    assert all(piece.image == 0 for piece in explanation.tinted_words())
    assert explanation.notes == ("no image was read: there is nothing to lay a heat over",)
    with pytest.raises(UserError, match="no image was read"):
        overlay(explanation)
    draw(explanation, tmp_path / "none.png")
    nothing = explain(model, None, None, report(model), "elevated")
    assert nothing.passages[0].shares == (0, 0, 1) and nothing.completeness_error == 0
    assert "no vitals were given" in nothing.notes


def test_an_empty_draft_has_labels_and_no_words(model: ClinicalVLM, image: Path, tmp_path: Path) -> None:
    explanation = explain(model, image, None, report(model, ""))
    assert explanation.words == explanation.passages == () and len(explanation.labels) == 2
    draw(explanation, tmp_path / "empty.png")
    with pytest.raises(UserError, match="does not say 'opacity'; it says: nothing"):
        explain(model, image, None, report(model, ""), "opacity")


# --------------------------------------------------------------------------------------- where it is hot


class Bright(torch.nn.Module):
    """A CNN by hand: each of 8 × 8 cells is the brightness of its own 8 × 8 pixels."""

    def __init__(self, channels: int, black: float) -> None:
        super().__init__()
        self.mean = torch.nn.Conv2d(3, channels, 8, 8)
        torch.nn.init.constant_(self.mean.weight, 1 / 192)
        torch.nn.init.constant_(self.mean.bias, -black)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.mean(pixels)


@pytest.mark.parametrize("place", [(10, 12), (44, 20), (30, 50)])
def test_the_heat_lies_where_a_hand_made_model_looks(
    model: ClinicalVLM, tmp_path: Path, place: tuple[int, int]
) -> None:
    """A label that rises with brightness, and one bright spot: in a picture that is wider than high."""
    spot = np.zeros((48, 64), np.uint8)
    cv2.circle(spot, place[::-1], 3, 255, -1)
    cv2.imwrite(str(tmp_path / "spot.png"), spot)
    model.vision.cnn = Bright(model.vision.channels, -model.spec.image.mean / model.spec.image.std)
    with torch.no_grad():
        model.vision.missing.zero_()  # what is not there is black
        model.joint.from_image.weight.abs_()
        model.joint.head = torch.nn.Linear(8, 2)
        model.joint.head.weight.abs_()
    explanation = explain(model, tmp_path / "spot.png", None, report(model), "opacities")
    for heat in (
        explanation.heat_of("pathology"),
        resample_to_image(np.abs(explanation.passages[0].heat[0]), spot.shape),
    ):
        hottest = np.unravel_index(heat.argmax(), spot.shape)
        assert np.hypot(hottest[0] - place[0], hottest[1] - place[1]) <= 8
    cells = np.abs(explanation.passages[0].cells[0])
    assert np.unravel_index(cells.argmax(), cells.shape) == ((place[0] + 8) // 8, place[1] // 8), "padded by 8 above"


def test_the_overlay_keeps_the_aspect_and_cuts_the_padding_away(model: ClinicalVLM, image: Path) -> None:
    explanation = explain(model, image, VITALS, report(model), "opacities")
    assert explanation.pictures[0].pixels.shape == (30, 40)
    for name in (None, "opacities", "Opacities", "effusion"):
        pixels = overlay(explanation, name)
        assert pixels.shape == (30, 40, 3) and pixels.dtype == np.uint8
    with pytest.raises(UserError, match="'heart' is neither a label nor an explained word; known: opacities, patho"):
        overlay(explanation, "heart")
    cells = np.zeros((4, 4))
    cells[0] = 9.0  # the first row of cells is padding in a picture twice as wide as high
    cells[1, 2] = 1.0
    shown = resample_to_image(cells, (100, 200))
    assert shown.shape == (100, 200) and abs(int(np.unravel_index(shown[25:].argmax(), (75, 200))[1]) - 125) <= 26


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto"])
def test_the_heat_is_read_one_stage_before_the_last(name: str) -> None:
    cnn = timm.create_model(name, num_classes=0, global_pool="").eval()
    shapes = []
    finer_stage(cnn).register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    assert [side // 2 for side in cnn(torch.zeros(1, 3, 64, 64)).shape[2:]] == [1, 1] and shapes[0][2:] == (4, 4)


def test_a_frozen_cnn_has_a_heat_too(tiny_config: Config, image: Path) -> None:
    vision = replace(tiny_config.model.vision, train=False)
    config = replace(tiny_config, model=replace(tiny_config.model, vision=vision))
    model = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32).eval()
    example, _ = ReportEngine(model).prepare(image, VITALS)
    assert [heat.shape for heat in label_heats(model, example)] == [(1, 2, 2)] * 2


def test_explaining_leaves_the_model_as_it_was(model: ClinicalVLM, image: Path) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain(model, image, VITALS, report(model), "opacities")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------- words


def test_the_words_that_are_chosen() -> None:
    schema = VitalsSchema(())
    for text, wanted in {
        "Dense shadow in the right lower zone. Liver is fine.": ["Dense shadow", "right lower"],
        "No opacity in either lung.": ["No opacity"],
        "There is a small left pleural effusion with adjacent\nconsolidation.":
            ["small left pleural effusion", "adjacent", "consolidation"],
    }.items():  # fmt: skip
        assert [text[a:b] for a, b in decisive_spans(text, {}, schema)] in (wanted, [*wanted[:1], "consolidation"])
    assert [DRAFT[a:b] for a, b in finding_spans(DRAFT)] == ["Patchy opacities"]
    assert named_spans(DRAFT, "lower  zone, PATCHY") == [(0, 6), (29, 39)]
    with pytest.raises(UserError, match="--explain_words: the draft does not say 'heart'; it says: patchy, opacities"):
        named_spans(DRAFT, "zone, heart")
    with pytest.raises(UserError, match="'opacit'"):
        named_spans(DRAFT, "opacit")


def test_levels_of_vitals_are_chosen(model: ClinicalVLM) -> None:
    text = "Glucose is elevated. The blood pressure was not measured. Systolic 150."
    spans = decisive_spans(text, {"glucose": 9.0, "systolic": 150.0}, model.spec.schema)
    assert [text[a:b] for a, b in spans] == ["elevated", "not measured", "150"]


def test_tokens_and_pieces_are_the_whole_draft(model: ClinicalVLM) -> None:
    ids, places = token_spans(model.tokenizer, DRAFT)
    assert ids == model.prompt.encode_text(DRAFT)
    for a, b in [(0, 6), (7, 16), (24, 39)]:
        tokens = tokens_of((a, b), places)
        assert model.tokenizer.decode([ids[i] for i in tokens]).strip().startswith(DRAFT[a:b])
    pieces = explain(model, None, None, report(model), "zone").tinted_words()
    assert "".join(piece.text for piece in pieces) == DRAFT
    assert all(sum(piece[1:]) == pytest.approx(1) for piece in pieces)


def test_shares_say_what_the_language_knew() -> None:
    assert Attribution(0, 1, 0.0, 0.0, -1.0).shares == (0, 0, 1)
    image, vitals, language = Attribution(0, 1, np.log(4), np.log(2), -3.0).shares
    assert language == pytest.approx(1 / 8) and image == pytest.approx(2 * vitals)
    assert Attribution(0, 1, 3.0, -3.0, -1.0).shares[2] < 0.01, "what cancels was drawn on all the same"
