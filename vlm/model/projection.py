"""From features to tokens in the embedding space of the language model."""

import torch
from torch import nn


class TokenProjector(nn.Module):
    """LayerNorm → MLP → LayerNorm, at the size of the LLM's own token embeddings.

    Without the last norm the tokens of an adapter drift to many times the norm of a word, and attention
    treats them as sinks.
    """

    def __init__(self, features: int, hidden_size: int, token_rms: float) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.LayerNorm(features), nn.Linear(features, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )
        self.norm = nn.LayerNorm(hidden_size)
        nn.init.constant_(self.norm.weight, token_rms)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """… × features → … × H."""
        return self.norm(self.mlp(features))


class NamedProjector(nn.Module):
    """A token that starts as words: each state brings the embedding of its name, and an MLP learns the rest.

    The token is LayerNorm(sum of states · name embeddings + MLP(features)), the MLP's last layer zero at the
    start. So a fresh adapter already says, in the language model's own words, which labels are likely and which
    vitals are out of range, and training need not find that code in a few hundred cases. The name embeddings
    train as well.
    """

    def __init__(self, features: int, names: torch.Tensor, token_rms: float) -> None:
        """`names` is S × H, the embedding of each state's name."""
        super().__init__()
        hidden_size = names.shape[1]
        self.names = nn.Parameter(names / names.pow(2).mean().sqrt())
        last = nn.Linear(hidden_size, hidden_size)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(features, hidden_size), nn.GELU(), last)
        self.norm = nn.LayerNorm(hidden_size)
        nn.init.constant_(self.norm.weight, token_rms)

    def forward(self, states: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """States (B × S, 0 to 1) and features (B × F) → B × H."""
        return self.norm(states @ self.names + self.mlp(features))
