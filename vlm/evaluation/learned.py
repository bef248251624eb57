"""Compute model-based metrics with the RadEval library, by their names there.

Left out are BLEU and ROUGE, which `vlm.evaluation.text` has, and MammoGREEN and RadFact-CT, which send the reports, a
patient's words, to a service on the network. An optional extra
(`pip install 'clinical-vlm[radeval]'`), with the interface of `vlm.evaluation.text`. Each metric downloads its models
from the Hub on first use, as its `downloads` says. No other part of the evaluation does.
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
from vlm.evaluation.text import TextMetric
from vlm.statistics.intervals import Statistic, mean, ratio


class LearnedMetric(TextMetric):
    """A model-based metric, loaded once before a long run, so that a failed download costs nothing."""

    downloads: str
    """Models fetched from the Hub, and their size where it is known."""
    short: str
    """Name of the metric on the page."""

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
    called = ""
    """Name of the metric in RadEval, where it is another than ours in lower case."""

    @property
    def key(self) -> str:
        return self.called or super().key

    def _load(self) -> Any:
        return _rad_eval(self.key)

    def statistic(self, predictions: Sequence[str], references: Sequence[str]) -> Statistic:
        found = self.scorer(refs=list(references), hyps=list(predictions))[self.column]
        return mean(np.array(found, dtype=np.float64))  # None, where a metric has no score for a case, becomes NaN


class BertScore(_RadEvalMetric):
    column = "bertscore"
    short = "BERTScore"
    title = "BERTScore F1, rescaled, mean over cases; nearness of words, no knowledge of findings"
    citation = "Zhang et al., 2020; RadEval's distilbert-base-uncased, layer 5"
    downloads = "distilbert-base-uncased (about 270 MB)"


class RadGraph(_RadEvalMetric):
    column = "radgraph_partial"
    short = "RadGraph F1"
    title = "RadGraph F1 (entities and whether they have relations), mean over cases"
    citation = "Jain et al., 2021; Delbrouck et al., 2022 (reward level partial); model radgraph-xl"
    downloads = "radgraph-xl of StanfordAIMI/RRG_scorers and its BERT (about 1 GB)"


class CheXbert(LearnedMetric):
    short = "CheXbert F1"
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


class RadEvalBertScore(_RadEvalMetric):
    called = column = "radeval_bertscore"
    short = "RadEval BERTScore"
    title = "BERTScore F1 by a model of radiology, mean over cases; nearness of words"
    citation = "Zhang et al., 2020; Xu et al., RadEval, 2025"
    downloads = "IAMJB/RadEvalModernBERT"


class RaTEScore(_RadEvalMetric):
    column = "ratescore"
    short = "RaTEScore"
    title = "RaTEScore: medical entities matched with their synonyms and negations, mean over cases"
    citation = "Zhao et al., 2024"
    downloads = "Angelakeke/RaTE-NER-Deberta and FremyCompany/BioLORD-2023-C"


class RadCliQ(_RadEvalMetric):
    column = "radcliq_v1"
    short = "RadCliQ-v1 (lower is better)"
    title = "RadCliQ-v1: errors that radiologists would count, estimated; lower is better, mean over cases"
    citation = "Yu et al., 2023"
    downloads = "RadGraph, CheXbert and distilroberta-base"


class RadGraphRadCliQ(_RadEvalMetric):
    called = column = "radgraph_radcliq"
    short = "RadGraph F1 of RadCliQ"
    title = "RadGraph F1 (entities and relations) as RadCliQ takes it, mean over cases"
    citation = "Jain et al., 2021; Yu et al., 2023"
    downloads = "RadGraph's model"


class SRRBert(_RadEvalMetric):
    column = "srrbert_weighted_f1"
    short = "SRR-BERT F1"
    title = "SRR-BERT F1 of fine findings with their status, mean over cases"
    citation = "Delbrouck et al., 2025; model leaves with statuses"
    downloads = "StanfordAIMI/SRR-BERT-Leaves-with-Statuses, a tokenizer and NLTK's punkt_tab"


class Temporal(_RadEvalMetric):
    column = "temporal_f1"
    short = "Temporal F1"
    title = "F1 of the words for change over time (stable, new, larger), mean over cases"
    citation = "Zhang et al., Libra, 2025; words of Bannur et al., 2023"
    downloads = "stanza's English radiology package"


class Green(_RadEvalMetric):
    column = "green"
    short = "GREEN"
    title = "GREEN: findings matched beside significant errors, judged by a language model, mean over cases"
    citation = "Ostmeier et al., 2024"
    downloads = "StanfordAIMI/GREEN-radllama2-7b (7 billion parameters; wants a GPU)"


class Crimson(_RadEvalMetric):
    column = "crimson"
    short = "CRIMSON"
    title = "CRIMSON: errors weighed by clinical severity, judged by a language model, mean over cases"
    citation = "RadEval 2.2, provider hf"
    downloads = "rajpurkarlab/medgemma-4b-it-crimson (4 billion parameters; wants a GPU)"


class F1RadbertCT(_RadEvalMetric):
    called, column = "f1radbert_ct", "f1radbert_ct_sample_acc"
    short = "RadBERT-CT agreement"
    title = "share of cases of chest CT whose labels by RadBERT-CT all agree"
    citation = "RadEval 2.2; labels of CT-RATE"
    downloads = "IAMJB/RadBERT-CT"


LEARNED: dict[str, type[LearnedMetric]] = {
    "bertscore": BertScore, "radgraph": RadGraph, "chexbert": CheXbert, "radeval_bertscore": RadEvalBertScore,
    "ratescore": RaTEScore, "radcliq": RadCliQ, "radgraph_radcliq": RadGraphRadCliQ, "srrbert": SRRBert,
    "temporal": Temporal, "green": Green, "crimson": Crimson, "f1radbert_ct": F1RadbertCT,
}  # fmt: skip
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
