"""Check before training for cases longer than the language model's context."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlm.data.collate import LONGEST_REPORT
from vlm.data.dataset import CaseDataset
from vlm.data.prompt import Prompt
from vlm.data.sections import heading, join_sections
from vlm.data.shown_evidence import with_prior_report
from vlm.data.storage import column
from vlm.data.study import cell_numbers
from vlm.errors import UserError

SLACK = 64
"""Maximum tokens of a vital written out in the prompt."""


class LongCase(NamedTuple):
    """A case whose report does not fit."""

    id: str
    tokens: int
    """Tokens of the report and its end token."""
    room: int


def check_lengths(prompt: Prompt, datasets: Mapping[str, CaseDataset], max_new_tokens: int) -> list[str]:
    """Format warnings on reports that training truncates and drafts that end early, with counts of cases.

    Raises `UserError` for a case whose prompt alone is longer than the language model's context.
    """
    lines = []
    for split, dataset in datasets.items():
        long = list(_long_cases(prompt, dataset)) if len(dataset) else []
        if long:
            case = max(long, key=lambda case: case.tokens)
            lines.append(
                f"warning: {len(long):,} of {len(dataset):,} {split} reports are cut where they are learned: case "
                f"{case.id} has {case.tokens:,} tokens and room for {case.room:,}"
            )
    room = prompt.room()
    if room is not None and room < max_new_tokens:
        lines.append(
            f"warning: evaluation.max_new_tokens: {max_new_tokens:,} tokens, and the base has room for {room:,} after "
            "its prompt; drafts end there"
        )
    return lines


def _long_cases(prompt: Prompt, dataset: CaseDataset) -> Iterator[LongCase]:
    """Find the truncated reports; only cases that are long in bytes are tokenized, since no token is under a byte."""
    written = SLACK * len(prompt.written) if prompt.written is not None else 0
    most = prompt.evidence_tokens
    if prompt.study is not None:
        most += (prompt.study.max_images - 1) * prompt.image_tokens + len(prompt.study.expected)
    around = sum(map(len, prompt.ids())) + most + written
    reports, contexts = _bytes(dataset, "sections"), _bytes(dataset, "context") + _bytes(dataset, "prior_report")
    longest = np.inf if prompt.context_length is None else prompt.context_length
    reports += sum(len(heading(name).encode()) + 1 for name in dataset.spec.sections)
    may_be_long = (reports + len(dataset.sections) + 1 > LONGEST_REPORT) | (around + contexts + reports + 8 > longest)
    for index in np.flatnonzero(may_be_long).tolist():
        row = dataset.rows.select_columns(["id", "sections", "context", "prior_report", "vitals", "images"])[index]
        context = with_prior_report(row["context"] or "", row["prior_report"] or "")
        vitals = np.array(row["vitals"], dtype=np.float32)
        try:
            room = prompt.room(context, vitals.tolist(), cell_numbers(row["images"], prompt.study))
        except UserError as error:
            raise UserError(f"case {row['id']}: {error}") from None
        tokens = len(prompt.report_ids(join_sections(row["sections"], dataset.sections, bool(dataset.spec.sections))))
        most = LONGEST_REPORT if room is None else min(room, LONGEST_REPORT)
        if tokens > most:
            yield LongCase(row["id"], tokens, most)


def _bytes(dataset: CaseDataset, name: str) -> np.ndarray:
    """Count the UTF-8 bytes of a column of texts, or of lists of equally many texts; N."""
    sizes = [np.empty(0, np.int64)]
    for chunk in column(dataset.rows, name).chunks:
        flat = chunk.flatten() if pa.types.is_nested(chunk.type) else chunk
        sizes.append(pc.binary_length(flat).fill_null(0).to_numpy(zero_copy_only=False))
    return np.concatenate(sizes).reshape(len(dataset.rows), -1).sum(axis=1)
