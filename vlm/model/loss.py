"""Compute the loss of equation (5), L = alpha BCE + (1 - alpha) CE, as sums to divide by the counts of any batch."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vlm.data.collate import IGNORED
from vlm.model.bases.vocabulary_head import VocabularyHead

LARGEST_LOGITS = 256 << 20
"""Most bytes, in fp32, of the vocabulary logits in memory at once; with gradients three times as much."""


@dataclass
class LossSum:
    """Hold a summed loss and the number of its terms."""

    total: torch.Tensor
    """Scalar."""
    count: torch.Tensor
    """Scalar: labels or tokens."""

    def mean(self, count: torch.Tensor | None = None) -> torch.Tensor:
        """Divide the sum by its own count, or by that of the whole accumulated batch; 0 if there are no terms."""
        return self.total / (self.count if count is None else count).clamp(min=1)


def label_loss(logits: torch.Tensor, targets: torch.Tensor) -> LossSum:
    """Compute the binary cross-entropy over the known labels; logits and targets are B × K, unknown targets NaN."""
    known = ~torch.isnan(targets)
    filled = torch.where(known, targets, torch.zeros_like(targets)).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, filled, reduction="none")
    return LossSum((losses * known).sum(), known.sum())


def rows_with_text(labels: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Find the cases with a report (R of B) and their longest length; labels and mask are B × T, right-padded.

    The others have no text loss, so the language model skips them. One case always stays: every process must give
    every layer a gradient, be it zero.
    """
    written = (labels[:, 1:] != IGNORED).any(dim=1)
    written[0] |= ~written.any()
    rows = written.nonzero()[:, 0]
    return rows, int(attention_mask[rows].sum(dim=1).max())


def text_loss(
    hidden: torch.Tensor, head: VocabularyHead | torch.Tensor, labels: torch.Tensor
) -> tuple[LossSum, torch.Tensor]:
    """Compute the next-token cross-entropy over the supervised tokens.

    `hidden` is B × T × H of the decoder, `head` the base's own or the V × H weight of a plain one, `labels` B × T.
    Returns the sum, and the loss of each case (B, summed).
    """
    case, place = supervised(labels)
    states, wanted = (
        hidden[case, place],
        labels[case, place + 1],
    )  # N × H, N: the state at t predicts the token at t + 1
    count = torch.tensor(len(wanted), device=labels.device)
    if not len(wanted):  # a mean over nothing would be NaN
        return LossSum(hidden.sum() * 0.0, count), hidden.new_zeros(len(labels))
    losses = token_losses(states, head, wanted)  # N
    cases = torch.zeros(len(labels), device=losses.device).index_add(0, case, losses)
    return LossSum(losses.sum(), count), cases


def supervised(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the states whose next token is supervised; labels are B × T → case and place of each, N and N."""
    case, place = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return case, place


def token_losses(states: torch.Tensor, head: VocabularyHead | torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy of each token, N in fp32; `states` are N × H, `head` as in `text_loss`, `wanted` N.

    Logits are computed for supervised tokens only, at most `LARGEST_LOGITS` at once: beyond it they are recomputed in
    the backward pass (checkpointing). (PyTorch's own chunks take three times as long here.)
    """
    weight = head.plain if isinstance(head, VocabularyHead) else head
    logits_of: Any = head if weight is None else partial(F.linear, weight=weight.to(states.dtype))

    def of(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits_of(states), wanted, reduction="none").float()

    size = max(1, LARGEST_LOGITS // (4 * len(head)))
    parts = list(zip(states.split(size), wanted.split(size), strict=True))
    if len(parts) == 1:
        return of(states, wanted)
    losses: list[torch.Tensor] = [checkpoint(of, *part, use_reentrant=False) for part in parts]
    return torch.cat(losses)


def joint_loss(alpha: float, label: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Combine both losses: L = alpha BCE + (1 - alpha) CE."""
    return alpha * label + (1 - alpha) * text
