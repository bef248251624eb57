"""Choose whether cases may share a prefix, by what a base keeps of the tokens that it has read."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from vlm.compat import cache_of
from vlm.device import Choice

Case = TypeVar("Case")
EVERYWHERE = "in training and drafts"
DRAFTS = "in drafts"
NOWHERE = "no"


def choose_prefix_reuse(llm: PreTrainedModel) -> Choice[str]:
    """Choose where cases share a prefix KV cache, by running the decoder on two tokens.

    A recurrent state, as of Mamba or a linear attention, holds all tokens in one: it can be neither continued by many
    tokens at once nor kept clean of padding. A base with any such layer reads every prompt whole, and drafts together
    only prompts of equal length (`drafts_together`).
    """
    ids = torch.zeros(1, 2, dtype=torch.long, device=llm.get_input_embeddings().weight.device)  # type: ignore[arg-type]
    with torch.no_grad():
        read: Any = llm.base_model(input_ids=ids, use_cache=True)
    cache = cache_of(read)
    layers = {type(layer) for layer in cache.layers} if type(cache) is DynamicCache else {type(cache)}
    if layers == {DynamicLayer}:
        return Choice(EVERYWHERE, "every layer keeps the keys and values of all tokens")
    if layers <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return Choice(DRAFTS, "layers with a sliding window drop the first tokens, which training would share")
    return Choice(NOWHERE, "layers keep a recurrent state; drafts run together where prompts have equal lengths")


def drafts_together(reuse: Choice[str], cases: Sequence[Case], length_of: Callable[[Case], int]) -> list[list[int]]:
    """Group the rows of a batch that may be drafted together, by the lengths of their prompts where that matters."""
    if reuse.value != NOWHERE:
        return [list(range(len(cases)))]
    groups: dict[int, list[int]] = {}
    for row, case in enumerate(cases):
        groups.setdefault(length_of(case), []).append(row)
    return list(groups.values())
