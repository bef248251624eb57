"""The test at the end of a run: intervals, arms, facts and figures."""

import html
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from vlm.config import Config, DataConfig, PhantomConfig
from vlm.data.case import CaseSpec
from vlm.data.correlation import pairwise_correlation
from vlm.data.dataset import CaseDataset
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.phantom import load_phantom
from vlm.evaluation.ablation import ArmResult
from vlm.evaluation.agreement import Agreement
from vlm.evaluation.arms import ARMS, ArmCases, all_correct
from vlm.evaluation.baselines import classifier_scores, constant_report, image_features, nearest_reports
from vlm.evaluation.evaluate import evaluate
from vlm.evaluation.figures import correlation_figure, loss_figure
from vlm.evaluation.measures import head_against_text
from vlm.evaluation.scoring import CaseScores
from vlm.inference.features import cache_features


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
    wanted, examples = cases.facts(cohort.facts), [cases[index] for index in range(len(cases))]
    own = [cohort.facts.read(dataset[index]["report"]) for index in range(len(dataset))]
    for index, example in enumerate(examples):
        assert (wanted[index]["finding"] == "no image") == (not example["has_image"])
        assert example["report"] == dataset[index]["report"], "the reference stays the case's own"
        missing = bool(np.isnan(example["vitals"][0]))
        assert (wanted[index]["glucose"] == "not measured") == missing
    image_kept = all_correct(wanted, own, ["finding", "side", "zone"]).all()
    vitals_kept = all_correct(wanted, own, ["glucose", "pressure"]).all()
    assert image_kept == (arm.image == "own") and vitals_kept == (arm.vitals == "own")


def test_cases_that_are_shown_the_same_are_the_same(phantom) -> None:
    """A blank image is no image, and a case without vitals is not drafted again with its vitals withheld."""
    _, dataset = phantom
    seen: dict = {}
    for cases in (ArmCases(arm, dataset) for arm in ARMS):
        for index, shown in enumerate(cases.shown):
            example = cases[index]
            first = seen.setdefault(shown, example)
            assert torch.equal(first["pixel_values"], example["pixel_values"])
            assert torch.equal(first["vitals"].nan_to_num(-1), example["vitals"].nan_to_num(-1))
    assert len(seen) < len(ARMS) * len(dataset) * 0.75


def test_nobody_is_shown_their_own_when_swapped(phantom) -> None:
    _, dataset = phantom
    swapped = ArmCases(next(arm for arm in ARMS if arm.name == "image_swapped"), dataset)
    has = swapped.has_image
    assert (swapped.image_donor[has] != np.flatnonzero(has)).all() and (swapped.image_donor[~has] == -1).all()
    assert sorted(swapped.image_donor[has]) == list(np.flatnonzero(has))


def test_a_report_is_right_only_if_every_fact_is() -> None:
    wanted = [{"a": "1", "b": "2"}] * 3
    stated = [{"a": "1", "b": "2"}, {"a": "1", "b": None}, {"a": "x", "b": "2"}]
    assert all_correct(stated, wanted, ["a", "b"]).tolist() == [True, False, False]
    assert all_correct(stated, wanted, ["a"]).tolist() == [True, True, False]


def perfect(rows: list[str], image_of: int, vitals_of: int) -> str:
    """The report of a reader who is shown one case's image and another's vitals; -1 for none."""
    parts = [rows[image_of].split(". ")[0].rstrip(".") + "."] if image_of >= 0 else ["No image was available."]
    if vitals_of >= 0:
        return " ".join([*parts, *rows[vitals_of].split(". ", 1)[1:]])
    return " ".join([*parts, "Glucose was not measured. Blood pressure was not measured."])


