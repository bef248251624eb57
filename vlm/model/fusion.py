"""Compute the joint vector of equation (4), z = W_f f + W_x x + b, its head, and their evidence tokens."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from vlm.config import FusionConfig
from vlm.errors import UserError
from vlm.model.projection import NamedProjector, TokenProjector, WordTokens
from vlm.plain import shortened, telling_words


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
    themselves are features.
    """

    def __init__(
        self,
        config: FusionConfig,
        labels: Sequence[str],
        roles: Sequence[str],
        embed_names: Callable[[Sequence[str]], torch.Tensor],
        token_rms: float,
        projector_size: int = 0,
    ) -> None:
        """`roles` are the expected roles of images; `embed_names` maps S names to S × H.

        Raises `UserError` for an option that names another label or role.
        """
        super().__init__()
        self.sharpness = config.sharpness
        hidden_size = embed_names(["no"]).shape[1]
        shows_labels = config.label_token and len(labels) > 0
        each = shows_labels and config.label_words
        self.z_projector: TokenProjector | None = None
        if config.z_token:
            self.z_projector = TokenProjector(config.size, hidden_size, token_rms, projector_size)
        self.label_words = LabelWords(config, labels, roles, embed_names, token_rms) if each else None
        self.label_projector: NamedProjector | None = None
        if shows_labels and not each:
            self.label_projector = NamedProjector(
                len(labels), embed_names(telling_words(labels)), token_rms, projector_size
            )
        self.tokens = int(config.z_token) + (len(labels) if each else int(shows_labels))

    def forward(self, z: torch.Tensor, logits: torch.Tensor, lacking: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Project z (B × Z) and logits (B × K) into tokens, B × 1 × H of z and B × 1 × H or B × K × H of the labels.

        `lacking` is B × R, the expected roles of which a case has no image.
        """
        tokens = []
        if self.z_projector is not None:
            tokens.append(self.z_projector(z)[:, None])
        if self.label_words is not None:
            tokens.append(self.label_words(logits, lacking))
        if self.label_projector is not None:
            tokens.append(self.label_projector((self.sharpness * logits).sigmoid(), logits.sigmoid())[:, None])
        return tokens


class LabelWords(nn.Module):
    """Show each label as a token: its name where it is likely, `no` where not, `unknown` without its evidence.

    Of labels that exclude each other the likeliest is shown, or in drafting one that is worse to miss. By each alone,
    one at 0.4 beside others at 0.1 would be `no`, and the language model would be told nothing.
    """

    def __init__(
        self,
        config: FusionConfig,
        labels: Sequence[str],
        roles: Sequence[str],
        embed_names: Callable[[Sequence[str]], torch.Tensor],
        token_rms: float,
    ) -> None:
        super().__init__()
        self.sharpness, self.labels = config.sharpness, len(labels)
        self.groups = [[_place(name, labels, "exclusive") for name in group] for group in config.exclusive]
        unknown = ["unknown"] if config.label_evidence else []
        self.words = WordTokens(embed_names(["no", *telling_words(labels), *unknown]), token_rms)
        rests_on = torch.zeros(len(roles), len(labels))  # R × K
        for label, needed in config.label_evidence.items():
            for role in needed:
                rests_on[_place(role, roles, f"label_evidence.{label}"), _place(label, labels, "label_evidence")] = 1
        self.register_buffer("rests_on", rests_on, persistent=False)
        sooner = torch.zeros(len(labels))  # K, added to the logits
        for label, cost in config.miss_costs.items():
            sooner[_place(label, labels, "miss_costs")] = math.log(cost)
        self.register_buffer("sooner", sooner, persistent=False)

    rests_on: torch.Tensor
    sooner: torch.Tensor

    def forward(self, logits: torch.Tensor, lacking: torch.Tensor | None) -> torch.Tensor:
        """Map logits (B × K) and the roles without an image (B × R) to tokens, B × K × H."""
        words = self.words()  # (1 + K) × H, or one more with `unknown`
        shown = self.verdicts(logits)[..., None].to(words.dtype)
        tokens = torch.lerp(words[:1], words[1 : 1 + self.labels], shown)  # B × K × H
        if lacking is None or len(words) == 1 + self.labels:
            return tokens
        unknown = lacking.to(self.rests_on) @ self.rests_on > 0  # B × K
        return torch.where(unknown[..., None], words[-1], tokens)

    def verdicts(self, logits: torch.Tensor) -> torch.Tensor:
        """Sharpen the odds, in drafting times the cost of a miss, to verdicts near 0 or 1; B × K.

        In a group it is a softmax, beside chance as one more choice. (Costs decide by odds as in Elkan, 2001.) In
        training no cost counts: the text learns how far to trust what the head holds likeliest.
        """
        sharp = self.sharpness * (logits if self.training else logits + self.sooner)
        verdicts = sharp.sigmoid()
        for group in self.groups:
            chance = sharp.new_full((len(sharp), 1), -self.sharpness * math.log(len(group)))  # logit of 1 / (n + 1)
            chosen = torch.cat([sharp[:, group], chance], dim=1).softmax(dim=1)[:, :-1]
            verdicts = verdicts.index_copy(1, torch.tensor(group, device=sharp.device), chosen)
        return verdicts


def _place(name: str, known: Sequence[str], key: str) -> int:
    """Find a name; raises `UserError` for another one."""
    if name not in known:
        raise UserError(f"model.fusion.{key}: {shortened(name)} is none of {', '.join(known) or 'none'}")
    return list(known).index(name)
