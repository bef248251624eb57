"""Project features into tokens in the embedding space of the language model."""

import torch
from torch import nn


class TokenProjector(nn.Module):
    """Project features by LayerNorm → MLP → LayerNorm, at the RMS of the LLM's own token embeddings.

    Without the last norm the tokens drift to many times the norm of a word, and become attention sinks.
    """

    def __init__(self, features: int, hidden_size: int, token_rms: float, width: int = 0) -> None:
        """`width` is the size of the MLP's hidden layer; 0: H."""
        super().__init__()
        width = width or hidden_size
        self.mlp = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, width), nn.GELU(), nn.Linear(width, hidden_size)
        )
        self.norm = nn.LayerNorm(hidden_size)
        nn.init.constant_(self.norm.weight, token_rms)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project … × features to … × H."""
        return self.norm(self.mlp(features))


class WordTokens(nn.Module):
    """Hold tokens that begin as the word embeddings of names, so the language model copies them as it copies words.

    They train as well, in units of the RMS of all word embeddings: the steps of the optimizer do not know their size.
    """

    rms: torch.Tensor

    def __init__(self, names: torch.Tensor, token_rms: float) -> None:
        """`names` is S × H, the embedding of each name."""
        super().__init__()
        self.names = nn.Parameter(names / token_rms)
        self.register_buffer("rms", torch.tensor(token_rms), persistent=False)

    def forward(self) -> torch.Tensor:
        """Return the tokens, S × H."""
        return self.rms * self.names


class NamedProjector(nn.Module):
    """Project states and features into a token that starts as the embeddings of the states' names.

    The token is LayerNorm(sum of states · name embeddings + MLP(features)); the MLP's last layer starts at zero.
    A fresh adapter so tells the language model in word embeddings which labels are likely and which vitals are out
    of range, and need not learn it from a few hundred cases. The name embeddings train as well.
    """

    def __init__(self, features: int, names: torch.Tensor, token_rms: float, width: int = 0) -> None:
        """`names` is S × H, the embedding of each state's name; `width` as in `TokenProjector`."""
        super().__init__()
        hidden_size = names.shape[1]
        width = width or hidden_size
        self.names = nn.Parameter(names / names.pow(2).mean().sqrt())
        last = nn.Linear(width, hidden_size)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.GELU(), last)
        self.norm = nn.LayerNorm(hidden_size)
        nn.init.constant_(self.norm.weight, token_rms)

    def forward(self, states: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Project states (B × S, 0 to 1) and features (B × F) to B × H."""
        return self.norm(states @ self.names + self.mlp(features))
