"""The test at the end of a run: intervals, arms, facts and figures."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vlm.config import Config, DataConfig, PhantomConfig
from vlm.data.case import CaseSpec
from vlm.data.examples import CaseDataset
from vlm.data.images import ImageSpec
from vlm.data.phantom import load_phantom
from vlm.evaluation.arms import ARMS, ArmCases, all_right
from vlm.evaluation.figures import correlation_figure, loss_figure, pairwise_correlation
from vlm.evaluation.intervals import auroc, patient_bootstrap
from vlm.evaluation.run import fact_metrics
from vlm.evaluation.scoring import CaseScores, split_metrics


def test_auroc_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        targets, scores = rng.integers(0, 2, 30), rng.integers(0, 8, 30).astype(float)  # with ties
        if 0 < targets.sum() < 30:
            assert auroc(targets, scores) == pytest.approx(roc_auc_score(targets, scores), abs=1e-12)
    assert np.isnan(auroc(np.ones(5), np.arange(5.0)))


def test_the_bootstrap_resamples_patients_and_not_cases() -> None:
    """Ten copies of each patient's case carry no more evidence than one."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=60)
    patients = [f"p{number}" for number in range(60)]
    once = patient_bootstrap(lambda rows: values[rows].mean(), patients, 2000)
    copies, owners = np.repeat(values, 10), np.repeat(patients, 10)
    tenfold = patient_bootstrap(lambda rows: copies[rows].mean(), owners, 2000)
    assert tenfold.high - tenfold.low == pytest.approx(once.high - once.low, rel=0.1)
    assert once.low < values.mean() < once.high
    assert once.high - once.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(60), rel=0.15)


def test_no_interval_is_stated_where_there_is_none() -> None:
    assert patient_bootstrap(lambda rows: float("nan"), ["a", "b"], 100).value is None
    assert patient_bootstrap(lambda rows: 1.0, ["a", "a"], 100) == (1.0, None, None)


def test_split_metrics_are_exact_means_and_skip_the_unknown() -> None:
    logits = np.array([[2.0], [-1.0], [3.0]])
    targets = np.array([[1.0], [0.0], [np.nan]])
    scores = CaseScores.from_columns(np.column_stack([logits, [6.0, 0.0, 3.0], [2, 0, 4]]), targets)
    metrics = split_metrics(scores, ["a"], alpha=0.25)
    bce = np.mean([np.log1p(np.exp(-2.0)), np.log1p(np.exp(-1.0))])
    assert metrics["eval_loss_ce"] == pytest.approx(9 / 6) and metrics["eval_loss_bce"] == pytest.approx(bce)
    assert metrics["eval_loss"] == pytest.approx(0.25 * bce + 0.75 * 1.5) and metrics["eval_auroc"] == 1.0


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory):
    """A phantom cohort, all of it as one split."""
    root = tmp_path_factory.mktemp("phantom") / "cohort"
    cohort = load_phantom(DataConfig(root=str(root), phantom=PhantomConfig(cases=60, missing=0.15)))
    spec = CaseSpec.fit(cohort, ImageSpec(64), bins=4)
    return cohort, CaseDataset(cohort.dataset, spec, cohort.sections)


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_an_arm_shows_what_its_facts_say(arm, phantom) -> None:
    """A reader who writes down what each arm shows is right about every fact; the arms differ as named."""
    cohort, dataset = phantom
    cases = ArmCases(arm, dataset)
    wanted, examples = cases.facts(cohort.facts), list(cases.examples())
    own = [cohort.facts.read(dataset[index]["report"]) for index in range(len(dataset))]
    for index, example in enumerate(examples):
        assert (wanted[index]["finding"] == "no image") == (not example["has_image"])
        missing = bool(np.isnan(example["vitals"][0]))
        assert (wanted[index]["glucose"] == "not measured") == missing
    image_kept = all_right(wanted, own, ["finding", "side", "zone"]).all()
    vitals_kept = all_right(wanted, own, ["glucose", "pressure"]).all()
    assert image_kept == (arm.image == "own") and vitals_kept == (arm.vitals == "own")


def test_nobody_is_shown_their_own_when_swapped(phantom) -> None:
    _, dataset = phantom
    swapped = ArmCases(next(arm for arm in ARMS if arm.name == "image_swapped"), dataset)
    has = swapped.has_image
    assert (swapped.image_donor[has] != np.flatnonzero(has)).all() and (swapped.image_donor[~has] == -1).all()
    assert sorted(swapped.image_donor[has]) == list(np.flatnonzero(has))


