"""Compute the joint vector of equation (4), z = W_f f + W_x x + b, its head, and their evidence tokens."""

import torch
from torch import nn

from vlm.config import FusionConfig
from vlm.model.projection import NamedProjector, TokenProjector, WordTokens


class JointVector(nn.Module):
    """Compute z = W_f f + W_x x + b, and the classification head on z."""

    def __init__(self, config: FusionConfig, summary_size: int, vitals_size: int, labels: int) -> None:
        super().__init__()
        self.from_image = nn.Linear(summary_size, config.size)  # W_f and b
        self.from_vitals = nn.Linear(vitals_size, config.size, bias=False) if vitals_size else None  # W_x
        self.head = (
            nn.Sequential(nn.LayerNorm(config.size), nn.GELU(), nn.Linear(config.size, labels)) if labels else None
        )

    def forward(self, summary: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map f (B × F) and x (B × X) to z (B × Z) and the label logits (B × K), in fp32 under autocast too."""
        with torch.autocast(summary.device.type, enabled=False):
            z = self.from_image(summary.float())
            if self.from_vitals is not None:
                z = z + self.from_vitals(x.float())
            return z, self.head(z) if self.head is not None else z.new_zeros(len(z), 0)


class EvidenceTokens(nn.Module):
    """Project z into an evidence token, and the label probabilities into one for all labels or for each.

    Each label-name embedding is weighted by sigmoid(sharpness · logit), a sharpened probability near 0 or 1: of two
    names at 0.8 the language model would otherwise mention one. In the token for all labels the probabilities
    themselves are features; in the token of each, the embedding of `no` has the rest of the weight.
    """

    def __init__(self, config: FusionConfig, words: torch.Tensor, token_rms: float) -> None:
        """`words` is (1 + K) × H, the word embedding of `no` and of each label's name."""
        super().__init__()
        label_names = words[1:]
        self.sharpness = config.sharpness
        labels, hidden_size = label_names.shape
        self.z_projector = TokenProjector(config.size, hidden_size, token_rms) if config.z_token else None
        shows_labels = config.label_token and labels > 0
        each = shows_labels and config.label_words
        self.label_words = WordTokens(words, token_rms) if each else None
        self.label_projector = NamedProjector(labels, label_names, token_rms) if shows_labels and not each else None
        self.tokens = int(config.z_token) + (labels if each else int(shows_labels))

    def forward(self, z: torch.Tensor, logits: torch.Tensor) -> list[torch.Tensor]:
        """Project z (B × Z) and logits (B × K) into tokens, B × 1 × H of z and B × 1 × H or B × K × H of the labels."""
        tokens = []
        if self.z_projector is not None:
            tokens.append(self.z_projector(z)[:, None])
        verdicts = (self.sharpness * logits).sigmoid()  # B × K
        if self.label_words is not None:
            words = self.label_words()  # (1 + K) × H
            tokens.append(torch.lerp(words[:1], words[1:], verdicts[..., None].to(words.dtype)))  # B × K × H
        if self.label_projector is not None:
            tokens.append(self.label_projector(verdicts, logits.sigmoid())[:, None])
        return tokens
