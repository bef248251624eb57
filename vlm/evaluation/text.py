"""Measure n-gram overlap of drafts with full references: BLEU, ROUGE-L, chrF, METEOR without synonyms, CIDEr-D.

sacrebleu, rouge_score and NLTK do the counting. Each metric is an `evaluate.Metric` that needs no network and works
in `evaluate.combine`; `statistic` gives the same value for any case weights, for intervals. The range is 0 to 1, but
0 to 10 for CIDEr-D. No metric knows whether a draft is right: a constant normal report scores well, and one lost
negation costs nearly nothing.
"""

import math
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from vlm.statistics.intervals import Statistic, mean

Ngram = tuple[str, ...]
_SIGN = r"\u3040-\u30ff\u3400-\u9fff"  # kana and CJK ideographs, written without spaces: each is a word
_WORD = re.compile(rf"[{_SIGN}]|[^\W_{_SIGN}]+(?:[./][0-9]+)*")


class TextMetric(evaluate.Metric):
    """Base class of text metrics on lists of strings, one reference a case; nothing is written to disk."""

    title: str
    citation: str

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **options})  # reports are patient text: no cache files

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.title,
            citation=self.citation,
            inputs_description="predictions and references: lists of strings",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        return {self.key: float(self.statistic(predictions, references)(np.ones((1, len(predictions))))[0])}

    @property
    def key(self) -> str:
        """Key of the metric in the result."""
        return type(self).__name__.lower()

    def reads(self, references: Sequence[str]) -> bool:
        """Check whether the references hold anything that the metric counts; if not, it is undefined."""
        return any(map(words, references))

    @abstractmethod
    def statistic(self, predictions: Sequence[str], references: Sequence[str]) -> Statistic:
        """Build the metric as a function of case weights (D × N)."""


class _SacreMetric(TextMetric):
    """A sacrebleu corpus metric: a function of summed counts, so weighted counts give it for any resample."""

    def _scorer(self) -> Any:
        raise NotImplementedError

    def statistic(self, predictions: Sequence[str], references: Sequence[str]) -> Statistic:
        scorer = self._scorer()
        counts = np.array(scorer._extract_corpus_statistics(list(predictions), [list(references)]), dtype=np.float64)

        def statistic(weights: np.ndarray) -> np.ndarray:
            totals = np.rint(weights @ counts).astype(int)  # D × counts
            return np.array([scorer._compute_score_from_stats(row.tolist()).score for row in totals]) / 100

        return statistic


class BLEU(_SacreMetric):
    title = "BLEU-4 of the corpus, sacrebleu's tokens"
    citation = "Papineni et al., 2002; Post, 2018"

    def _scorer(self) -> Any:
        from sacrebleu.metrics import BLEU as Scorer

        return Scorer(lowercase=True)

    def reads(self, references: Sequence[str]) -> bool:
        tokenizer = self._scorer().tokenizer
        return any(len(tokenizer(reference.lower()).split()) >= 4 for reference in references)


class ChrF(_SacreMetric):
    title = "chrF2 of the corpus"
    citation = "Popović, 2015"

    def _scorer(self) -> Any:
        from sacrebleu.metrics import CHRF

        return CHRF()


class RougeL(TextMetric):
    title = "ROUGE-L F1, mean over cases"
    citation = "Lin, 2004"

    def statistic(self, predictions: Sequence[str], references: Sequence[str]) -> Statistic:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rougeL"], tokenizer=_Words())
        pairs = zip(references, predictions, strict=True)
        return mean(np.array([scorer.score(*pair)["rougeL"].fmeasure for pair in pairs]))


class _Words:
    """Tokenizer for ROUGE in every script; rouge_score's own keeps English letters only."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(rf"[{_SIGN}]|[^\W_{_SIGN}]+", text.lower())


class MeteorWithoutSynonyms(TextMetric):
    title = "METEOR with exact and stemmed matches only, mean over cases; not comparable with METEOR on WordNet"
    citation = "Banerjee and Lavie, 2005"

    @property
    def key(self) -> str:
        return "meteor_without_synonyms"

    def statistic(self, predictions: Sequence[str], references: Sequence[str]) -> Statistic:
        from nltk.translate.meteor_score import single_meteor_score

        class NoSynonyms:
            def synsets(self, word: str) -> list[Any]:
                return []

        pairs = zip(references, predictions, strict=True)
        return mean(
            np.array([single_meteor_score(words(r), words(p), wordnet=NoSynonyms()) for r, p in pairs])  # type: ignore[arg-type]
        )


class CiderD(TextMetric):
    title = "CIDEr-D, mean over cases, 0 to 10; its document frequencies are those of all references given"
    citation = "Vedantam et al., 2015"
    longest, sigma = 4, 6.0

    def statistic(self, predictions: Sequence[str], references: Sequence[str]) -> Statistic:
        drafts, truths = ([self._ngrams(words(text)) for text in texts] for texts in (predictions, references))
        documents = Counter(gram for truth in truths for gram in set().union(*truth))
        log_documents = math.log(max(len(references), 1))
        idf = {gram: log_documents - math.log(count) for gram, count in documents.items()}
        pairs = zip(drafts, truths, strict=True)
        return mean(np.array([self._similarity(draft, truth, idf, log_documents) for draft, truth in pairs]))

    def reads(self, references: Sequence[str]) -> bool:
        """Check that the references differ: an n-gram in all of them has an IDF of 0."""
        return len({tuple(words(reference)) for reference in references}) > 1

    def _ngrams(self, tokens: list[str]) -> list[Counter[Ngram]]:
        return [
            Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)) for n in range(1, self.longest + 1)
        ]

    def _similarity(
        self, draft: list[Counter[Ngram]], truth: list[Counter[Ngram]], idf: dict[Ngram, float], unseen: float
    ) -> float:
        """Average the clipped TF-IDF cosine over n, with a penalty on the length difference."""
        gap = sum(draft[0].values()) - sum(truth[0].values())
        total = 0.0
        for ours, theirs in zip(draft, truth, strict=True):
            a = {gram: count * idf.get(gram, unseen) for gram, count in ours.items()}
            b = {gram: count * idf[gram] for gram, count in theirs.items()}
            norms = math.sqrt(sum(x * x for x in a.values())) * math.sqrt(sum(x * x for x in b.values()))
            if norms:
                total += sum(min(a[gram], b[gram]) * b[gram] for gram in a.keys() & b.keys()) / norms
        return 10 * math.exp(-(gap**2) / (2 * self.sigma**2)) * total / self.longest


METRICS: tuple[type[TextMetric], ...] = (BLEU, ChrF, RougeL, MeteorWithoutSynonyms, CiderD)
"""Metrics in every evaluation."""


def words(text: str) -> list[str]:
    """Tokenize into lower-case words and numbers of any language; `125/80` and `8.7` are one token each."""
    return _WORD.findall(text.lower())