def test_a_report_is_right_only_if_every_fact_is() -> None:
    wanted = [{"a": "1", "b": "2"}] * 3
    stated = [{"a": "1", "b": "2"}, {"a": "1", "b": None}, {"a": "x", "b": "2"}]
    assert all_right(stated, wanted, ["a", "b"]).tolist() == [True, False, False]
    assert all_right(stated, wanted, ["a"]).tolist() == [True, True, False]


def test_models_that_ignore_their_input_are_caught(phantom) -> None:
    """Reports that are constant, or right about one modality alone, score so in the arm that shows it."""
    cohort, dataset = phantom
    arms = {arm.name: ArmCases(arm, dataset) for arm in ARMS}
    wanted = {name: cases.facts(cohort.facts) for name, cases in arms.items()}

    def measure(name: str, sentences) -> dict:
        drafts = [(" ".join(sentences(index)), {}) for index in range(len(dataset))]
        return fact_metrics(arms[name], cohort.facts, drafts, 50)

    def perfect(name: str):
        """The report of whoever is shown; the facts of each arm come from its donors."""
        cases = arms[name]
        return lambda index: [
            dataset[int(cases.image_donor[index])]["report"].split(". ")[0] + "."
            if cases.image_donor[index] >= 0
            else "No image was available.",
            *dataset[int(cases.vitals_donor[index])]["report"].split(". ", 1)[1:],
        ]

    for name in ("as_given", "image_swapped", "vitals_swapped"):
        result = measure(name, perfect(name))
        assert result["image_facts_right"]["value"] == result["vitals_facts_right"]["value"] == 1.0
    constant = measure(
        "as_given", lambda _: ["No opacity in either lung. Glucose is normal. Blood pressure is normal."]
    )
    assert constant["image_facts_right"]["value"] < 0.65 and constant["finding_asserted_without_image"]["value"] == 1.0
    blind = measure("image_swapped", perfect("as_given"))  # writes what it would write anyway
    assert blind["image_facts_right"]["value"] < 0.6 and blind["vitals_facts_right"]["value"] == 1.0
    numb = measure("vitals_swapped", perfect("as_given"))
    assert numb["vitals_facts_right"]["value"] < 0.6 and numb["image_facts_right"]["value"] == 1.0
    assert measure("image_withheld", perfect("image_withheld"))["finding_asserted_without_image"]["value"] == 0.0
    assert json.loads(json.dumps(constant, allow_nan=False)) and wanted["as_given"]


def test_pairwise_correlation_is_numpy_s_on_the_rows_that_have_both() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 3))
    table[:, 1] += table[:, 0]
    np.testing.assert_allclose(pairwise_correlation(table), np.corrcoef(table.T), atol=1e-12)
    table[5:, 2] = np.nan
    both = ~np.isnan(table[:, 2])
    assert pairwise_correlation(table)[0, 2] == pytest.approx(np.corrcoef(table[both, 0], table[both, 2])[0, 1])
    assert np.isnan(pairwise_correlation(np.column_stack([np.ones(5), np.arange(5)]))[0, 1])


def test_figures_are_readable_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    correlation_figure(rng.normal(size=(30, 4)), ["a", "b", "c", "d"], tmp_path / "c.png", "Title")
    rows = [
        {"step": s, "loss_bce": 1 / s, "loss_ce": 0.0 if s < 5 else 2 / s, "eval_loss_bce": 1 / s, "eval_loss_ce": 3.0}
        for s in range(1, 20)
    ]
    loss_figure(rows, tmp_path / "l.png", head_only_steps=4)
    loss_figure([], tmp_path / "empty.png")
    for name in ("c.png", "l.png", "empty.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert picture.shape[0] > 400 and picture.std() > 5


def test_a_control_run_keeps_its_targets(tiny_config: Config) -> None:
    """Withholding evidence from every case must not rewrite the reports: its cost is what is measured."""
    from vlm.data.sources import load_cohort

    cohort = load_cohort(tiny_config.data)
    spec = CaseSpec.fit(cohort, ImageSpec(32), 3)
    given = CaseDataset(cohort.dataset, spec, cohort.sections)
    withheld = replace(given, withhold=("image", "vitals"))
    for index in range(len(given)):
        assert withheld[index]["report"] == given[index]["report"]
        assert not withheld[index]["has_image"] and np.isnan(withheld[index]["vitals"]).all()
