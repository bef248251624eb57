"""What an adapter says of its own reliability, measured on cases whose answers were set by hand."""

from dataclasses import replace

import numpy as np
import pytest

from vlm.config import VitalConfig
from vlm.data.case import CaseSpec
from vlm.data.images.image import ImageSpec
from vlm.data.vitals.schema import VitalsSchema, VitalsStatistics
from vlm.evaluation.confidence import abstaining_measures, confidence_measures, judge_drafts
from vlm.evaluation.html_report import show
from vlm.evaluation.measures import Bootstrap, Reports
from vlm.evaluation.trust import reliability_measures
from vlm.reliability.label_sets import LabelThresholds
from vlm.reliability.sentences import SentenceFit
from vlm.reliability.thresholds import Reliability
from vlm.resources import render

SCHEMA = VitalsSchema((VitalConfig("glucose", "mmol/L", reference=[3.9, 7.8]),))
SPEC = CaseSpec(ImageSpec(), SCHEMA, VitalsStatistics((6.0,), (1.0,), ((1.0, 9.0),)), ("opacity", "fracture", "mass"))
KEPT = Reliability(
    0.8, {"opacity": LabelThresholds(0.4, 0.6), "fracture": LabelThresholds(0.9, 0.1),
          "mass": LabelThresholds(0.0, 0.4)}, 2.0,
)  # fmt: skip
TARGETS = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 1], [0, np.nan, 0]] * 5, dtype=float)
P = np.array([[0.9, 0.95, 0.5], [0.3, 0.5, 0.5], [0.5, 0.05, 0.5], [0.1, 0.5, 0.5]] * 5)
DRAFTS = ["No opacity.", "Opacity. Glucose is low.", "Opacity on the left. Opacity on the right.", "Clear."] * 5
VITALS = np.full((20, 1), 6.0)
BOOTSTRAP = Bootstrap(np.array([f"p{n}" for n in range(20)], dtype=object), 50)


DISTANCES = np.array([0.5, 2.5, np.nan, 1.0] * 5)
REFERENCES = ["Opacity.", "Opacity.", "Opacity on the left.", "Opacity."] * 5
SURE = Reliability(unlike_above=2.0, sentences=SentenceFit(0.0, 1.0, 0.2, 0.25, 40))
"""With the probabilities above, `No opacity.` is the only draft that is less than 0.2 sure; it is at 0.1."""


def measured(kept: Reliability = KEPT, targets: np.ndarray = TARGETS, distances: np.ndarray = DISTANCES) -> dict:
    return reliability_measures(kept, SPEC, targets, P, Reports(DRAFTS, REFERENCES), VITALS, distances, BOOTSTRAP)


def test_coverage_and_size_of_the_sets() -> None:
    sets = measured()["label_sets"]
    opacity, fracture = sets["each"]["opacity"], sets["each"]["fracture"]
    assert sets["each"].keys() == {"opacity", "fracture", "mass"} and sets["wanted"] == 0.8
    assert opacity["coverage"]["value"] == 0.75 and opacity["coverage"]["low"] < 0.75 < opacity["coverage"]["high"]
    assert (opacity["coverage_present"]["value"], opacity["coverage_absent"]["value"]) == (0.5, 1.0)
    assert opacity["size"]["value"] == 1.25 and opacity["by_class"] and not sets["each"]["mass"]["by_class"]
    assert fracture["coverage"]["value"] == pytest.approx(2 / 3) and fracture["cases"] == 15, "an empty set holds none"
    assert fracture["size"]["value"] == pytest.approx(2 / 3)
    assert sets["coverage"]["value"] == pytest.approx((1 + 0 + 1 + 0.5) / 4), "mean over the known labels of a case"


def test_the_share_of_drafts_with_a_contradiction() -> None:
    found = measured()["contradictions"]
    assert found["share"]["value"] == 0.75 and found["share"]["low"] is not None
    values = {kind: share["value"] for kind, share in found["kinds"].items()}
    assert values == {"probability": 0.5, "vital": 0.25, "place": 0.25, "denial": 0.0}


def test_the_share_of_unlike_pictures() -> None:
    found = measured()["unlike_pictures"]
    assert found["value"] == pytest.approx(1 / 3) and found["cases"] == 15 and found["low"] is not None
    assert measured(Reliability())["unlike_pictures"]["why"] == "the adapter does not know the pictures of its training"
    unseen = measured(distances=np.full(20, np.nan))["unlike_pictures"]
    assert unseen["why"] == "no test case has a picture" and unseen["value"] is None


