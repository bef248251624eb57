"""Collate examples into a padded batch of tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch

from vlm.data.case import Example
from vlm.data.prompt import Prompt

LONGEST_REPORT = 1024
"""Largest length of a report, tokens."""
IGNORED = -100
"""Label that the text loss ignores."""


class Batch(TypedDict):
    """Batch of B cases, T tokens, m vitals, K labels."""

    pixel_values: torch.Tensor  # N × 3 × S × S, the images of all cases in turn; a black one where there is none
    image_roles: torch.Tensor  # N × 4: row of the batch, view, prior, days
    has_image: torch.Tensor  # B, bool
    vitals: torch.Tensor  # B × m, NaN where missing
    targets: torch.Tensor  # B × K, 0 or 1, NaN where unknown
    input_ids: torch.Tensor  # B × T
    attention_mask: torch.Tensor  # B × T, 0 at padding
    evidence_mask: torch.Tensor  # B × T, bool, True at evidence tokens
    labels: torch.Tensor  # B × T, token to predict, IGNORED elsewhere
    signals: NotRequired[torch.Tensor]  # B × C × L, NaN at gaps and without one; where the model reads signals
    ids: NotRequired[list[str]]  # case ids; not for the model


def evidence_of(batch: Batch) -> dict[str, torch.Tensor]:
    """Select what `EvidenceEncoder.encode` takes."""
    names = ("pixel_values", "has_image", "vitals", "image_roles", *(("signals",) if "signals" in batch else ()))
    return {name: batch[name] for name in names}  # type: ignore[literal-required]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch to a device."""
    return Batch(**{name: value.to(device) for name, value in batch.items()})  # type: ignore[typeddict-item,attr-defined]


def batch_roles(examples: Sequence[Example]) -> torch.Tensor:
    """Number the roles of all images of a batch; N × 4: row, view, prior, days."""
    rows = [torch.nn.functional.pad(example["image_roles"], (1, 0), value=row) for row, example in enumerate(examples)]
    return torch.cat(rows)


@dataclass
class Collator:
    """Tokenize and pad: on the right in training; in generation, without a report, after the fixed prefix.

    The shared prefix then has the same positions in all cases, so it is read once (`prefix_kv_cache`), and every case
    ends at the last position.
    """

    prompt: Prompt
    max_report_tokens: int = LONGEST_REPORT
    """Reports are truncated to this and to the context length; image and vitals tokens never are."""
    generation: bool = False
    with_ids: bool = False
    """Add the case ids, for messages."""

    def __call__(self, examples: Sequence[Example]) -> Batch:
        rows = [self._row(example) for example in examples]
        length = max(len(ids) for ids, _, _ in rows)
        pad = [length - len(ids) for ids, _, _ in rows]

        def padded(values: list[list[int]], fill: int) -> torch.Tensor:
            at = self.prompt.fixed_tokens if self.generation else length
            return torch.tensor([v[:at] + [fill] * n + v[at:] for v, n in zip(values, pad, strict=True)])

        batch = Batch(
            pixel_values=torch.cat([example["pixel_values"] for example in examples]),
            image_roles=batch_roles(examples),
            has_image=torch.tensor([example["has_image"] for example in examples]),
            vitals=torch.stack([example["vitals"] for example in examples]),
            targets=torch.stack([example["targets"] for example in examples]),
            input_ids=padded([ids for ids, _, _ in rows], self.prompt.pad_id),
            # By length, never by token id: the end of the report is often the padding token as well.
            attention_mask=padded([[1] * len(ids) for ids, _, _ in rows], 0),
            evidence_mask=padded([evidence for _, evidence, _ in rows], 0).bool(),
            labels=padded([labels for _, _, labels in rows], IGNORED),
        )
        if "signal" in examples[0]:
            batch["signals"] = torch.stack([example["signal"] for example in examples])
        if self.with_ids:
            batch["ids"] = [example["id"] for example in examples]
        return batch

    def _row(self, example: Example) -> tuple[list[int], list[int], list[int]]:
        """Build token ids, evidence mask and labels of one case."""
        before, after = self.prompt.ids(example["context"], example["vitals"].tolist())
        report = self._report_ids(example)
        evidence = self.prompt.count_evidence(example["image_roles"].numpy())
        ids = [*before, *[self.prompt.pad_id] * evidence, *after, *report]
        mask = [0] * len(before) + [1] * evidence + [0] * (len(after) + len(report))
        labels = [IGNORED] * (len(ids) - len(report)) + report
        return ids, mask, labels

    def _report_ids(self, example: Example) -> list[int]:
        """Tokenize the report; empty (no text target) without one. The end token is a target too, unless truncated."""
        if self.generation or not example["report"]:
            return []
        room = self.prompt.room_of(example)
        longest = self.max_report_tokens if room is None else min(room, self.max_report_tokens)
        return self.prompt.report_ids(example["report"])[:longest]
