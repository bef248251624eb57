"""Thresholds that are fixed on validation cases, and what they do on the test, by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logit

from vlm.adapter.card import card, operating_points
from vlm.config import OperatingPointConfig
from vlm.config.parsing import parse_config, to_yaml
from vlm.errors import UserError
from vlm.evaluation.ablation import verdicts
from vlm.evaluation.compare import decision_measures, read_thresholds
from vlm.evaluation.curves import risk_coverage_figure
from vlm.evaluation.measures import Bootstrap
from vlm.evaluation.operating_points import (
    Points,
    fewest_patients,
    fix_thresholds,
    missed_targets,
    operating_measures,
    saved_thresholds,
    table_rows,
    threshold_for,
)
from vlm.evaluation.scoring import CaseScores

NAN = float("nan")
SENSITIVE, SPECIFIC = OperatingPointConfig(sensitivity=0.9), OperatingPointConfig(specificity=0.9)
POSITIVE = [0.05, 0.30, 0.40, 0.50, 0.60, 0.70, 0.75, 0.80, 0.90, 0.95]
NEGATIVE = [0.01, 0.02, 0.03, 0.10, 0.15, 0.20, 0.25, 0.35, 0.45, 0.65]
TEST = [(0.9, 1), (0.8, 1), (0.6, 1), (0.3, 1), (0.2, 1), (0.7, 1),
        (0.1, 0), (0.05, 0), (0.28, 0), (0.4, 0), (0.02, 0), (0.5, 0), (0.99, NAN)]  # fmt: skip


def cases(pairs: list[tuple[float, float]]) -> tuple[CaseScores, np.ndarray]:
    """The scores of cases with one label, and their probabilities."""
    p, y = np.array(pairs, dtype=np.float64).T
    return CaseScores(logit(p)[:, None], y[:, None], np.zeros(len(p)), np.zeros(len(p))), p[:, None]


def fixed_points(points=(SENSITIVE, SPECIFIC), positive=POSITIVE, negative=NEGATIVE) -> Points:
    scores, p = cases([(one, 1) for one in positive] + [(one, 0) for one in negative])
    return fix_thresholds(scores, p, ["edema"], [f"p{n}" for n in range(len(p))], points)


def measured(draws: int = 0, times: int = 1, points=(SENSITIVE, SPECIFIC)) -> Points:
    scores, p = cases(TEST * times)
    bootstrap = Bootstrap(np.arange(len(p)).astype(object), draws)
    return operating_measures(fixed_points(points), scores, p, ["edema"], bootstrap)


def test_one_example_by_hand() -> None:
    """Nine of ten positives are at 0.30 or above, the next case below is 0.25; nine of ten negatives at most 0.45."""
    points = fixed_points()["edema"]
    assert points["sensitivity_0.9"]["threshold"] == {"value": 0.275, "low": None, "high": None}
    assert points["specificity_0.9"]["threshold"]["value"] == 0.475
    seen = {"positives": 10, "negatives": 10, "patients": 20}
    assert points["sensitivity_0.9"]["validation"] == {**seen, "sensitivity": 0.9, "specificity": 0.7}
    assert points["specificity_0.9"]["validation"] == {**seen, "sensitivity": 0.7, "specificity": 0.9}

    row = measured()["edema"]["sensitivity_0.9"]
    cells = [row[f"{kind}s"] for kind in ("true_positive", "false_positive", "false_negative", "true_negative")]
    assert cells == [5, 3, 1, 3]
    wanted = {"sensitivity": 5 / 6, "specificity": 1 / 2, "ppv": 5 / 8, "npv": 3 / 4, "lr_positive": 5 / 3,
              "lr_negative": 1 / 3, "error": 4 / 12,
              # Surest first, in log-odds from the threshold: seven right, three wrong (0.5, 0.4, 0.2), 0.3, 0.28 wrong.
              "aurc": (1 / 8 + 2 / 9 + 3 / 10 + 3 / 11 + 4 / 12) / 12}  # fmt: skip
    assert {name: row[name]["value"] for name in wanted} == pytest.approx(wanted)
    assert all(row[name]["low"] is None for name in wanted if name not in ("error", "aurc")), "six patients a class"


def test_the_threshold_rests_on_validation_cases_alone() -> None:
    scores, p = cases(TEST)
    bootstrap = Bootstrap(np.arange(len(p)).astype(object), 0)
    one = operating_measures(fixed_points(), scores, p, ["edema"], bootstrap)
    scores.targets[:] = 1 - scores.targets
    other = operating_measures(fixed_points(), scores, 1 - p, ["edema"], bootstrap)
    assert all(one["edema"][name]["threshold"] == other["edema"][name]["threshold"] for name in one["edema"])


def test_too_few_validation_patients_of_a_class() -> None:
    few = fixed_points(positive=POSITIVE[:9])["edema"]
    why = "9 validation patients have edema; a sensitivity of 0.9 needs 10"
    assert few["sensitivity_0.9"]["threshold"] == {"value": None, "low": None, "high": None, "why": why}
    assert few["specificity_0.9"]["threshold"]["value"] == 0.475
    assert [fewest_patients(share) for share in (0.5, 0.9, 0.95, 0.99)] == [10, 10, 20, 100]
    scores, p = cases([(one, 1) for one in POSITIVE])
    twins = fix_thresholds(scores, p, ["edema"], ["a", "b"] * 5, [SENSITIVE])["edema"]["sensitivity_0.9"]
    assert twins["threshold"]["why"].startswith("2 validation patients have edema"), "patients count, not cases"
    scores, p = cases(TEST)
    kept = operating_measures({"edema": few}, scores, p, ["edema"], Bootstrap(np.arange(13).astype(object), 0))
    assert kept["edema"]["sensitivity_0.9"] == few["sensitivity_0.9"]
    said = verdicts({"distinct_reports": 9, "cases": 10, "operating_points": kept})
    assert said[0]["text"] == f"Not defined: edema sensitivity 0.9 threshold: {why}." or why in said[0]["text"]


def test_ties_and_ends() -> None:
    y = np.array([1.0] * 10 + [0.0] * 10)
    same = np.full(20, 0.4)
    assert threshold_for(y, same, SENSITIVE) == 0.2 and threshold_for(y, same, SPECIFIC) == 0.7
    assert threshold_for(y, np.ones(20), SPECIFIC) is None, "nothing is above 1"
    assert fixed_points(negative=[1.0] * 10)["edema"]["specificity_0.9"]["threshold"]["why"] == (
        "too many validation cases without edema have a probability of 1"
    )
    assert threshold_for(y, np.zeros(20), SENSITIVE) == 0
    noise = same + np.linspace(0, 1e-9, 20)
    scores, _ = cases([(0.4, value) for value in y])
    found = fix_thresholds(scores, noise[:, None], ["a"], [str(n) for n in range(20)], [SENSITIVE])
    assert found["a"]["sensitivity_0.9"]["threshold"]["value"] == 0.2, "equal inputs are ties"


def test_rates_that_are_not_defined_say_why() -> None:
    row = measured(points=[OperatingPointConfig(specificity=0.5)])["edema"]["specificity_0.5"]
    assert row["threshold"]["value"] == 0.175 and row["false_positives"] == 3
    scores, p = cases([(0.9, 1)] * 6 + [(0.1, 0)] * 6)
    sure = operating_measures(fixed_points(), scores, p, ["edema"], Bootstrap(np.arange(12).astype(object), 0))
    assert sure["edema"]["sensitivity_0.9"]["lr_positive"]["why"] == "no test case is a false positive"
    assert sure["edema"]["sensitivity_0.9"]["lr_negative"]["value"] == 0
    scores, p = cases([(0.1, 0)] * 6)
    none = operating_measures(fixed_points(), scores, p, ["edema"], Bootstrap(np.arange(6).astype(object), 0))
    row = none["edema"]["sensitivity_0.9"]
    assert row["sensitivity"]["why"] == "no test case has edema" and row["ppv"]["why"] == "no test case is called edema"
    scores.targets[:] = NAN
    unknown = operating_measures(fixed_points(), scores, p, ["edema"], Bootstrap(np.arange(6).astype(object), 0))
    assert unknown["edema"]["sensitivity_0.9"]["error"]["why"] == "edema is unknown in every test case"


def test_intervals_rest_on_the_patients_of_the_denominator() -> None:
    row = measured(draws=400, times=2)["edema"]["sensitivity_0.9"]  # 12 patients of each class
    assert row["sensitivity"]["low"] < 5 / 6 < row["sensitivity"]["high"]
    assert row["lr_positive"]["low"] < 5 / 3 < row["lr_positive"]["high"]
    assert row["ppv"]["low"] is not None and row["npv"]["low"] is None, "16 are called, 8 are not"


def test_a_threshold_that_does_not_hold_is_a_fault() -> None:
    bad = {"edema": {"sensitivity_0.9": {"threshold": {"value": 0.2, "low": None, "high": None},
           "sensitivity": {"value": 0.7, "low": 0.6, "high": 0.8}}}}  # fmt: skip
    text = "The threshold of edema for a sensitivity of 0.9 has 0.700 (0.600 to 0.800) on the test split."
    assert list(missed_targets(bad)) == [text]
    assert {"good": False, "text": text} in verdicts({"distinct_reports": 9, "cases": 10, "operating_points": bad})
    bad["edema"]["sensitivity_0.9"]["sensitivity"]["high"] = 0.95
    assert list(missed_targets(bad)) == []


def test_the_card_has_a_row_a_point(tiny_model) -> None:
    points = measured()
    text = card(tiny_model, {"operating_points": points})
    row = "| edema | sensitivity 0.9 | 0.275 | 0.833 | 0.500 | 0.625 | 0.750 | 1.667 | 0.333 |"
    assert row in text and "operating points, " not in text
    few = fixed_points(positive=POSITIVE[:9])
    assert next(operating_points({"operating_points": few}))[2:4] == (
        "9 validation patients have edema; a sensitivity of 0.9 needs 10", "–")  # fmt: skip
    assert [(row["label"], row["point"]) for row in table_rows(points)][1] == ("edema", "specificity 0.9")


def test_the_figure_is_a_picture(tmp_path: Path) -> None:
    import cv2

    scores, p = cases(TEST * 2)
    patients = np.arange(len(p)).astype(object)
    risk_coverage_figure(scores, p, measured(times=2), ["edema"], patients, tmp_path / "risk.png")
    assert cv2.imread(str(tmp_path / "risk.png")).std() > 5
    risk_coverage_figure(scores, p, {}, ["edema"], patients, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_thresholds_saved_with_an_adapter(tmp_path: Path) -> None:
    def read(values: object, points=(SENSITIVE,)) -> Points | None:
        (tmp_path / "metrics.json").write_text(json.dumps(values))
        return saved_thresholds(tmp_path, ["edema"], points)

    assert saved_thresholds(tmp_path, ["edema"], (SENSITIVE,)) is None, "no metrics at all"
    points = measured()
    assert read({"operating_points": points}, (SENSITIVE, SPECIFIC)) == fixed_points()
    assert read({}) is None and read([]) is None and read({"operating_points": {"edema": {}}}) is None
    assert read({"operating_points": points}, [OperatingPointConfig(sensitivity=0.8)]) is None
    for wrong, said in ((1.5, "no probability"), ("0.5", "not of numbers"), (True, "not of numbers")):
        points["edema"]["sensitivity_0.9"]["threshold"]["value"] = wrong
        with pytest.raises(UserError, match=f"edema: sensitivity_0.9: {said}"):
            read({"operating_points": points})


def test_runs_are_compared_at_their_own_thresholds(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"operating_points": measured()}))
    assert read_thresholds(tmp_path) == {"edema": ("sensitivity 0.9", 0.275)}
    rows = [{"labels": {"edema": None if np.isnan(y) else y}, "probabilities": {"edema": p}} for p, y in TEST]
    measures = decision_measures(rows, read_thresholds(tmp_path))
    values = {title: one(np.ones((1, len(rows))))[0] for title, one in measures.items()}
    assert values == pytest.approx({"sensitivity edema (sensitivity 0.9)": 5 / 6,
                                    "specificity edema (sensitivity 0.9)": 1 / 2})  # fmt: skip
    assert read_thresholds(tmp_path / "none") == {}
    (tmp_path / "metrics.json").write_text('{"operating_points": {"edema": 3}}')
    with pytest.raises(UserError, match="not the metrics of a run"):
        read_thresholds(tmp_path)


def test_a_config_names_one_share_a_point(tmp_path: Path) -> None:
    config, _ = parse_config([])
    assert [point.name for point in config.evaluation.operating_points] == ["sensitivity_0.9", "specificity_0.9"]
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert parse_config(["--config", str(tmp_path / "config.yaml")])[0] == config
    one, _ = parse_config(["--evaluation.operating_points", "[{sensitivity: 0.95}]"])
    assert one.evaluation.operating_points == [OperatingPointConfig(sensitivity=0.95)]
    wrongs = ("[{sensitivity: null}]", "[{sensitivity: 0.9, specificity: 0.9}]", "[{sensitivity: 1.0}]",
              "[{specificity: 0}]", "[{sensitivity: 0.9}, {sensitivity: 0.9}]")  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(UserError, match=r"evaluation\.operating_points: must be a list of different"):
            parse_config(["--evaluation.operating_points", wrong])
