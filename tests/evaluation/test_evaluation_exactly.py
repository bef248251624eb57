"""The measures of an evaluation and the sentences on them, by value."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vlm.adapter.card import failures, measured
from vlm.adapter.metadata import eval_results
from vlm.data.vitals.schema import VitalsSchema
from vlm.evaluation.ablation import SMALL, ArmResult, ablation_measures, macro_auroc, minus, verdicts
from vlm.evaluation.agreement import Agreement
from vlm.evaluation.html_report import show
from vlm.evaluation.measures import (
    Bootstrap,
    Reports,
    auroc_of,
    head_against_text,
    label_measures,
    number_measures,
    pooled_calibration_error,
    text_loss_measure,
)
from vlm.evaluation.scoring import CaseScores, label_auroc, ranked
from vlm.evaluation.summary import summary_lines
from vlm.statistics.intervals import mean

NAN = float("nan")
ONE = np.ones((1, 12))
Y = np.array([0, 1] * 6, dtype=float)
S = np.array([0.1, 0.4, 0.2, 0.9, 0.5, 0.5, 0.3, 0.8, 0.6, 0.7, 0.2, 0.1])


def bootstrap(draws: int = 0, patients: int = 12) -> Bootstrap:
    return Bootstrap(np.array([f"p{n % patients}" for n in range(12)], dtype=object), draws)


def test_the_auroc_of_any_scores_over_the_cases_where_both_are_known() -> None:
    assert auroc_of(S, Y, bootstrap())["value"] == pytest.approx(roc_auc_score(Y, S))
    scores, targets = S.copy(), Y.copy()
    scores[0] = targets[3] = NAN
    rest = [n for n in range(12) if n not in (0, 3)]
    assert auroc_of(scores, targets, bootstrap())["value"] == pytest.approx(roc_auc_score(Y[rest], S[rest]))
    assert auroc_of(S, np.ones(12), bootstrap())["value"] is None
    assert auroc_of(S, np.full(12, NAN), bootstrap())["value"] is None
    many = auroc_of(np.tile(S, 3), np.tile(Y, 3), Bootstrap(np.arange(36), 200))
    assert many["low"] < many["value"] < many["high"]


def test_a_label_is_measured_over_the_cases_where_it_is_known() -> None:
    targets, logits = np.column_stack([Y, Y]), np.column_stack([S, -S])
    targets[[0, 1], 1] = NAN
    scores = CaseScores(logits, targets, np.zeros(12), np.zeros(12))
    first, second = label_measures(scores, scores.probabilities, ["a", "b"], bootstrap(patients=4)).values()
    assert first["auroc"]["value"] == pytest.approx(roc_auc_score(Y, S))
    assert second["auroc"]["value"] == pytest.approx(1 - roc_auc_score(Y[2:], S[2:]))
    assert (second["positives"], second["negatives"], second["prevalence"]) == (5, 5, 0.5)
    assert (first["positive_patients"], first["negative_patients"]) == (2, 2)
    p = 1 / (1 + np.exp(-S))
    assert first["brier"]["value"] == pytest.approx(np.mean((p - Y) ** 2))
    assert first["net_benefit_0.2"]["value"] == pytest.approx(np.mean(Y - (1 - Y) * 0.25))
    assert first["ece"]["value"] == pytest.approx(
        sum(abs((p - Y)[(p * 10).astype(int) == k].sum()) for k in range(10)) / 12
    )
    pooled = pooled_calibration_error(scores, scores.probabilities, bootstrap())["value"]
    both, truth = np.concatenate([p, 1 - p[2:]]), np.concatenate([Y, Y[2:]])
    assert pooled == pytest.approx(sum(abs((both - truth)[(both * 10).astype(int) == k].sum()) for k in range(10)) / 22)


def test_scores_are_ranked_to_four_digits_and_the_mean_is_of_the_defined() -> None:
    targets = np.column_stack([Y, np.ones(12), np.full(12, NAN)])
    logits = np.column_stack([S, S, S])
    assert macro_auroc(logits, targets)(ONE)[0] == pytest.approx(roc_auc_score(Y, S))
    assert np.isnan(macro_auroc(logits, targets[:, 1:])(ONE)[0])
    scores = CaseScores(logits, targets, np.zeros(12), np.zeros(12))
    assert label_auroc(scores, 0) == pytest.approx(roc_auc_score(Y, S))
    assert np.isnan(label_auroc(scores, 1)) and np.isnan(label_auroc(scores, 2))
    assert ranked(np.array([1.00001, 1.00004, 1.0002])).tolist() == [1.0, 1.0, 1.0002]
    assert minus(mean(S), mean(Y))(ONE)[0] == pytest.approx(S.mean() - 0.5)


def test_statements_and_losses_are_shares_of_all_that_were_made(tiny_config) -> None:
    schema = VitalsSchema(tuple(tiny_config.data.table.vitals))
    vitals = np.array([[9.0, 120, 80, 0]] * 12)
    drafts = ["Glucose is elevated.", "Glucose is normal.", "Glucose is 9.0. Glucose is elevated."] + [""] * 9
    said = number_measures(drafts, vitals, schema, bootstrap())
    assert said["statements"] == 4 and said["consistent"]["value"] == pytest.approx(3 / 4)
    losses = CaseScores(np.zeros((12, 0)), np.zeros((12, 0)), np.arange(12.0), np.array([0, 1] * 6))
    assert text_loss_measure(losses, bootstrap())["value"] == pytest.approx(66 / 6)


def test_the_head_says_yes_from_one_half_on() -> None:
    drafts = ["Opacity in the left lung.", "No opacity.", "Possible opacity.", "No opacity. No pneumothorax."]
    stands = {"a": "opacity", "b": "pneumothorax"}
    probabilities = np.array([[0.5, 0.1], [0.5, 0.1], [0.9, 0.1], [0.1, 0.6]])
    found = head_against_text(drafts, probabilities, ["a", "b"], stands)
    np.testing.assert_array_equal(found, [0, 1, NAN, 1])


class Shown:
    """Cases of an arm, in a test."""

    def __init__(self, changed: int, undefined: str = "") -> None:
        self.changed, self.undefined = np.arange(12) < changed, undefined


def test_an_arm_is_measured_against_the_cases_as_given() -> None:
    references = ["Opacity in the left lung.", "No opacity."] * 5 + ["", "Opacity in the left lung."]
    given = ArmResult(list(references), S[:, None], np.full(12, 10.0))
    drafts = ["No opacity."] * 6 + references[6:]
    arm = ArmResult(drafts, -S[:, None], np.array([15.0, 25] + [10] * 10))
    scores = CaseScores(S[:, None], Y[:, None], given.losses, np.full(12, 5))
    cases = {"as_given": Shown(0), "image_swapped": Shown(7), "vitals_swapped": Shown(0, "nobody's are there")}
    measures = ablation_measures(
        {"as_given": given, "image_swapped": arm}, cases, scores, Reports([], references), bootstrap()
    )
    swapped = measures["image_swapped"]
    assert measures.keys() == {"image_swapped", "vitals_swapped"}
    assert swapped["text_loss_change"]["value"] == pytest.approx(20 / 60) and swapped["cases"] == 12
    assert swapped["auroc_change"]["value"] == pytest.approx(1 - 2 * roc_auc_score(Y, S))
    assert swapped["drafts_changed"]["value"] == pytest.approx(3 / 12) and swapped["changed_cases"] == 7
    f1 = Agreement.of([d if r else "" for d, r in zip(drafts, references, strict=True)], references).f1()(ONE)[0]
    assert swapped["finding_f1_change"]["value"] == pytest.approx(f1 - 1) and f1 < 0.8
    assert all(
        measures["vitals_swapped"][name]["why"] == "nobody's are there" for name in ("auroc_change", "drafts_changed")
    )


def est(value, low=None, high=None) -> dict:
    return {"value": value, "low": low, "high": high}


def change(drafts: float, loss=(None,) * 3, area=(None,) * 3, cases: int = 100) -> dict:
    return {"drafts_changed": est(drafts), "text_loss_change": est(*loss), "auroc_change": est(*area),
            "finding_f1_change": est(None), "changed_cases": cases}  # fmt: skip


def said(**metrics) -> list[tuple[bool | None, str]]:
    found = verdicts({"distinct_reports": 50, "cases": 100, **metrics})
    return [(one["good"], one["text"]) for one in found]


def test_a_constant_report_is_named_up_to_one_in_fifty() -> None:
    assert said(distinct_reports=2) == [(False, "Constant report: 2 distinct drafts for 100 cases.")]
    assert said(distinct_reports=3) == [] and said(distinct_reports=1, cases=1) == []


@pytest.mark.parametrize(
    ("given", "good", "text"),
    [
        (change(0.04), False, "Ignores the image: with another patient's, 4% of the drafts change."),
        (change(SMALL), False, "No proof of use of the image: with another patient's, 5% of the drafts change; no "
                               "interval is defined."),
        (change(SMALL, area=(0.0, -0.1, 0.1)), False, "No proof of use of the image: with another patient's, 5% of the "
                                                      "drafts change, the AUROC by +0.000; the interval holds 0."),
        (change(0.04, cases=40), False, "No proof of use of the image: with another patient's, 4% of the drafts "
                                        "change; no interval is defined."),
        (change(0.0, loss=(0.2, 0.1, 0.3)), True, "The text uses the image: with another patient's, 0% of the drafts "
                                                  "change, the text loss by +0.200."),
        (change(0.0, area=(-0.2, -0.3, -0.1)), True, "The probability uses the image: with another patient's, 0% of "
                                                     "the drafts change, the AUROC by -0.200."),
        (change(0.9, (0.2, 0.1, 0.3), (-0.2, -0.3, -0.1)), True, "The text and probability use the image: with "
         "another patient's, 90% of the drafts change, the text loss by +0.200, the AUROC by -0.200."),
        (change(0.9, (0.2, 0.0, 0.3), (-0.2, -0.3, 0.0)), False, "No proof of use of the image: with another "
         "patient's, 90% of the drafts change, the text loss by +0.200, the AUROC by -0.200; both intervals hold 0."),
    ],
)  # fmt: skip
def test_use_of_the_image_is_proved_or_not(given: dict, good: bool, text: str) -> None:
    assert said(ablation={"image_swapped": given}) == [(good, text)]
    other = said(ablation={"vitals_swapped": given})
    assert other == [(good, text.replace("the image", "the vitals"))]


def test_a_model_is_compared_with_baselines() -> None:
    def baselines(constant, nearest, missing=None, vitals=None) -> dict:
        return {"constant": {"findings": {"f1": est(constant)}}, "nearest": {"findings": {"f1": est(nearest)}},
                "missingness": {"a": est(missing)}, "vitals": {"a": est(vitals)}}  # fmt: skip

    findings, labels = {"f1": est(0.5)}, {"a": {"auroc": est(0.7)}}
    assert said(findings=findings, baselines=baselines(0.4, 0.5)) == [
        (True, "Finding F1 0.500 is above that of a constant report, 0.400."),
        (False, "Finding F1 0.500 is not above that of the nearest training case's report, 0.500."),
    ]
    assert said(findings=findings, baselines=baselines(None, None)) == []
    assert said(findings={"f1": est(None)}, baselines=baselines(0.4, 0.5)) == []
    assert said(labels=labels, baselines=baselines(None, None, 0.7, 0.71)) == [
        (False, "AUROC of a, 0.700, is not above a classifier that sees which values are missing, 0.700."),
        (False, "AUROC of a, 0.700, is not above a classifier that sees the vitals alone, 0.710."),
    ]
    assert said(labels=labels, baselines=baselines(None, None, 0.69, None)) == []


def test_gaps_are_one_sentence_a_reason() -> None:
    gap = est(None) | {"why": "nothing was read"}
    other = est(None) | {"why": "one class"}
    found = said(findings={"f1": gap, "miss_rate": gap}, labels={"a": {"auroc": other, "brier": est(0.1)}},
                 baselines={"constant": {"findings": {"f1": gap}}}, text={"bleu": est(None)})  # fmt: skip
    assert found == [
        (None, "Not defined: findings f1, findings miss rate: nothing was read."),
        (None, "Not defined: labels a auroc: one class."),
    ]


METRICS = {
    "cases": 12, "patients": 10, "text_loss": est(1.0, 0.9, 1.1), "text_loss_untrained": est(7.0),
    "labels": {"a": {"auroc": est(0.7, 0.6, 0.8), "positives": 5, "negatives": 6}},
    "findings": {"f1": est(0.5), "hallucination_rate": est(0.25), "miss_rate": est(None) | {"why": "none is there"},
                 "each": {name: {"f1": est(f1), "in_references": 10, "in_drafts": 9} for name, f1 in
                          (("opacity", 0.9), ("nodule", 0.2), ("scar", None), ("edema", 0.5), ("mass", 0.3))}},
    "calibration": {"ece": est(0.1), "patients": 8},
    "numbers": {"consistent": est(0.75), "statements": 8},
    "text": {"rougel": est(0.4, 0.3, 0.5)},
    "verdicts": [{"good": True, "text": "Good."}, {"good": False, "text": "Bad."}, {"good": None, "text": "Gap."}],
    "facts": {"as_given": {"image_facts_right": est(0.5) | {"cases": 9}, "none": est(None) | {"cases": 0}}},
}  # fmt: skip


def test_the_summary_of_a_run() -> None:
    assert summary_lines(METRICS) == [
        "12 unseen cases of 10 patients; 95 % intervals by patient",
        "  text loss per token   1.000 (0.900 to 1.100), untrained adapter 7.000",
        "  AUROC a               0.700 (0.600 to 0.800), 5 of 11 positive",
        "  finding f1                 0.500",
        "  finding hallucination rate 0.250",
        "  finding miss rate          not defined: none is there",
        "  calibration error     0.100, temperature fitted on 8 validation patients",
        "  + Good.",
        "  ! Bad.",
        "  ? Gap.",
        "  as given         image facts right               0.500, 9 cases",
    ]
    assert show(est(0.5, 0.4, 0.6)) == "0.500 (0.400–0.600)" and show(est(None)) == show(None) == "–"


def test_what_a_card_says_of_failures_and_measures() -> None:
    assert list(failures(METRICS)) == [
        "25.0% of the drafts assert a finding that the reference does not have.",
        "Weakest findings: nodule, F1 0.200.",
        "Weakest findings: mass, F1 0.300.",
        "Weakest findings: edema, F1 0.500.",
        "25.0% of the 8 statements about vitals do not fit the values given.",
    ]
    table = dict(measured({key: METRICS[key] for key in ("cases", "text_loss", "findings", "numbers")}))
    assert table["cases"] == "12" and table["text loss"] == "1.000 (0.900 to 1.100)"
    assert table["findings, miss rate"] == "not defined: none is there"
    assert table["findings, each, opacity, in references"] == "10" and table["numbers, statements"] == "8"


def test_the_hub_is_told_the_chief_measures() -> None:
    found = [(one.metric_type, one.metric_name, one.metric_value) for one in eval_results(METRICS)]
    assert found == [
        ("roc_auc", "AUROC a, with 95 % interval 0.700 (0.600 to 0.800)", 0.7),
        ("f1", "F1 of the findings in the reports", 0.5),
        ("rouge", "ROUGE-L, with 95 % interval 0.400 (0.300 to 0.500)", 0.4),
    ]
    assert list(eval_results({"labels": {"a": {"auroc": est(None)}}})) == []
