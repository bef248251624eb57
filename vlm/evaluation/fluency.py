"""Measure fluency: how well the base language model, without the adapter, predicts the words of drafts and references.

A fluent draft has about the perplexity of the references; wrong grammar raises it. It says nothing of what is true.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vlm.data.collate import IGNORED
from vlm.data.prompt import PlainText
from vlm.distributed import gather_ordered, shard_indices
from vlm.evaluation.measures import Bootstrap, Reports
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.decoder import decoder_forward
from vlm.model.loss import text_loss
from vlm.progress import progress
from vlm.statistics.intervals import Statistic, ratio

LONGEST = 512
"""Most tokens of a text that are read."""
MOST_CASES = 200
"""Cases whose texts are read, the first ones: the base reads a draft at a tenth of the cost of writing it."""


@torch.no_grad()
def token_losses(model: ClinicalVLM, texts: Sequence[str], batch_size: int) -> np.ndarray:
    """Compute the base's loss over each text, in nats, and the number of tokens that it predicts; N × 2.

    A text stands alone, after the tokenizer's first token if it has one. All ranks must call this.
    """
    model.eval()
    plain, first = PlainText(model.tokenizer), model.tokenizer.bos_token_id
    own = [texts[place] for place in shard_indices(len(texts), model.sharded)]
    ids = [([first] * (first is not None) + plain.ids(text))[:LONGEST] for text in own]
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))  # texts of one length together
    found = np.zeros((len(ids), 2))
    batches = [order[place : place + batch_size] for place in range(0, len(order), batch_size)]
    with model.llm.disable_adapter(), model.autocast():  # type: ignore[operator]
        for places in progress(batches, "fluency"):
            width = max(2, *(len(ids[place]) for place in places))
            labels = torch.tensor([ids[place] + [IGNORED] * (width - len(ids[place])) for place in places])
            labels = labels.to(model.device)  # B × T
            mask = (labels != IGNORED).long()
            embedded = model.space.embed(labels.clamp(min=0))  # B × T × H
            hidden = decoder_forward(model.base.base_model, embedded, mask, 0, True)
            losses = text_loss(hidden, model.vocabulary_head, labels)[1]
            found[places, 0] = losses.float().cpu().numpy()
            found[places, 1] = (labels[:, 1:] != IGNORED).sum(dim=1).cpu().numpy()
    return np.array(gather_ordered(list(found), len(texts), model.sharded)).reshape(len(texts), 2)


def fluency_measures(model: ClinicalVLM, reports: Reports, batch_size: int, bootstrap: Bootstrap) -> dict[str, Any]:
    """Compute the perplexity of the drafts and of their references, and the ratio of the two.

    Over the first cases with a reference; empty without any. All ranks must call this.
    """
    rows = reports.rows[:MOST_CASES]
    drafts, references = ([texts[row] for row in rows] for texts in (reports.drafts, reports.references))
    texts = list(dict.fromkeys([*drafts, *references]))
    if not len(rows):
        return {}
    read = dict(zip(texts, token_losses(model, texts, batch_size), strict=True))
    ours, theirs = (ratio(*np.array([read[text] for text in part]).T) for part in (drafts, references))
    statistics: dict[str, Statistic] = {
        "perplexity": lambda weights: np.exp(ours(weights)),
        "of_references": lambda weights: np.exp(theirs(weights)),
        "ratio": lambda weights: np.exp(ours(weights) - theirs(weights)),
    }
    return {**{name: bootstrap(statistic, rows) for name, statistic in statistics.items()}, "cases": len(rows)}
