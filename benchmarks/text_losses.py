"""Losses of the text beside the plain one, which benchmarks.text_options tries: weights for tokens, and a reward."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList

from vlm.data.case import Example
from vlm.data.collate import IGNORED, Collator, evidence_of
from vlm.findings.labeller import Labeller
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.loss import supervised, token_losses

FINDING_WEIGHT = 3.0
MOST_GAIN = 3.0
"""Most weight that evidence adds to a token, nats."""
ANCHOR = 0.5
"""Share of the supervised loss beside the reward's: it keeps the text near what it was."""

Batch = Any
Weights = Callable[..., torch.Tensor]


def each_token(model: ClinicalVLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the loss of each supervised token, its case and its place; N each."""
    encoded = model.encode(**evidence_of(batch))
    embeddings = model.embed(batch["input_ids"], batch["evidence_mask"], encoded.flat())
    hidden, labels = model.trunk(embeddings, batch["attention_mask"]), batch["labels"]
    case, place = supervised(labels)
    return token_losses(hidden[case, place], model.vocabulary_head, labels[case, place + 1]), case, place


def withheld(batch: Batch) -> Batch:
    """Copy a batch without image and vitals."""
    return {**batch, "has_image": torch.zeros_like(batch["has_image"]), "vitals": batch["vitals"] * torch.nan}


def token_places(model: ClinicalVLM, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Find where each token starts and ends in the text of all; N each."""
    ends = np.array([len(str(model.tokenizer.decode(ids[: n + 1]))) for n in range(len(ids))])
    return np.concatenate([[0], ends[:-1]]), ends


def weighted_loss(model: ClinicalVLM, batch: Batch, weights: Weights | None) -> torch.Tensor:
    """Compute the mean loss of the tokens by their weights."""
    losses, case, place = each_token(model, batch)
    if weights is None:
        return losses.mean()
    given = weights(model, batch, losses.detach(), case, place)
    return (losses * given).sum() / given.sum()


def finding_weights(
    model: ClinicalVLM, batch: Batch, losses: torch.Tensor, case: torch.Tensor, place: torch.Tensor, labeller: Labeller
) -> torch.Tensor:
    """Weigh the tokens that name a finding `FINDING_WEIGHT` times; N."""
    weights = torch.ones_like(losses)
    for row in range(len(batch["labels"])):
        ids = batch["labels"][row][batch["labels"][row] != IGNORED].tolist()
        (starts, ends), text = token_places(model, ids), str(model.tokenizer.decode(ids)).lower()
        inside = np.zeros(len(ids), dtype=bool)
        for pattern in labeller.vocabulary.named["findings"].values():
            for match in pattern.finditer(text):
                inside |= (starts < match.end()) & (ends > match.start())
        weights[case == row] = torch.where(torch.from_numpy(inside), FINDING_WEIGHT, 1.0)
    return weights


@torch.no_grad()
def evidence_weights(
    model: ClinicalVLM, batch: Batch, losses: torch.Tensor, case: torch.Tensor, place: torch.Tensor
) -> torch.Tensor:
    """Weigh each token by 1 and what it loses, in nats, where image and vitals are withheld; N."""
    without, *_ = each_token(model, withheld(batch))
    return 1 + (without - losses).clamp(0, MOST_GAIN)


def reward_loss(
    model: ClinicalVLM,
    examples: Sequence[Example],
    batch: Batch,
    reward: Callable[[Sequence[str], Sequence[str]], np.ndarray],
    longest: int = 64,
) -> torch.Tensor:
    """Compute the loss of self-critical sequence training (Rennie et al., 2017), beside the supervised one.

    A sampled draft's log likelihood counts by its reward, less that of the greedy draft.
    """
    references = [example["report"] for example in examples]
    prompts = Collator(model.prompt, generation=True)(examples)
    model.eval()
    greedy, _ = model.generate(prompts, longest)
    sampled, _ = model.generate(prompts, longest, logits_processor=LogitsProcessorList([sampling]))
    model.train()
    gain = torch.tensor(reward(sampled, references) - reward(greedy, references), dtype=torch.float32)
    said = Collator(model.prompt)([{**e, "report": text} for e, text in zip(examples, sampled, strict=True)])
    losses, case, _ = each_token(model, said)
    return (1 - ANCHOR) * (losses * gain[case]).mean() + ANCHOR * weighted_loss(model, batch, None)


def sampling(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Add Gumbel noise to the logits: the likeliest token is then a sample at temperature 1."""
    return scores + torch.distributions.Gumbel(0.0, 1.0).sample(scores.shape)
