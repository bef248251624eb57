"""Compute the joint vector of equation (4), z = W_f f + W_x x + b, its head, and their evidence tokens."""

import torch
from torch import nn

from vlm.config import FusionConfig
from vlm.model.projection import NamedProjector, TokenProjector


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
    """Project z and the label probabilities into one evidence token each.

    Each label-name embedding is weighted by sigmoid(sharpness · logit), a sharpened probability near 0 or 1: of two
    names at 0.8 the language model would otherwise mention one. The probabilities themselves are features.
    """

    def __init__(self, config: FusionConfig, label_names: torch.Tensor, token_rms: float) -> None:
        """`label_names` is K × H, the word embedding of each label's name."""
        super().__init__()
        self.sharpness = config.sharpness
        labels, hidden_size = label_names.shape
        self.z_projector = TokenProjector(config.size, hidden_size, token_rms) if config.z_token else None
        shows_labels = config.label_token and labels > 0
        self.label_projector = NamedProjector(labels, label_names, token_rms) if shows_labels else None
        self.tokens = int(config.z_token) + int(shows_labels)

    def forward(self, z: torch.Tensor, logits: torch.Tensor) -> list[torch.Tensor]:
        """Project z (B × Z) and logits (B × K) into up to two tokens, each B × 1 × H."""
        tokens = []
        if self.z_projector is not None:
            tokens.append(self.z_projector(z)[:, None])
        if self.label_projector is not None:
            verdicts = (self.sharpness * logits).sigmoid()  # B × K
            tokens.append(self.label_projector(verdicts, logits.sigmoid())[:, None])
        return tokens
