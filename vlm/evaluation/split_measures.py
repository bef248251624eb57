"""Measure the losses and the AUROC of a trained model on training, validation and test cases, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlm.config import Config
from vlm.data.dataset import CaseDataset
from vlm.data.splits import draw_cases
from vlm.evaluation.measures import Bootstrap, auroc_of
from vlm.evaluation.scoring import CaseScores, score_cases
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.statistics.estimate import undefined
from vlm.statistics.intervals import ratio

MOST_CASES = 100
"""Number of cases from which on a part of a split is scored; the last patient drawn is whole."""


class SplitScores(NamedTuple):
    """Hold the scores of all cases of a split, or of some patients'."""

    scores: CaseScores
    patients: np.ndarray
    """N patient names."""
    drawn_from: int
    """Number of the split's cases."""


def score_some(model: ClinicalVLM, split: CaseDataset, config: Config, title: str) -> SplitScores:
    """Score the cases of a split without drafting: all, or those of patients drawn at random."""
    batch, workers = config.evaluation.batch_size, config.train.workers
    some = split.select(draw_cases(split.rows, MOST_CASES))
    scores = score_cases(model, some, batch, title, workers=workers)
    return SplitScores(scores, np.array(some.rows["patient"], object), len(split))


def score_splits(model: ClinicalVLM, splits: Mapping[str, CaseDataset], config: Config) -> dict[str, SplitScores]:
    """Score training and validation cases, which are without dropout and augmentation; none of an empty split."""
    learned = {name: splits[name] for name in ("train", "validation") if len(splits[name])}
    return {name: score_some(model, split, config, f"{name} cases") for name, split in learned.items()}


def split_measures(splits: Mapping[str, SplitScores], labels: Sequence[str], draws: int) -> dict[str, Any]:
    """Compute of each split the BCE of all known labels, the text loss per token, nats, and each label's AUROC."""
    measures = {}
    for name, (scores, patients, drawn_from) in splits.items():
        bootstrap, known = Bootstrap(patients, draws), ~np.isnan(scores.targets)
        logits, targets = scores.logits.astype(np.float64), np.nan_to_num(scores.targets)
        losses = np.where(known, np.logaddexp(0, logits) - targets * logits, 0)  # N × K
        areas = [auroc_of(scores.logits[:, k], scores.targets[:, k], bootstrap) for k in range(len(labels))]
        one_class = undefined("the label is the same in all these cases, or unknown")
        measures[name] = {
            "cases": len(patients),
            "patients": len(set(patients)),
            "drawn_from": drawn_from,
            "bce": bootstrap(ratio(losses.sum(axis=1), known.sum(axis=1)))
            if known.any()
            else undefined("no label is known"),
            "text_loss": bootstrap(ratio(scores.losses, scores.tokens))
            if scores.tokens.any()
            else undefined("no case has a reference report"),
            "auroc": {label: one_class if area["value"] is None else area
                      for label, area in zip(labels, areas, strict=True)},
        }  # fmt: skip
    return measures
