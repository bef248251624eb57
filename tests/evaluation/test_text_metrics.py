"""Overlap metrics against the libraries that define them, offline and in `evaluate.combine`."""

import random

import evaluate
import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from vlm.evaluation.text import BLEU, METRICS, ChrF, CiderD, MeteorWithoutSynonyms, RougeL, words

VOCABULARY = (
    "no opacity in the left right lung zone glucose is elevated normal 8.7 bp 125/80 effusion small".split()  # noqa: SIM905
)


def random_reports(seed: int, n: int = 30) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    make = lambda: [" ".join(rng.choices(VOCABULARY, k=rng.randint(3, 25))) + "." for _ in range(n)]  # noqa: E731
    references = make()
    drafts = [r if rng.random() < 0.2 else a for r, a in zip(references, make(), strict=True)]
    return drafts, references


@pytest.mark.parametrize("seed", range(20))
def test_metrics_are_those_of_sacrebleu_and_rouge_score(seed: int) -> None:
    drafts, references = random_reports(seed)
    result = evaluate.combine([metric() for metric in METRICS]).compute(predictions=drafts, references=references)
    assert result["bleu"] * 100 == pytest.approx(
        sacrebleu.corpus_bleu(drafts, [references], lowercase=True).score, abs=1e-9
    )
    assert result["chrf"] * 100 == pytest.approx(sacrebleu.corpus_chrf(drafts, [references]).score, abs=1e-9)
    scorer = RougeScorer(["rougeL"])
    rouge = [scorer.score(r, d)["rougeL"].fmeasure for r, d in zip(references, drafts, strict=True)]
    assert result["rougel"] == pytest.approx(np.mean(rouge), abs=1e-9)
    assert result.keys() == {"bleu", "chrf", "rougel", "meteor_without_synonyms", "ciderd"}


@pytest.mark.parametrize("metric", METRICS)
def test_weights_are_copies_of_cases(metric) -> None:
    """A case of weight 2 counts as two cases, one of weight 0 not at all; CIDEr-D keeps its document frequencies."""
    drafts, references = random_reports(3, 8)
    weights = np.array([[2, 0, 1, 1, 0, 3, 1, 0]])
    statistic = metric().statistic(drafts, references)
    if metric is CiderD:
        each = [statistic(np.eye(8)[[i]])[0] for i in range(8)]
        assert statistic(weights)[0] == pytest.approx(np.average(each, weights=weights[0]))
        return
    copies = [i for i, count in enumerate(weights[0]) for _ in range(count)]
    again = metric().statistic([drafts[i] for i in copies], [references[i] for i in copies])
    assert statistic(weights)[0] == pytest.approx(again(np.ones((1, len(copies))))[0], abs=1e-12)


def test_a_report_like_itself_scores_the_most() -> None:
    _, references = random_reports(0)
    for metric, most in ((BLEU, 1), (ChrF, 1), (RougeL, 1)):
        assert metric().compute(predictions=references, references=references)[metric().key] == pytest.approx(most)
    meteor = MeteorWithoutSynonyms().compute(predictions=references, references=references)
    assert 0.95 < meteor["meteor_without_synonyms"] <= 1


def test_cider_d_by_hand() -> None:
    """Two references, "a b" and "c d": every n-gram is in one of them, so each has the same weight, log 2."""
    statistic = CiderD().statistic(["a b", "c"], ["a b", "c d"])
    each = statistic(np.eye(2))
    assert each[0] == pytest.approx(10 * 2 / 4)  # unigrams and bigrams are equal, there are no longer ones
    assert each[1] == pytest.approx(10 * np.exp(-1 / 72) * (1 / np.sqrt(2)) / 4)


def test_numbers_are_words() -> None:
    assert words("BP 125/80, glucose 8.7 mmol/L.") == ["bp", "125/80", "glucose", "8.7", "mmol", "l"]


def test_nothing_is_written_to_a_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_EVALUATE_CACHE", str(tmp_path))
    RougeL(cache_dir=str(tmp_path)).compute(predictions=["a secret"], references=["a secret"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
