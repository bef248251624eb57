"""Describe the embedding space of a language model, without the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vlm.data.prompt import PlainText

if TYPE_CHECKING:  # the tokenizer is given; its library takes seconds to import
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EmbeddingSpace:
    """Embed token ids and names as the language model does."""

    tokenizer: "PreTrainedTokenizerBase"
    embed: Callable[[torch.Tensor], torch.Tensor]
    """Token ids (…) → their embeddings as the language model reads them (… × H)."""
    hidden_size: int
    device: torch.device
    """Device of the token ids."""
    rms: float
    """Root mean square of all word embeddings, to which evidence tokens are scaled."""
    context_length: int | None = None
    """Context length in tokens; None if the config does not say."""
    vocabulary: int | None = None
    """Number of word embeddings."""

    @torch.no_grad()
    def embed_names(self, names: Sequence[str], before: str = " ") -> torch.Tensor:
        """Average the word embeddings of each name: S × H, float32, default device; `right_lung` is two words.

        `before` is what stands before a name: a space, or nothing for one that goes on from another.
        """
        rows, plain = [torch.zeros(0, self.hidden_size)], PlainText(self.tokenizer)
        for name in names:
            ids = plain.ids(before + name.replace("_", " "))
            embedded = self.embed(torch.tensor(ids, device=self.device))  # n × H
            rows.append(embedded.float().mean(dim=0, keepdim=True).to(rows[0].device))
        return torch.cat(rows)
