"""Compute model-based metrics with the RadEval library: BERTScore, RadGraph F1 and CheXbert F1.

An optional extra (`pip install 'clinical-vlm[radeval]'`), with the interface of `vlm.evaluation.text`. Each metric
downloads its models from the Hub on first use, as its `downloads` says. No other part of the evaluation does.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import torch

from vlm.errors import UserError
from vlm.evaluation.intervals import Statistic, mean, ratio
from vlm.evaluation.text import TextMetric


class LearnedMetric(TextMetric):
    """A model-based metric, loaded once before a long run, so that a failed download costs nothing."""

    downloads: str
    """Models fetched from the Hub, and their size."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        try:
            self.scorer = self._load()
        except ModuleNotFoundError as error:
            raise UserError(
                f"evaluation.learned_metrics: {self.key} needs {error.name}; pip install 'clinical-vlm[radeval]'"
            ) from None
        except Exception as error:  # RadEval raises bare exceptions, the Hub many kinds of its own
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"evaluation.learned_metrics: {self.key} could not load {self.downloads}: {reason}; leave it out, or "
                "fetch it once where the Hub can be reached"
            ) from None

    def _load(self) -> Any:
        """Load the scorer and its weights; may raise any exception."""
        raise NotImplementedError


class _RadEvalMetric(LearnedMetric):
    """A RadEval metric with one score a case."""

    column: str
    """Key of the metric in RadEval's result."""

    def _load(self) -> Any:
        return _rad_eval(self.key)

    def statistic(self, predictions: Sequence[str], references: Sequence[str]) -> Statistic:
        return mean(np.array(self.scorer(refs=list(references), hyps=list(predictions))[self.column]))


class BertScore(_RadEvalMetric):
    column = "bertscore"
    title = "BERTScore F1, rescaled, mean over cases; nearness of words, no knowledge of findings"
    citation = "Zhang et al., 2020; RadEval's distilbert-base-uncased, layer 5"
    downloads = "distilbert-base-uncased (about 270 MB)"


class RadGraph(_RadEvalMetric):
    column = "radgraph_partial"
    title = "RadGraph F1 (entities and whether they have relations), mean over cases"
    citation = "Jain et al., 2021; Delbrouck et al., 2022 (reward level partial); model radgraph-xl"
    downloads = "radgraph-xl of StanfordAIMI/RRG_scorers and its BERT (about 1 GB)"


class CheXbert(LearnedMetric):
    title = "CheXbert micro F1 of 14 observations; an uncertain one counts as present"
    citation = "Smit et al., 2020"
    downloads = "chexbert.pth of StanfordAIMI/RRG_scorers and bert-base-uncased's tokenizer (about 1.3 GB)"

    def _load(self) -> Any:
        from radeval.metrics.f1chexbert import F1CheXbert

        # F1CheXbert defaults to the GPU even without one.
        return F1CheXbert(device="cuda" if torch.cuda.is_available() else "cpu")

    def statistic(self, predictions: Sequence[str], references: Sequence[str]) -> Statistic:
        # RadEval gives this F1 for a whole corpus only. The labels give it for any case weights.
        ours, theirs = self._labels(predictions), self._labels(references)
        agreed = 2.0 * (ours & theirs).sum(axis=1)  # N, over 14 observations
        return ratio(agreed, agreed + (ours ^ theirs).sum(axis=1))

    def _labels(self, reports: Sequence[str]) -> np.ndarray:
        """Label reports with the 14 observations; N × 14, bool."""
        return np.array(self.scorer.get_labels(list(reports)), dtype=bool)


LEARNED: dict[str, type[LearnedMetric]] = {"bertscore": BertScore, "radgraph": RadGraph, "chexbert": CheXbert}
"""Metric classes by their name in `evaluation.learned_metrics`."""


def load_learned(names: Sequence[str]) -> list[LearnedMetric]:
    """Load the metrics of these names, after printing what each of them downloads.

    Raises `UserError` if the extra is not installed or a model cannot be had.
    """
    for name in names:
        print(f"{name}: judged by {LEARNED[name].downloads}, fetched from the Hub unless it is in the cache")
    return [LEARNED[name]() for name in names]


def _rad_eval(name: str) -> Any:
    from radeval import RadEval

    if not any(isinstance(finder, _OldName) for finder in sys.meta_path):
        sys.meta_path.append(_OldName())
    return RadEval(metrics=[name], per_sample=True, show_progress=False)


class _OldName(MetaPathFinder, Loader):
    """Alias `RadEval.…` to `radeval.…`: RadEval 2.2 imports its RadGraph so, which fails on case-sensitive disks."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname.split(".")[0] == "RadEval" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module("radeval" + spec.name.removeprefix("RadEval"))
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system set the alias's spec; the module is loaded already
