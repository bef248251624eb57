"""How sure a sentence is: what it rests on, whether it is wrong, and the fit on drafts whose reports are known."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest

from vlm.data.ingest.phantom_words import LABELS, TABLE, VITALS
from vlm.data.vitals.schema import VitalsSchema
from vlm.errors import UserError
from vlm.findings.labeller import Labeller
from vlm.findings.structure import statements_of_labels
from vlm.reliability.sentences import Sentence, SentenceFit, fit_sentences, is_wrong, read_sentences
from vlm.reliability.thresholds import Reliability

CHEST, SCHEMA = Labeller.load(), VitalsSchema((*VITALS,))
STATEMENTS = statements_of_labels(LABELS, CHEST, TABLE.label_findings)
P = {"pathology": 0.9, "right_lung": 0.8, "left_lung": 0.3, "upper_zone": 0.1, "middle_zone": 0.2, "lower_zone": 0.7,
     "dense_opacity": 0.4}  # fmt: skip
IDENTITY = SentenceFit(0.0, 1.0, 0.5, 0.2, 30)


def read(text: str, vitals: Sequence[float] = (9.0, 150.0, 95.0, 0.5)) -> list[Sentence]:
    return read_sentences([("", text)], CHEST, STATEMENTS, P, vitals, SCHEMA)


@pytest.mark.parametrize(("sentence", "labels"), [
    ("Dense shadow in the right lower zone.",
     {"pathology": 0.9, "right_lung": 0.8, "left_lung": 0.7, "upper_zone": 0.9, "middle_zone": 0.8, "lower_zone": 0.7}),
    ("Patchy opacities in both upper zones.",
     {"pathology": 0.9, "right_lung": 0.8, "left_lung": 0.3, "upper_zone": 0.1, "middle_zone": 0.8, "lower_zone": 0.3}),
    ("Opacity.", {"pathology": 0.9}),
    ("No opacity in either lung.", {"pathology": 0.1}),
    ("Possible opacity.", {}),
    ("No effusion.", {}),
])  # fmt: skip
def test_a_sentence_rests_on_the_labels_that_stand_for_what_it_says(sentence: str, labels: dict) -> None:
    (found,) = read(sentence)
    assert found.labels == pytest.approx(labels)


def test_values_that_fit_are_named_and_others_are_not() -> None:
    shadow, sugar, pressure = read("Opacity. Glucose is elevated. Blood pressure is low.")
    assert (shadow.number, sugar.number, pressure.number) == (1, 2, 3)
    assert (sugar.labels, sugar.vitals, pressure.vitals) == ({}, ("glucose",), ())
    assert read("Glucose is elevated.", [math.nan] * 4)[0].vitals == ()
    assert read("Blood pressure is elevated.")[0].vitals == ("systolic", "diastolic")
    assert read("Blood pressure was not measured.", [9.0] + [math.nan] * 3)[0].vitals == ()


def test_the_confidence_is_the_product_where_nothing_was_bent() -> None:
    first, second = read("Dense shadow in the right lower zone. Glucose is elevated.")
    product = 0.9 * 0.8 * 0.7 * 0.9 * 0.8 * 0.7
    assert IDENTITY.confidence(first) == pytest.approx(product)
    assert IDENTITY.confidence(second) is None and IDENTITY.of_draft([second]) is None
    assert IDENTITY.of_draft([first, second, first]) == pytest.approx(product**2)
    certain = Sentence(1, "", {"a": 1.0, "b": 1.0}, ())
    assert 0.999 < (IDENTITY.confidence(certain) or 0) < 1, "never certain"


def test_a_draft_that_is_certainly_wrong_is_unsure() -> None:
    assert [IDENTITY.is_unsure(value) for value in (0.0, 0.49, 0.5, 1.0, None)] == [True, True, False, False, False]
    hopeless = Sentence(1, "", {"a": 0.0, "b": 0.0}, ())
    assert IDENTITY.of_draft([hopeless] * 40) == 0.0, "the product of many runs out of digits"


def test_a_label_without_a_readable_phrase_stands_for_nothing() -> None:
    given = {"a": "opacity", "b": "opacity and effusion", "c": "the patient smokes", "d": "no opacity"}
    assert statements_of_labels(given, CHEST, given).keys() == {"a"}


@pytest.mark.parametrize(("sentence", "reference", "wrong"), [
    ("Opacity in the right lower zone", "Dense shadow in the right lower zone.", False),
    ("Opacity in the right lower zone", "Dense shadow in the left lower zone.", True),
    ("Opacity in the right lower zone", "Dense shadow in both lower zones.", True),
    ("Opacity in the right lower zone", "Dense shadow in the right upper zone.", True),
    ("Opacity in the right lower zone", "There is an opacity.", False),
    ("Opacity", "No opacity in either lung.", True),
    ("No opacity in either lung", "Patchy opacities in both upper zones.", True),
    ("No opacity in either lung", "No opacity.", False),
    ("No opacity on the left", "Opacity on the right.", False),
    ("No effusion", "Nothing is said of it.", False),
    ("Pleural effusion", "Nothing is said of it.", True),
    ("Glucose is elevated", "No opacity.", None),
])  # fmt: skip
def test_a_sentence_is_wrong_by_the_reference(sentence: str, reference: str, wrong: bool | None) -> None:
    assert is_wrong(sentence, reference, CHEST) is wrong


def simulated(count: int, overconfident: float, seed: int) -> tuple[list, list[str], np.ndarray]:
    """Draw drafts of one sentence; the true log odds are the stated ones over `overconfident`."""
    rng = np.random.default_rng(seed)
    stated = rng.normal(2, 2, count)
    wrong = rng.random(count) > 1 / (1 + np.exp(-stated / overconfident))
    sentences = [Sentence(1, "", {"a": float(1 / (1 + np.exp(-x)))}, ()) for x in stated]
    return [[(one, bool(w))] for one, w in zip(sentences, wrong, strict=True)], [f"p{n}" for n in range(count)], wrong


def test_overconfident_labels_are_bent_back() -> None:
    drafts, patients, _ = simulated(300, 3.0, 1)
    fit, line = fit_sentences(drafts, patients, 0.2)
    assert fit is not None and fit.slope == pytest.approx(1 / 3, abs=0.1) and abs(fit.intercept) < 0.4
    unseen, _, wrong = simulated(4000, 3.0, 2)
    sure = np.array([fit.confidence(draft[0][0]) for draft in unseen], dtype=float)
    for low, high in ((0.3, 0.6), (0.6, 0.8), (0.8, 1.0)):
        inside = (sure >= low) & (sure < high)
        assert 1 - wrong[inside].mean() == pytest.approx(sure[inside].mean(), abs=0.06)
    assert "from 300 sentences of 300 validation drafts" in line and "the least sure 20%" in line


def test_few_wrong_sentences_leave_the_product_nearly_as_it_is() -> None:
    drafts = [[(Sentence(1, "", {"a": 0.95}, ()), False)] for _ in range(25)]
    fit, _ = fit_sentences(drafts, [f"p{n}" for n in range(25)], 0.2)
    assert fit is not None and 0.95 < (fit.confidence(drafts[0][0][0]) or 0) < 0.99


def test_the_threshold_lies_above_the_wanted_share_of_the_drafts() -> None:
    drafts, patients, _ = simulated(200, 1.0, 3)
    fit, _ = fit_sentences(drafts, patients, 0.25)
    assert fit is not None
    below = [(fit.of_draft([one for one, _ in draft]) or 1) < fit.unsure_below for draft in drafts]
    assert np.mean(below) == pytest.approx(0.25, abs=0.01)


def test_too_little_to_fit_says_why() -> None:
    drafts, patients, _ = simulated(19, 1.0, 4)
    assert fit_sentences(drafts, patients, 0.2) == (
        None, "confidence of sentences: none (19 validation patients with a draft, 20 needed)")  # fmt: skip
    silent = [[(Sentence(1, "Glucose is low", {}, ("glucose",)), None)]] * 30
    assert "no sentence of a draft says" in fit_sentences(silent, [f"p{n}" for n in range(30)], 0.2)[1]


def test_the_fit_is_kept_and_checked() -> None:
    kept = Reliability(sentences=IDENTITY)
    values = json.loads(json.dumps(kept.to_dict()))
    assert Reliability.read(values, [], "config.json") == kept
    for key, value in (("slope", 0), ("slope", -1.0), ("intercept", math.nan), ("unsure_below", 2), ("drafts", 0),
                       ("share", "x"), ("more", 1)):  # fmt: skip
        with pytest.raises(UserError, match=r"config\.json|reliability"):
            Reliability.read(values | {"sentences": values["sentences"] | {key: value}}, [], "config.json")
