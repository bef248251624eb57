"""The words around the evidence tokens, put through the language model's own chat template.

Layout: system message, then a user message that begins with the evidence tokens and goes on with the context
and the instruction, then the report. What stands before the evidence is the same for every case.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from vlm.config import PromptConfig
from vlm.data.schema import VitalsSchema, in_words

if TYPE_CHECKING:  # given; its library takes seconds to import
    from transformers import PreTrainedTokenizerBase

_EVIDENCE, _WORDS = "\ue000", "\ue001"
"""Private-use characters that mark the two gaps while the template is rendered; no user text passes it."""


@dataclass
class Prompt:
    """Token ids of the fixed words, for one tokenizer."""

    tokenizer: "PreTrainedTokenizerBase"
    config: PromptConfig
    evidence_tokens: int
    """Length of the prefix of image, vitals, z and label tokens."""
    written: VitalsSchema | None = None
    """The vitals to write out before the context; None where they are tokens."""

    def ids(self, context: str = "", vitals: Sequence[float] = ()) -> tuple[list[int], list[int]]:
        """Token ids before and after the evidence, for a case with this context and these vitals (m)."""
        if self.written is not None:
            context = f"{in_words(self.written, vitals)}\n{context.strip()}"
        words = f"{context.strip()}\n{self.config.instruction}" if context.strip() else self.config.instruction
        before, between, after = self._pieces
        return before, [*between, *self.encode_text(words), *after]

    @property
    def fixed_tokens(self) -> int:
        """Tokens before the evidence, the same for every case."""
        return len(self._pieces[0])

    def report_ids(self, report: str) -> list[int]:
        """Token ids of a report and the end-of-turn token that stops the generation."""
        return [*self.encode_text(report), self.end_id]

    def encode_text(self, text: str) -> list[int]:
        """Tokens of text from outside; the spelling of a special token in it is plain characters."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

    @property
    def end_id(self) -> int:
        """The token that ends a turn."""
        return int(self.tokenizer.eos_token_id)

    @property
    def pad_id(self) -> int:
        """Token in padded places; the attention mask hides it, so any id serves."""
        return int(self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end_id)

    def _templated(self, gap: str) -> str:
        """The chat template around the gaps; a template without a system role gets its words in the user's turn."""
        render = partial(self.tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
        try:
            return str(render([{"role": "system", "content": self.config.system}, {"role": "user", "content": gap}]))
        except TemplateError:
            return str(render([{"role": "user", "content": f"{self.config.system}\n{gap}"}]))

    @cached_property
    def _pieces(self) -> tuple[list[int], list[int], list[int]]:
        """Token ids of the template before, between and after the two gaps."""
        gap = _EVIDENCE + _WORDS
        text = self._templated(gap) if self.tokenizer.chat_template else f"{self.config.system}\n{gap}\n"
        before, rest = text.split(_EVIDENCE)
        between, after = rest.split(_WORDS)
        return tuple(self.tokenizer(piece, add_special_tokens=False).input_ids for piece in (before, between, after))