class Reader:
    """A model in a test: what it writes and what its head says follows from what it looks at."""

    def __init__(self, image: bool, vitals: bool) -> None:
        self.image, self.vitals = image, vitals

    def __call__(self, model, cases: ArmCases, config: Config, given: CaseScores, drafted: dict) -> ArmResult:
        image = cases.image_donor if self.image else np.zeros(len(cases), dtype=int)
        vitals = cases.vitals_donor if self.vitals else np.zeros(len(cases), dtype=int)
        reports = cases.dataset.reports
        drafts = [perfect(reports, int(a), int(b)) for a, b in zip(image, vitals, strict=True)]
        targets = np.array(cases.dataset.rows["labels"], dtype=np.float64)
        shown = targets[np.maximum(image, 0)] * (image >= 0)[:, None]
        wrong = np.array([draft != own for draft, own in zip(drafts, reports, strict=True)])
        return ArmResult(drafts, 6 * shown - 3, given.tokens * np.where(wrong, 2.0, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "vitals", "said"),
    [
        (True, True, []),
        (False, False, ["Constant report", "Ignores the image", "Ignores the vitals"]),
        (False, True, ["Ignores the image"]),
        (True, False, ["Ignores the vitals"]),
    ],
)
def test_a_model_is_named_for_what_it_is(
    image: bool, vitals: bool, said: list[str], phantom, tiny_config: Config, tiny_model, tmp_path: Path, monkeypatch
) -> None:
    """A good reader, a constant report, one that ignores the image and one that ignores the vitals."""
    cohort, dataset = phantom
    reader = Reader(image, vitals)
    scores = CaseScores(
        np.zeros((len(dataset), len(cohort.labels))),
        np.array(dataset.rows["labels"], dtype=np.float64),
        np.zeros(len(dataset)),
        np.full(len(dataset), 10.0),
    )
    given = reader(None, ArmCases(ARMS[0], dataset), tiny_config, scores, {})
    scores = replace(scores, logits=given.logits, losses=given.losses)
    tiny_model.spec = dataset.spec
    splits = dict.fromkeys(("train", "validation", "test"), dataset)
    monkeypatch.setattr("vlm.evaluation.evaluate.plain_splits", lambda *_: splits)
    monkeypatch.setattr("vlm.evaluation.evaluate.score_cases", lambda *_, **__: scores)
    monkeypatch.setattr("vlm.evaluation.drafting.run_arm", reader)
    metrics = evaluate(tiny_model, cohort, tiny_config, tmp_path / "out")

    faults = [verdict["text"] for verdict in metrics["verdicts"] if not verdict["good"]]
    named = [text for text in faults if text.startswith(("Constant", "Ignores", "No proof"))]
    assert len(named) == len(said) and all(a.startswith(b) for a, b in zip(named, said, strict=True)), faults
    facts = metrics["facts"]
    for arm, kind, sees in (("image_swapped", "image", image), ("vitals_swapped", "vitals", vitals)):
        right = facts[arm][f"{kind}_facts_right"]["value"]
        assert right == 1.0 if sees else right < 0.6
    if image and vitals:
        assert metrics["findings"]["f1"]["value"] == 1 and metrics["numbers"]["consistent"]["value"] == 1
        assert facts["as_given"]["image_facts_right"]["value"] == 1
        assert facts["vitals_withheld"]["vitals_facts_right"]["value"] == 1
    point = metrics["operating_points"]["pathology"]["sensitivity_0.9"]
    assert point["validation"]["patients"] == 60 and point["sensitivity"]["value"] >= 0.9
    assert point["specificity"]["value"] == float(image), "a head that says the same of all calls all"
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    assert "data:image/png;base64" in page and "http" not in page
    lacking = metrics["subgroups"]["missing"]["groups"]
    assert lacking.keys() >= {"nothing missing", "without an image"} and "Subgroups" in page
    assert "Operating points" in page and "Share of wrong decisions" in page
    assert all(verdict["text"] in page for verdict in metrics["verdicts"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == len(dataset) and json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics


def test_head_and_text_that_disagree_are_counted() -> None:
    drafts = ["Dense shadow in the left lower zone.", "No opacity in either lung.", "Glucose is normal.", "No opacity."]
    probabilities = np.array([[0.9], [0.9], [0.9], [0.1]])
    assert head_against_text(drafts, probabilities, ["pathology"], {"pathology": "opacity"}).tolist()[:2] == [0, 1]
    assert np.isnan(head_against_text(drafts, probabilities, ["pathology"], {"pathology": "opacity"})[2])
    assert np.isnan(head_against_text(drafts, probabilities, ["covid"], {})).all()


def f1_of(drafts: list[str], references: list[str]) -> float:
    return float(Agreement.of(drafts, references).f1()(np.ones((1, len(references))))[0])


def test_baselines_cost_nothing_and_see_what_they_say(phantom, tiny_model) -> None:
    _, dataset = phantom
    assert constant_report(["b", "a", "a", ""]) == "a" and constant_report([""]) == ""
    reports = ["Clear lungs.", "Clear lungs.", "Opacity on the left.", "Opacity and effusion.", "Opacity on the right."]
    strongest = max(set(reports), key=lambda one: f1_of([one] * len(reports), reports))
    assert constant_report(reports) in ("Opacity on the left.", "Opacity on the right.")
    assert f1_of([constant_report(reports)] * 5, reports) == f1_of([strongest] * 5, reports)
    tiny_model.spec = dataset.spec
    assert nearest_reports(tiny_model, dataset, dataset, 16) != [dataset.report(0)] * len(dataset)
    own = nearest_reports(tiny_model, dataset, dataset, 16)
    kept = replace(dataset)
    cache_features(tiny_model, [kept], 16)
    from_pixels, from_features = (image_features(tiny_model, one, 16) for one in (dataset, kept))
    np.testing.assert_allclose(from_features, from_pixels, atol=1e-5)
    images = [index for index, cell in enumerate(dataset.rows["images"]) if cell]
    assert all(own[index] == dataset.report(index) for index in images), "the nearest to a known image is itself"
    scores = classifier_scores(dataset, dataset, "vitals")
    targets = np.array(dataset.rows["labels"], dtype=np.float64)
    assert roc_auc_score(targets[:, 0], scores[:, 0]) > 0.7  # glucose tells pathology
    missing = classifier_scores(dataset, dataset, "missingness")
    assert roc_auc_score(targets[:, 0], missing[:, 0]) < 0.7 and len(np.unique(missing[:, 0])) < 9


def test_pairwise_correlation_is_numpy_s_on_the_rows_that_have_both() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 3))
    table[:, 1] += table[:, 0]
    np.testing.assert_allclose(pairwise_correlation(table), np.corrcoef(table.T), atol=1e-12)
    table[12:, 2] = np.nan
    both = ~np.isnan(table[:, 2])
    assert pairwise_correlation(table)[0, 2] == pytest.approx(np.corrcoef(table[both, 0], table[both, 2])[0, 1])
    assert np.isnan(pairwise_correlation(np.column_stack([np.ones(20), np.arange(20)]))[0, 1])
    assert np.isnan(pairwise_correlation(table[:9])).all(), "too few rows to speak of a correlation"


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
    from vlm.data.ingest.sources import load_cohort

    cohort = load_cohort(tiny_config.data)
    spec = CaseSpec.fit(cohort, ImageSpec(32), 3)
    given = CaseDataset(cohort.dataset, spec, cohort.sections)
    withheld = replace(given, withhold=("image", "vitals"))
    for index in range(len(given)):
        assert withheld[index]["report"] == given[index]["report"]
        assert not withheld[index]["has_image"] and np.isnan(withheld[index]["vitals"]).all()
