"""Metrics with a model behind them: the interface to RadEval, with its two ways in played by a stand-in.

The models themselves are a gigabyte of downloads and are not run here.
"""

import sys
from types import ModuleType

import numpy as np
import pytest

from vlm.errors import UserError
from vlm.evaluation.learned import LEARNED, load_learned
from vlm.evaluation.measures import Bootstrap, Reports, text_measures

WORDS = ("edema", "effusion", "opacity")
COLUMNS = {
    "bertscore": ["bertscore"], "radgraph": ["radgraph_simple", "radgraph_partial"],
    "radeval_bertscore": ["radeval_bertscore"], "ratescore": ["ratescore"], "radcliq": ["radcliq_v1"],
    "radgraph_radcliq": ["radgraph_radcliq"],
    "srrbert": ["srrbert_weighted_precision", "srrbert_weighted_recall", "srrbert_weighted_f1"],
    "temporal": ["temporal_f1"], "green": ["green"], "crimson": ["crimson"],
    "f1radbert_ct": ["f1radbert_ct_sample_acc"],
}  # fmt: skip
"""Metric of RadEval 2.2.1 → its keys with `per_sample`, ours last."""


class RadEvalDouble:
    """Answers as `radeval.RadEval(per_sample=True)` does: one list of numbers for each key."""

    def __init__(self, metrics: list[str], per_sample: bool, show_progress: bool) -> None:
        assert per_sample
        (self.name,) = metrics

    def __call__(self, refs: list[str], hyps: list[str]) -> dict[str, list[float]]:
        same = [float(ref == hyp) for ref, hyp in zip(refs, hyps, strict=True)]
        return {key: same if key == COLUMNS[self.name][-1] else [] for key in COLUMNS[self.name]}


class CheXbertDouble:
    def __init__(self, device: str) -> None:
        assert device in ("cpu", "cuda")

    def get_labels(self, reports: list[str]) -> list[list[int]]:
        return [[int(word in report) for word in WORDS] for report in reports]


@pytest.fixture
def radeval(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (
        ("radeval", {"RadEval": RadEvalDouble}),
        ("radeval.metrics", {}),
        ("radeval.metrics.f1chexbert", {"F1CheXbert": CheXbertDouble}),
    ):
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)


def test_they_stand_beside_the_others_with_intervals(radeval: None, capsys: pytest.CaptureFixture) -> None:
    metrics = load_learned(["bertscore", "radgraph", "chexbert"])
    assert "fetched from the Hub" in capsys.readouterr().out
    drafts = ["edema and effusion", "no words", "effusion"] * 8
    references = ["edema", "no words", "edema"] * 8
    measured = text_measures(Reports(drafts, references), Bootstrap(np.arange(24).astype(str), 200), metrics)
    assert measured["bertscore"]["value"] == measured["radgraph"]["value"] == pytest.approx(1 / 3)
    # A third of the cases each: one right and one invented, nothing, one invented and one missed.
    assert measured["chexbert"]["value"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))
    assert measured["chexbert"]["low"] < measured["chexbert"]["value"] < measured["chexbert"]["high"]
    assert "bleu" in measured


@pytest.mark.parametrize("name", COLUMNS)
def test_every_metric_is_asked_for_by_its_name_in_radeval(name: str, radeval: None) -> None:
    (metric,) = load_learned([name])
    reports, bootstrap = Reports(["a", "b"] * 8, ["a", "c"] * 8), Bootstrap(np.arange(16).astype(str), 100)
    measured = text_measures(reports, bootstrap, [metric])
    assert metric.scorer.name == name == metric.key and measured[name]["value"] == 0.5


def test_the_config_the_page_and_the_metrics_name_the_same() -> None:
    from typing import get_args, get_type_hints

    from vlm.config import EvaluationConfig
    from vlm.evaluation.html_report import NAMES

    allowed = get_args(get_args(get_type_hints(EvaluationConfig)["learned_metrics"])[0])
    assert allowed == tuple(LEARNED) and set(LEARNED) <= NAMES.keys() and set(LEARNED) == {*COLUMNS, "chexbert"}


def test_a_case_without_a_score_is_left_out(radeval: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (metric,) = load_learned(["green"])
    monkeypatch.setattr(RadEvalDouble, "__call__", lambda *_, **__: {"green": [1.0, None, 0.0, 1.0]})
    assert metric.statistic(["a"] * 4, ["a"] * 4)(np.ones((1, 4)))[0] == pytest.approx(2 / 3)


def test_a_missing_package_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "radeval", None)
    for name in LEARNED:
        with pytest.raises(UserError, match=rf"{name} needs radeval.*clinical-vlm\[radeval\]"):
            load_learned([name])


def test_a_failed_download_names_what_was_wanted(radeval: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, **_: object) -> None:
        raise OSError("cannot\nreach the Hub")

    monkeypatch.setattr(RadEvalDouble, "__init__", refuse)
    with pytest.raises(UserError, match=r"bertscore could not load distilbert-base-uncased .*: cannot reach the Hub; "):
        load_learned(["bertscore"])
