"""Run the decoder forward with a shared-prefix KV cache and length-bucketed sub-batches, or packed."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from vlm.compat import cache_argument, cache_of

PASS_COST = 64
"""Cost of one more forward pass on a CPU, in tokens."""
LONGEST_PACK = 4096
"""Most tokens of a packed sequence where attention takes a mask of all its pairs."""


def decoder_forward(
    model: nn.Module, embeddings: torch.Tensor, attention_mask: torch.Tensor, shared: int, one_pass: bool
) -> torch.Tensor:
    """Run the LLM without its output layer; B × T × H, right-padded → B × T × H, zero beyond a bucket's length.

    The first `shared` tokens are the same in all cases and attend to nothing after them: they run once, and their
    gradient is the sum over the cases. The rest runs in `one_pass`, or in length buckets.
    """
    cases, width = attention_mask.shape
    beginning, start, states = None, 0, []
    if shared and cases > 1:
        beginning, start = model(inputs_embeds=embeddings[:1, :shared], use_cache=True), shared
    lengths = row_lengths(attention_mask)
    groups = [list(range(cases))] if one_pass else length_groups(lengths)
    for rows in groups:
        index, end = torch.tensor(rows, device=embeddings.device), max(lengths[row] for row in rows)
        read = {} if beginning is None else {cache_argument(): repeated(cache_of(beginning), len(rows))}
        states.append(
            model(
                inputs_embeds=embeddings[index, start:end],
                attention_mask=attention_mask[index, :end],
                use_cache=beginning is not None,
                **read,
            ).last_hidden_state
        )  # n × (end - start) × H
    padded = torch.cat([F.pad(state, (0, 0, 0, width - start - state.shape[1])) for state in states])
    order = torch.tensor([row for rows in groups for row in rows], device=embeddings.device).argsort()
    if beginning is None:
        return padded[order]
    return torch.cat([beginning.last_hidden_state.expand(cases, -1, -1), padded[order]], dim=1)


def packed_forward(
    model: nn.Module, embeddings: torch.Tensor, attention_mask: torch.Tensor, longest: int | None
) -> torch.Tensor:
    """Run the LLM without its output layer and without padding; B × T × H, right-padded → B × T × H, zero at padding.

    The cases lie one after another in one sequence. Their positions start at 0 each, by which Transformers tells them
    apart: no case attends to another (block-diagonal mask, or variable-length kernels). A sequence ends before
    `longest` tokens, since a mask grows with the square of its length; None packs all cases into one.
    """
    lengths = row_lengths(attention_mask)
    packed = torch.zeros_like(embeddings.view(-1, embeddings.shape[-1]))  # B·T × H
    for rows in packs(lengths, longest):
        places = [torch.arange(lengths[row], device=embeddings.device) for row in rows]
        positions = torch.cat(places)  # N
        index = torch.cat([place + row * embeddings.shape[1] for place, row in zip(places, rows, strict=True)])  # N
        states = model(
            inputs_embeds=embeddings.flatten(0, 1)[None, index], position_ids=positions[None], use_cache=False
        ).last_hidden_state  # 1 × N × H
        packed = packed.to(states.dtype).index_copy(0, index, states[0])
    return packed.view(*embeddings.shape)


def row_lengths(attention_mask: torch.Tensor) -> list[int]:
    """Count the tokens of each row of a right-padded mask, B × T."""
    return attention_mask.sum(dim=1).tolist()  # type: ignore[no-any-return]


def packs(lengths: Sequence[int], longest: int | None) -> list[list[int]]:
    """Group consecutive rows so that each group has at most `longest` tokens, or one row."""
    groups: list[list[int]] = [[]]
    for row, length in enumerate(lengths):
        if longest is not None and groups[-1] and sum(lengths[r] for r in groups[-1]) + length > longest:
            groups.append([])
        groups[-1].append(row)
    return groups


def repeated(read: Cache, cases: int) -> Cache:
    """Expand the KV cache of one case (1 × heads × F × d) to `cases`, as a new cache."""
    layers = [layer for layer in read.layers if isinstance(layer, DynamicLayer)]
    pairs = [(layer.keys, layer.values) for layer in layers if layer.keys is not None and layer.values is not None]
    return DynamicCache([(k.expand(cases, -1, -1, -1), v.expand(cases, -1, -1, -1)) for k, v in pairs])


def length_groups(lengths: Sequence[int], pass_cost: int = PASS_COST) -> list[list[int]]:
    """Bucket rows by length so that padding and forward passes together cost the least.

    Sorted by length, each best bucket is contiguous: `cheapest[i]` is the cost of the i longest rows.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    cheapest, starts = [0], [0]
    for stop in range(1, len(order) + 1):
        costs = [cheapest[start] + lengths[order[start]] * (stop - start) + pass_cost for start in range(stop)]
        cheapest.append(min(costs))
        starts.append(costs.index(cheapest[-1]))
    groups, stop = [], len(order)
    while stop:
        groups.append(sorted(order[starts[stop] : stop]))
        stop = starts[stop]
    return groups
