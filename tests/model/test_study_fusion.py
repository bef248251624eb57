"""Several images of a case in the model: order, absent roles, one image, what reaches z and the prompt."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch

from vlm.adapter import load, save
from vlm.config import Config
from vlm.data.case import CaseSpec, make_example
from vlm.data.collate import Batch, Collator, evidence_of
from vlm.data.study import StudyPicture, StudySpec
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine
from vlm.inference.study_images import StudyImage
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.projection import WordTokens
from vlm.model.study_fusion import OWN, StudyFusion
from vlm.training.optimizer import part_of

STUDY = StudySpec(4, ("PA", "lateral"), ("PA", "lateral", "prior"))
VITALS = np.array([7.0, 130, 80, 1], dtype=np.float32)


@pytest.fixture
def study_model(tiny_config: Config, tiny_model: ClinicalVLM) -> ClinicalVLM:
    """A model of several images, whose study parameters are no longer zero."""
    spec = replace(tiny_model.spec, study=STUDY)
    torch.manual_seed(0)
    model = ClinicalVLM.from_config(tiny_config.model, spec, torch.device("cpu"), torch.float32).eval()
    with torch.no_grad():
        for name, value in model.vision.study.named_parameters():
            if name != "role_score":
                value.copy_(0.3 * torch.randn(value.shape))
    return model


def pictures(count: int = 4) -> list[StudyPicture]:
    rng = np.random.default_rng(1)
    roles = [("PA", False, 0.0), ("lateral", False, 0.0), ("lateral", False, 0.0), ("PA", True, 30.0)]
    return [StudyPicture(rng.integers(0, 256, (32, 32), np.uint8), *role) for role in roles[:count]]


def batch_of(model: ClinicalVLM, *studies: list[StudyPicture], report: str = "No opacity.") -> Batch:
    return Collator(model.prompt)([make_example(model.spec, study, VITALS, report=report) for study in studies])


@torch.no_grad()
def test_the_order_of_images_does_not_matter(study_model: ClinicalVLM) -> None:
    wanted = study_model(**batch_of(study_model, pictures()))
    for order in permutations(pictures()):
        output = study_model(**batch_of(study_model, list(order)))
        assert torch.equal(output.logits, wanted.logits) and torch.equal(output.case_losses, wanted.case_losses)


@torch.no_grad()
def test_a_case_does_not_depend_on_the_others_of_its_batch(study_model: ClinicalVLM) -> None:
    studies = [pictures(4), [], pictures(1), pictures(2)]
    together, batch = study_model(**batch_of(study_model, *studies)), batch_of(study_model, *studies)
    images, expected = study_model.vision.config.grid**2, len(STUDY.expected)
    rest = study_model.evidence_tokens - images
    assert batch["evidence_mask"].sum(dim=1).tolist() == [
        4 * images + rest, images + expected + rest, images + 2 + rest, 2 * images + 1 + rest
    ]  # fmt: skip
    for row, study in enumerate(studies):
        alone = study_model(**batch_of(study_model, study))
        torch.testing.assert_close(alone.logits[0], together.logits[row])
        torch.testing.assert_close(alone.case_losses[0], together.case_losses[row], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_each_role_begins_in_its_own_pool() -> None:
    fusion = StudyFusion(STUDY, 4, WordTokens(torch.zeros(3, 8), 0.1))
    summary = torch.randn(3, 2, 4)
    roles = torch.tensor([[0.0, 1, 0, 0], [0, 2, 0, 0], [1, 2, 1, 9]])  # PA and lateral, then a lateral prior alone
    pooled = fusion.vector(summary, roles, 2).view(2, len(STUDY.expected), 2, 4)
    own = 1 / (1 + math.exp(-OWN) + math.exp(-2 * OWN))
    for case, pool, image in ((0, 0, 0), (0, 1, 1), (1, 2, 2)):
        other = 1 - image if case == 0 else image
        share = own if case == 0 else 1 / (1 + math.exp(-OWN))
        rest = share * math.exp(-2 * OWN) * summary[other] if case == 0 else 0
        torch.testing.assert_close(pooled[case, pool], share * summary[image] + rest)
    assert pooled[0, 2].abs().max() < 0.3 * summary.abs().max(), "no prior: nearly the learned vector, here zero"
    fusion.null.fill_(1.0)
    assert torch.allclose(fusion.vector(summary, roles, 2).view(2, 3, 2, 4)[0, 2], torch.ones(2, 4), atol=0.3)


@torch.no_grad()
def test_a_current_image_of_no_expected_view_has_a_pool_too() -> None:
    own = 1 / (1 + math.exp(-OWN))
    for expected, wanted in (
        (("PA", "lateral", "prior"), [own, 1 - own, 1 - own]),
        (("prior",), [1 - own, own]),
        ((), [own]),
    ):
        study = StudySpec(4, ("AP", "PA", "lateral", "oblique"), expected)
        fusion = StudyFusion(study, 4, WordTokens(torch.zeros(len(expected), 8), 0.1))
        for view in ("", "oblique", "AP"):
            pooled = fusion.vector(torch.ones(1, 1, 4), torch.tensor([[0.0, study.number(view), 0, 0]]), 1)
            torch.testing.assert_close(pooled[0, :, 0], torch.tensor(wanted))


def test_one_frontal_view_stands_for_the_other() -> None:
    study = StudySpec(4, ("AP", "PA", "lateral", "oblique"), ("PA", "lateral", "prior"))
    assert [study.filled_by(role) for role in ("AP", "PA", "lateral", "oblique", "prior", "")] == [
        "PA", "PA", "lateral", "", "prior", ""
    ]  # fmt: skip
    assert study.absent(np.array([[study.number("AP"), 0, 0.0]])) == 2
    fusion = StudyFusion(study, 4, WordTokens(torch.zeros(3, 8), 0.1))
    assert fusion.lacks(torch.tensor([[0.0, study.number("AP"), 0, 0]]), 1).tolist() == [[False, True, True]]


@torch.no_grad()
def test_view_time_and_each_image_reach_z_and_the_text(study_model: ClinicalVLM) -> None:
    wanted = study_model(**batch_of(study_model, pictures()))
    changed = {
        "no lateral": pictures(1) + pictures()[3:],
        "no prior": pictures(3),
        "another view": [pictures()[0], *(item._replace(view="") for item in pictures()[1:3]), pictures()[3]],
        "another lateral": [*pictures()[:2], pictures()[2]._replace(picture=pictures()[0].picture), pictures()[3]],
    }
    for what, study in changed.items():
        output = study_model(**batch_of(study_model, study))
        assert not torch.allclose(output.logits, wanted.logits), what
        assert not torch.allclose(output.case_losses, wanted.case_losses), what
    for days in (3.0, math.nan):
        output = study_model(**batch_of(study_model, [*pictures(3), pictures()[3]._replace(days=days)]))
        assert not torch.allclose(output.case_losses, wanted.case_losses), "the time is a mark of the tokens"


def test_every_parameter_of_the_study_learns_from_a_batch(study_model: ClinicalVLM) -> None:
    study_model.train()
    unknown = [item._replace(view="", days=math.nan) for item in pictures()]
    batch = batch_of(study_model, pictures(), pictures(1), unknown, [], [pictures()[3]._replace(view="lateral")])
    batch["targets"] = torch.tensor([[1.0, 0.0]] * 5)
    study_model(**batch, alpha=0.4).loss.backward()
    for name, value in study_model.vision.study.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all() and value.grad.abs().sum() > 0, name


def test_what_learns_from_the_labels_learns_in_the_head_only_steps(study_model: ClinicalVLM) -> None:
    study_model.train()
    study_model.encode(**evidence_of(batch_of(study_model, pictures(), []))).logits.sum().backward()
    taught = {name for name, value in study_model.named_parameters() if value.grad is not None}
    assert taught == {name for name in study_model.trainable_parameters() if part_of(name) in ("head", "cnn")}


def test_a_saved_study_model_drafts_the_same(study_model: ClinicalVLM, tmp_path) -> None:
    again = load(save(study_model, tmp_path / "adapter"), dtype=torch.float32).eval()
    assert again.spec.study == STUDY
    with torch.no_grad():
        batch = batch_of(study_model, pictures(), [])
        assert torch.equal(study_model(**batch).case_losses, again(**batch).case_losses)
        assert torch.equal(study_model.encode(**evidence_of(batch)).z, again.encode(**evidence_of(batch)).z)


def squares(*roles: tuple[str, bool, float | None]) -> list[StudyImage]:
    return [StudyImage(item.picture, *role) for item, role in zip(pictures(), roles, strict=False)]


def test_drafting_says_what_is_missing_and_refuses_what_it_cannot_read(study_model: ClinicalVLM) -> None:
    engine = ReportEngine(study_model)
    report = engine.predict([(squares(("pa", False, None), ("LL", False, None), ("", True, None)), None)])[0]
    assert "the time of the prior is not given" in report.warnings
    assert not any(w.startswith("not given: ") and "prior" in w for w in report.warnings)
    assert "not given: lateral view, prior" in engine.predict([(squares(("PA", False, None)), None)])[0].warnings
    twice = [StudyImage(pictures()[0].picture, "PA"), StudyImage(pictures()[0].picture, "lateral")]
    assert "two of the images are the same picture" in engine.prepare(twice, None)[1]
    assert "no current image given" in engine.prepare(squares(("PA", True, 3.0)), None)[1]
    for images, said in (
        (squares(*[("PA", False, None)] * 4) * 3, "12 images were given; the adapter reads 4 at most"),
        (squares(("oblique", False, None)), "knows no view 'oblique'"),
        (squares(("laterel", False, None)), "did you mean lateral"),
        (squares(("PA", True, -2.0)), "-2 days before the study is after it"),
        (squares(("PA", True, math.inf)), "longer than a life"),
        (squares(("PA", False, 3.0)), "a current image has no days"),
        (squares(("<b>", False, None)), "is no view"),
    ):
        with pytest.raises(UserError, match=said):
            engine.prepare(images, None)


def test_a_model_of_one_image_refuses_several_views_and_priors(tiny_model: ClinicalVLM) -> None:
    engine = ReportEngine(tiny_model)
    for images, said in (
        (squares(("", False, None), ("", False, None)), "2 images were given; the adapter reads one: it was trained"),
        (squares(("PA", False, None)), "trained without views; leave PA away"),
        (squares(("", True, 3.0)), "an earlier image was given; the adapter was trained without any"),
    ):
        with pytest.raises(UserError, match=said):
            engine.prepare(images, None)
    plain = engine.prepare(pictures()[0].picture, None)
    assert torch.equal(plain[0]["pixel_values"], engine.prepare(squares(("", False, None)), None)[0]["pixel_values"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_images": 0}, "max_images must be 1 to"), ({"max_images": 10**9}, "max_images must be 1 to"),
        ({"views": ("pa",)}, "no plain word"), ({"views": ("PA", "PA")}, "different ones"),
        ({"views": tuple(f"v{n}" for n in range(99))}, "different ones"), ({"views": ("<b>",)}, "no view"),
        ({"expected": ("oblique",)}, "names of views"), ({"expected": ("prior", "prior")}, "each once"),
    ],
)  # fmt: skip
def test_a_study_from_outside_is_validated(wrong: dict, said: str, tiny_model: ClinicalVLM) -> None:
    with pytest.raises(UserError, match=said):
        CaseSpec(**{**vars(tiny_model.spec), "study": StudySpec(**{"max_images": 3, **wrong})})
