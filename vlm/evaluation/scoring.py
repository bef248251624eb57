"""Compute losses and logits of every case in a split, without drafting."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vlm.data.case import Example
from vlm.data.collate import Collator, to_device
from vlm.distributed import gather_ordered, shard_indices
from vlm.model.clinical_vlm import ClinicalVLM, VLMOutput
from vlm.progress import progress
from vlm.statistics.probability import auroc


@dataclass
class CaseScores:
    """Logits, targets and losses, one row a case, in the order of the dataset."""

    logits: np.ndarray
    """N × K."""
    targets: np.ndarray
    """N × K, NaN where unknown."""
    losses: np.ndarray
    """N, text loss summed over the report's tokens, nats."""
    tokens: np.ndarray
    """N, number of those tokens; 0 for a case without a report."""

    @classmethod
    def from_columns(cls, columns: np.ndarray, targets: np.ndarray) -> "CaseScores":
        """Split columns (N × (K + 2)) into logits, loss and tokens."""
        return cls(columns[:, :-2], targets, columns[:, -2], columns[:, -1])

    def of(self, rows: np.ndarray) -> "CaseScores":
        """Return the scores of some cases."""
        return CaseScores(self.logits[rows], self.targets[rows], self.losses[rows], self.tokens[rows])

    @property
    def probabilities(self) -> np.ndarray:
        """Sigmoid of the logits, not calibrated; N × K."""
        return 1 / (1 + np.exp(-self.logits.astype(np.float64)))


@torch.no_grad()
def score_cases(
    model: ClinicalVLM,
    dataset: torch.utils.data.Dataset[Example],
    batch_size: int,
    title: str,
    text: bool = True,
    workers: int = 0,
) -> CaseScores:
    """Score the cases in one pass, sharded over the ranks; vocabulary logits are never kept.

    Without `text` the language model does not run, at a hundredth of the cost, and the losses are NaN.
    `workers` processes read the images.
    """
    was_training = model.training
    model.eval()
    count = len(dataset)  # type: ignore[arg-type]
    own = torch.utils.data.Subset(dataset, shard_indices(count, model.sharded))
    loader = torch.utils.data.DataLoader(own, batch_size, num_workers=workers, collate_fn=Collator(model.prompt))
    columns: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    for batch in progress(loader, f"scoring: {title}"):
        batch = to_device(batch, model.device)
        with model.autocast():
            output: VLMOutput = model(**batch, alpha=0.5 if text else 1)
        losses = output.case_losses if text else torch.full_like(output.case_losses, np.nan)
        parts = [output.logits.float(), losses[:, None].float(), output.case_tokens[:, None].float()]
        columns.extend(torch.cat(parts, dim=1).cpu().numpy())
        targets.extend(batch["targets"].cpu().numpy())
    model.train(was_training)
    columns, targets = (gather_ordered(values, count, model.sharded) for values in (columns, targets))
    labels = len(model.spec.labels)
    return CaseScores.from_columns(
        np.array(columns).reshape(count, labels + 2), np.array(targets).reshape(count, labels)
    )


def split_metrics(scores: CaseScores, labels: Sequence[str], alpha: float = 0.5) -> dict[str, float]:
    """Compute losses and AUROC of a whole split, as exact means over labels and tokens, not means of batch means."""
    known = ~np.isnan(scores.targets)
    logits, targets = scores.logits[known].astype(np.float64), scores.targets[known]
    bce = float(np.mean(np.logaddexp(0, logits) - targets * logits)) if known.any() else 0.0
    ce = float(scores.losses.sum() / max(scores.tokens.sum(), 1))  # NaN if scored without text
    metrics = {"eval_loss": alpha * bce + ((1 - alpha) * ce if alpha < 1 else 0.0), "eval_loss_bce": bce,
               "eval_loss_ce": ce}  # fmt: skip
    areas = [label_auroc(scores, k) for k in range(len(labels))]
    defined = [area for area in areas if not np.isnan(area)]
    if defined:
        metrics["eval_auroc"] = float(np.mean(defined))
    return metrics


def label_auroc(scores: CaseScores, label: int) -> float:
    """Compute the AUROC of one label over its known cases, NaN if undefined."""
    targets = scores.targets[:, label]
    known = ~np.isnan(targets)
    if not known.any():
        return float("nan")
    return float(auroc(targets[known], ranked(scores.logits[known, label]))(np.ones((1, known.sum())))[0])


def ranked(logits: np.ndarray) -> np.ndarray:
    """Round logits for ranking, so that equal inputs, which may differ in the last bits, are ties."""
    return logits.astype(np.float64).round(4)