def test_what_was_not_fitted_is_said() -> None:
    none = measured(Reliability())["label_sets"]
    assert none["coverage"] == {"value": None, "low": None, "high": None, "why": "the adapter keeps no label sets"}
    unknown = measured(targets=np.full_like(TARGETS, np.nan))["label_sets"]
    assert unknown["size"]["why"] == "no label with a set is known in a test case"
    absent = measured(targets=np.where(TARGETS == 1, 0, TARGETS))["label_sets"]["each"]["opacity"]
    assert absent["coverage_present"]["why"] == "opacity is in no test case"


@pytest.mark.parametrize("kept", [KEPT, Reliability(), SURE])
def test_the_page_has_a_section(kept: Reliability) -> None:
    shown = render("vlm.evaluation", "reliability.html.j2", metrics={"reliability": measured(kept)}, show=show)
    assert "How far to rely on a draft" in shown and ("<table>" in shown) == bool(kept.label_sets)
    assert ("at random it would be 0" in shown) == (kept is SURE)
    assert render("vlm.evaluation", "reliability.html.j2", metrics={}, show=show).strip() == ""


def test_how_sure_the_sentences_are_by_hand() -> None:
    spec, reports = replace(SPEC, findings="chest_en"), Reports(DRAFTS, REFERENCES)
    judged = judge_drafts(SURE.sentences, spec, reports, P, VITALS)  # type: ignore[arg-type]
    assert judged.case[:5].tolist() == [0, 1, 2, 2, 4], "`Glucose is low` and `Clear` state no finding"
    assert judged.confidence[:4] == pytest.approx([0.1, 0.3, 0.5, 0.5]) and judged.wrong[:4].tolist() == [1, 0, 0, 1]
    assert judged.of_draft[:3] == pytest.approx([0.1, 0.3, 0.25])
    found = confidence_measures(SURE, spec, reports, P, VITALS, DISTANCES > 2, BOOTSTRAP)
    sure, held = found["sentences"], found["abstaining"]
    known = ~np.isnan(judged.confidence)
    assert (sure["count"], sure["with_confidence"]) == (len(judged.case), known.sum())
    pairs = [(a > b) + (a == b) / 2 for a, w in zip(judged.confidence[known], judged.wrong[known], strict=True) if not w
             for b, v in zip(judged.confidence[known], judged.wrong[known], strict=True) if v]  # fmt: skip
    assert sure["auroc"]["value"] == pytest.approx(np.mean(pairs)) and sure["auroc"]["low"] is not None
    assert held["share"]["value"] == 0.5 and held["unlike"] == 5, "one in four is unsure, one in four unlike"
    errors = [1, 0, 1, 0]
    assert held["wrong_sentences"]["all"]["value"] == pytest.approx(np.mean(errors))
    assert held["wrong_sentences"]["given"]["value"] == pytest.approx(np.mean(errors[2:]))
    assert held["wrong_sentences"]["cut"]["value"] == pytest.approx(1 - np.mean(errors[2:]) / np.mean(errors))
    assert held["wrong_sentences"]["withheld"]["value"] == 0.5


def test_withholding_at_random_cuts_nothing() -> None:
    rng, count = np.random.default_rng(0), 4000
    drafts = ["Opacity." if one else "No opacity." for one in rng.random(count) < 0.5]
    reports = Reports(drafts, ["Opacity."] * count)
    judged = judge_drafts(SURE.sentences, replace(SPEC, findings="chest_en"), reports, np.full((count, 3), 0.5),
                          np.full((count, 1), 6.0))  # type: ignore[arg-type]  # fmt: skip
    judged = judged._replace(of_draft=rng.random(count))
    boot = Bootstrap(np.array([f"p{n}" for n in range(count)], dtype=object), 50)
    held = abstaining_measures(judged, SURE.sentences, reports, np.zeros(count, dtype=bool), boot)  # type: ignore[arg-type]
    assert held["share"]["value"] == pytest.approx(0.2, abs=0.03)
    assert held["wrong_sentences"]["cut"]["value"] == pytest.approx(0, abs=0.05)
