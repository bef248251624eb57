"""A test at another site beside the adapter's own, by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from vlm.config import Config
from vlm.data.case import CaseSpec
from vlm.data.dataset import CaseDataset
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.evaluation.scoring import CaseScores
from vlm.evaluation.site import beside, profile, saved_metrics, shift, standardised_difference, summary
from vlm.statistics.estimate import Estimate

ROW = {"mean": 7.0, "sd": 2.0, "patients": 50}


def est(value: float | None, low: float | None = None, high: float | None = None) -> dict:
    return Estimate(value, low, high)._asdict()


def test_one_difference_by_hand() -> None:
    """Means 9 and 7, deviations 4 and 2: 2 over the root of 10; 100 and 50 patients."""
    found = standardised_difference({"mean": 9.0, "sd": 4.0, "patients": 100}, ROW)
    d = 2 / 10**0.5
    error = (150 / 5000 + d**2 / 300) ** 0.5
    assert found == pytest.approx(est(d, d - 1.96 * error, d + 1.96 * error))
    same = {"mean": 1.0, "sd": 0.0, "patients": 50}
    assert standardised_difference(same, same)["why"] == "it never varies"


def test_the_largest_shift_is_first_and_what_one_lacks_is_left_out() -> None:
    here = {"vitals": {"age": {**ROW, "mean": 8.0}, "glucose": {**ROW, "mean": 3.0}, "crp": ROW}, "labels": {"a": ROW}}
    own = {"vitals": {"age": ROW, "glucose": ROW, "crp": {"mean": "7", "sd": 2, "patients": 50}}, "labels": [ROW]}
    rows = shift(here, own)
    assert [(row["name"], row["value"]) for row in rows] == [("glucose", -2.0), ("age", 0.5)]
    assert (rows[0]["mean"], rows[0]["own_mean"], rows[0]["patients"], rows[0]["own_patients"]) == (3.0, 7.0, 50, 50)


def test_results_stand_side_by_side() -> None:
    own = {
        "cases": 80, "patients": 60, "text_loss": est(1.0, 0.9, 1.1), "labels": {"a": {"auroc": est(0.9, 0.8, 0.95)}},
        "operating_points": {"a": {"sensitivity_0.9": {"sensitivity": est(0.9)}}}, "profile": {"vitals": {"age": ROW}},
    }  # fmt: skip
    here = {**own, "text_loss": est(2.0), "labels": {"a": {"auroc": est(0.6, 0.5, 0.7)}},
            "profile": {"vitals": {"age": {**ROW, "mean": 9.0}}}}  # fmt: skip
    found = beside(here, own)
    assert list(found["results"]) == ["text loss", "AUROC a", "sensitivity a (sensitivity 0.9)"]
    assert found["results"]["AUROC a"] == {"own": est(0.9, 0.8, 0.95), "here": est(0.6, 0.5, 0.7)}
    lines = summary(found)
    assert lines[0] == "beside the adapter's own test (60 patients): here, own"
    assert lines[2].split("  ")[-1].strip() == "0.600 (0.500 to 0.700), 0.900 (0.800 to 0.950)"
    assert lines[-1].startswith("  shift of vitals age: 1.000 (0.584 to 1.416) standard deviations; mean 9, own 7; 50")
    assert beside(here, {}) == {} and summary({}) == []


@pytest.mark.parametrize(
    "wrong",
    [{"labels": 3}, {"labels": {"a": {"auroc": "<b>"}}}, {"profile": {"vitals": "x"}}, {"profile": []},
     {"profile": {"vitals": {"age": {"mean": 1e200, "sd": 1e200, "patients": 50}}}},
     {"text_loss": {"value": "1", "low": None, "high": None}}],
)  # fmt: skip
def test_a_stranger_s_metrics_are_not_believed(wrong: dict, tmp_path: Path) -> None:
    assert saved_metrics(tmp_path) == {}
    (tmp_path / "metrics.json").write_text(json.dumps(wrong))
    here = {"text_loss": est(1.0), "labels": {"a": {"auroc": est(0.9)}}, "profile": {"vitals": {"age": ROW}}}
    assert beside(here, saved_metrics(tmp_path)) == {}


def test_a_profile_holds_means_of_ten_patients_and_more(tiny_config: Config) -> None:
    cohort = load_cohort(tiny_config.data)
    spec = CaseSpec.fit(cohort, ImageSpec(32), 3)
    test = CaseDataset(cohort.dataset, spec, cohort.sections)
    targets = np.array(test.rows["labels"], dtype=np.float64)
    scores = CaseScores(np.zeros_like(targets), targets, np.zeros(len(test)), np.zeros(len(test)))
    found = profile(test, scores)
    vitals = np.array(test.rows["vitals"], dtype=np.float64)
    glucose = vitals[:, 0][~np.isnan(vitals[:, 0])]
    assert found["vitals"]["glucose"]["mean"] == pytest.approx(glucose.mean())
    assert found["vitals"]["glucose"]["sd"] == pytest.approx(glucose.std(ddof=1))
    assert found["missing"]["glucose"]["mean"] == pytest.approx(np.isnan(vitals[:, 0]).mean())
    assert found["vitals"]["sex M"]["mean"] == 0.5 and found["missing"]["sex"]["patients"] == 20
    assert found["labels"]["effusion"]["mean"] == pytest.approx(targets[:, 1].mean())
    assert 0.3 < found["images"]["brightness"]["mean"] < 0.7 and found["images"]["brightness"]["patients"] < 20
    few = CaseDataset(cohort.dataset.select(range(9)), spec, cohort.sections)
    some = CaseScores(scores.logits[:9], targets[:9], scores.losses[:9], scores.tokens[:9])
    assert profile(few, some) == {"vitals": {}, "missing": {}, "labels": {}, "images": {}}
    assert shift(found, found)[0]["value"] == 0
