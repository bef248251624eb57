"""The words around the evidence tokens, put through the language model's own chat template.

Layout: system message, then a user message that begins with the evidence tokens and goes on with the context
and the instruction, then the report. What stands before the evidence is the same for every case.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from vlm.config import PromptConfig
from vlm.data.chat_template import PromptIds, prompt_ids
from vlm.data.vitals.schema import VitalsSchema, in_words
from vlm.errors import UserError

if TYPE_CHECKING:  # given; its library takes seconds to import
    from transformers import PreTrainedTokenizerBase


class PlainText:
    """Reads text from outside so that no spelling in it becomes a token that steers the model.

    Besides its special tokens a tokenizer may have added ones that it takes for ordinary text, such as `<tool_call>`;
    what is written like one of either is read character by character.
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
        """Ids that no text from outside gives."""
        self._marks = re.compile(f"({'|'.join(map(re.escape, spelled))})") if spelled else None

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        parts = self._marks.split(text) if self._marks else [text]  # plain, mark, plain, mark, …
        pieces = (piece for number, part in enumerate(parts) for piece in (part if number % 2 else [part]) if piece)
        return [number for piece in pieces for number in self._read(piece).input_ids if number not in self.steering]


@dataclass
class Prompt:
    """Token ids of the fixed words, for one tokenizer."""

    tokenizer: "PreTrainedTokenizerBase"
    config: PromptConfig
    evidence_tokens: int
    """Length of the prefix of image, vitals, z and label tokens."""
    written: VitalsSchema | None = None
    """The vitals to write out before the context; None where they are tokens."""
    pieces: PromptIds | None = None
    """What an adapter kept of its base's chat template; None renders it."""
    context_length: int | None = None
    """Tokens that the language model was made to read; None if it does not say."""

    def __post_init__(self) -> None:
        self.pieces = self.pieces or prompt_ids(self.tokenizer, self.config.system)

    def ids(self, context: str = "", vitals: Sequence[float] = ()) -> tuple[list[int], list[int]]:
        """Token ids before and after the evidence, for a case with this context and these vitals (m)."""
        if self.written is not None:
            context = f"{in_words(self.written, vitals)}\n{context.strip()}"
        words = f"{context.strip()}\n{self.config.instruction}" if context.strip() else self.config.instruction
        before, between, after = self.fixed_ids
        return list(before), [*between, *self.encode_text(words), *after]

    @property
    def fixed_ids(self) -> PromptIds:
        """What stands around the evidence and the words of every case."""
        assert self.pieces is not None
        return self.pieces

    @property
    def fixed_tokens(self) -> int:
        """Tokens before the evidence, the same for every case."""
        return len(self.fixed_ids.before)

    def room(self, context: str = "", vitals: Sequence[float] = ()) -> int | None:
        """Tokens that fit after the prompt of a case; None where the language model has no longest text.

        Raises `UserError` where not one does.
        """
        if self.context_length is None:
            return None
        length = sum(map(len, self.ids(context, vitals))) + self.evidence_tokens
        if length >= self.context_length:
            raise UserError(
                f"the prompt has {length:,} tokens and the base reads {self.context_length:,}, prompt and report "
                "together; shorten the context of the case"
            )
        return self.context_length - length

    def most_new_tokens(self, length: int, wanted: int) -> int:
        """Tokens that a draft may have after a prompt of this length: as many as are wanted and can be read."""
        return wanted if self.context_length is None else max(1, min(wanted, self.context_length - length))

    def report_ids(self, report: str) -> list[int]:
        """Token ids of a report and the end-of-turn token that stops the generation."""
        return [*self.encode_text(report), self.end_id]

    def encode_text(self, text: str) -> list[int]:
        """Tokens of text from outside; the spelling of a special token in it is plain characters."""
        return self._plain_text.ids(text)

    @cached_property
    def _plain_text(self) -> "PlainText":
        return PlainText(self.tokenizer)

    @property
    def end_id(self) -> int:
        """The token that ends a turn."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """Token in padded places; the attention mask hides it, so any id serves."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end_id)
