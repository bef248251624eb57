"""Build the prompt around the evidence tokens with the language model's chat template.

Layout: system message, then a user message that begins with the evidence tokens and goes on with the context
and the instruction, then the report. The prefix before the evidence is the same for every case.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm.config import PromptConfig
from vlm.data.chat_template import PromptIds, prompt_ids
from vlm.data.study import StudySpec
from vlm.data.vitals.schema import VitalsSchema, format_vitals
from vlm.errors import UserError

if TYPE_CHECKING:  # passed in by the caller; its library takes seconds to import
    from transformers import PreTrainedTokenizerBase


class PlainText:
    """Tokenize untrusted text so that none of it becomes a control token.

    Besides special tokens a tokenizer may have added tokens that it treats as ordinary text, such as `<tool_call>`;
    text that spells either kind is tokenized character by character.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._read = partial(tokenizer.__call__, add_special_tokens=False, split_special_tokens=True)
        marks = {
            number: token.content
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special or re.search(r"[<>\[\]{}|]", token.content)  # other added tokens are words
        }
        spelled = sorted(filter(None, marks.values()), key=len, reverse=True)
        self.steering = frozenset(marks)
        """Control token ids, which untrusted text never gives."""
        self._marks = re.compile(f"({'|'.join(map(re.escape, spelled))})") if spelled else None

    def ids(self, text: str) -> list[int]:
        """Tokenize a text."""
        parts = self._marks.split(text) if self._marks else [text]  # plain, mark, plain, mark, …
        pieces = (piece for number, part in enumerate(parts) for piece in (part if number % 2 else [part]) if piece)
        return [number for piece in pieces for number in self._read(piece).input_ids if number not in self.steering]


@dataclass
class Prompt:
    """Prompt encoder of one tokenizer."""

    tokenizer: "PreTrainedTokenizerBase"
    config: PromptConfig
    evidence_tokens: int
    """Length of the prefix of image, vitals, z and label tokens, with one image."""
    written: VitalsSchema | None = None
    """Schema of the vitals to write as text before the context; None if they are tokens."""
    pieces: PromptIds | None = None
    """Rendered chat template saved in the adapter; None renders it."""
    context_length: int | None = None
    """Context length of the language model, tokens; None if it does not say."""
    image_tokens: int = 0
    """Tokens of a further image."""
    study: StudySpec | None = None
    """Images of a case; None for a model of one image."""

    def __post_init__(self) -> None:
        self.pieces = self.pieces or prompt_ids(self.tokenizer, self.config.system)

    def ids(self, context: str = "", vitals: Sequence[float] = ()) -> tuple[list[int], list[int]]:
        """Build token ids before and after the evidence, for a case with this context and these vitals (m).

        Without `vitals` none are written: the ids are those that every case has.
        """
        if self.written is not None and len(vitals):
            context = f"{format_vitals(self.written, vitals)}\n{context.strip()}"
        words = f"{context.strip()}\n{self.config.instruction}" if context.strip() else self.config.instruction
        before, between, after = self.fixed_ids
        return list(before), [*between, *self.encode_text(words), *after]

    @property
    def fixed_ids(self) -> PromptIds:
        """Template token ids around the evidence and text of every case."""
        assert self.pieces is not None
        return self.pieces

    @property
    def fixed_tokens(self) -> int:
        """Number of tokens before the evidence, the same for every case."""
        return len(self.fixed_ids.before)

    def count_evidence(self, roles: np.ndarray | None = None) -> int:
        """Count the evidence tokens of a case by the roles of its images (n × 3); without them, of one image."""
        if self.study is None or roles is None:
            return self.evidence_tokens
        return self.evidence_tokens + (len(roles) - 1) * self.image_tokens + self.study.absent(roles)

    def room_of(self, example: Mapping[str, Any]) -> int | None:
        """Count the tokens that fit after the prompt of an example; see `room`."""
        return self.room(example["context"], example["vitals"].tolist(), example["image_roles"].numpy())

    def room(self, context: str = "", vitals: Sequence[float] = (), roles: np.ndarray | None = None) -> int | None:
        """Count the tokens that fit after the prompt of a case; None if the language model has no context limit.

        `roles` (n × 3) are those of its images. Raises `UserError` if no token fits.
        """
        if self.context_length is None:
            return None
        length = sum(map(len, self.ids(context, vitals))) + self.count_evidence(roles)
        if length >= self.context_length:
            raise UserError(
                f"the prompt has {length:,} tokens and the base reads {self.context_length:,}, prompt and report "
                "together; shorten the context of the case"
            )
        return self.context_length - length

    def most_new_tokens(self, length: int, wanted: int) -> int:
        """Limit the wanted new tokens to those that fit after a prompt of this length."""
        return wanted if self.context_length is None else max(1, min(wanted, self.context_length - length))

    def report_ids(self, report: str) -> list[int]:
        """Tokenize a report and append the end-of-turn token that stops the generation."""
        return [*self.encode_text(report), self.end_id]

    def encode_text(self, text: str) -> list[int]:
        """Tokenize untrusted text; a spelled special token becomes plain characters."""
        return self._plain_text.ids(text)

    @cached_property
    def _plain_text(self) -> "PlainText":
        return PlainText(self.tokenizer)

    @property
    def end_id(self) -> int:
        """End-of-turn token id."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """Padding token id; the attention mask hides it, so any id serves."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end_id)
