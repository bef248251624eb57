"""Combine the images of a study: their tokens, with embeddings of view and time, and one vector f for equation (4)."""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from vlm.data.study import LONGEST_DAYS, PRIOR, StudySpec
from vlm.model.projection import WordTokens

OWN = 3.0
"""Initial score of an image in the pool of its own role; -OWN in another pool. The null vector has 0."""


class ImageTokens(NamedTuple):
    """Image tokens and the vector f of B cases."""

    tokens: torch.Tensor
    """B × I × H; I is the largest number of image tokens of a case."""
    f: torch.Tensor
    """B × F."""
    there: torch.Tensor | None = None
    """B × I, bool: False at padding; None where every case has I tokens."""
    lacking: torch.Tensor | None = None
    """B × R, bool: the expected roles of which a case has no image; None for a model of one image."""


class StudyFusion(nn.Module):
    """Embed the role of each image, and pool the images of a case by attention.

    A role is a view, current or prior; a prior also has a time. Each expected role has an attention pool of its own
    (one seed of Lee et al., 2019, Set Transformer), so f holds now and before side by side. A pool begins by attending
    to the images of its role, and learns to attend by role and content. A learned null vector takes part in each pool
    with score 0: where no image fits, it stands alone.
    """

    def __init__(self, study: StudySpec, channels: int, missing_roles: WordTokens) -> None:
        super().__init__()
        self.study, self.channels = study, channels
        self.register_buffer("slot", torch.tensor(study.slots), persistent=False)
        scores = self.initial_scores()
        roles, self.pools = scores.shape
        self.role_embedding = nn.Parameter(0.02 * torch.randn(roles, channels))  # added before the tokens are projected
        self.time_embedding = nn.Parameter(0.02 * torch.randn(2, channels))  # of log-days; of a prior of unknown time
        self.role_score = nn.Parameter(scores)
        self.content_score = nn.Parameter(torch.zeros(channels, self.pools))
        self.null = nn.Parameter(torch.zeros(self.pools, channels))
        self.missing_roles = missing_roles

    slot: torch.Tensor

    def initial_scores(self) -> torch.Tensor:
        """Score each role in each pool, roles × K; other roles share the pool of the first view, or have the last."""
        expected = self.study.expected
        shared = next((place for place, role in enumerate(expected) if role != PRIOR), len(expected))
        pools = max(len(expected), shared + 1)
        own = F.one_hot(torch.where(self.slot < 0, shared, self.slot), pools)  # roles × K
        return OWN * (2.0 * own - 1)

    def role_embeddings(self, roles: torch.Tensor) -> torch.Tensor:
        """Embed the role and time of each image; N × 4 (row, view, prior, days) → N × C."""
        prior, days = roles[:, 2], roles[:, 3]
        unknown = days.isnan()
        known = days.nan_to_num(0).clamp(0, LONGEST_DAYS).log1p() / math.log1p(LONGEST_DAYS)  # N, 0 to 1
        time = torch.stack([known * ~unknown, unknown.to(known)], dim=1) * prior[:, None]  # N × 2
        return self.role_embedding[self.role(roles)] + time @ self.time_embedding

    def role(self, roles: torch.Tensor) -> torch.Tensor:
        """Number the role of each image: view and current or prior; N × 4 → N."""
        return (2 * roles[:, 1] + roles[:, 2]).long()

    def vector(self, summary: torch.Tensor, roles: torch.Tensor, cases: int) -> torch.Tensor:
        """Pool the features of the images of each case; N × s·s × C → B × K·s·s × C for K pools."""
        role, row = self.role(roles), roles[:, 0].long()
        content = F.layer_norm(summary.mean(dim=1), (self.channels,)) / self.channels  # N × C; else it saturates soon
        scores = self.role_score[role] + content @ self.content_score  # N × K
        most = scores.new_zeros(cases, self.pools)  # 0 is the score of the null vector
        most = most.scatter_reduce(0, row[:, None].expand_as(scores), scores.detach(), "amax")
        weights, null = (scores - most[row]).exp(), (-most).exp()  # N × K, B × K
        total = null.index_add(0, row, weights)
        weighted = (weights / total[row])[:, :, None, None] * summary[:, None]  # N × K × s·s × C
        rest = (null / total)[:, :, None, None] * self.null[:, None]  # B × K × 1 × C
        pooled = rest.expand(-1, -1, summary.shape[1], -1).index_add(0, row, weighted)
        return pooled.flatten(1, 2)

    def gather(
        self, tokens: torch.Tensor, roles: torch.Tensor, lacking: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather the tokens of each case's images, and one for each expected role that it lacks, such as `no lateral`.

        N × g·g × H and B × R → B × I × H with its mask B × I.
        """
        cases = len(lacking)
        row = roles[:, 0].long()
        counts = torch.bincount(row, minlength=cases)  # B
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]  # N, within its case
        most, size = int(counts.max()), tokens.shape[1]
        gathered = tokens.new_zeros(cases, most, *tokens.shape[1:]).index_put((row, place), tokens)  # B × n × g·g × H
        there = (torch.arange(most, device=row.device) < counts[:, None]).repeat_interleave(size, dim=1)
        words = self.missing_roles().to(tokens.dtype).expand(cases, -1, -1)  # B × R × H
        return torch.cat([gathered.flatten(1, 2), words], dim=1), torch.cat([there, lacking], dim=1)

    def lacks(self, roles: torch.Tensor, cases: int) -> torch.Tensor:
        """Find the expected roles that no image of a case has; N × 4 → B × R, bool."""
        expected = torch.arange(len(self.study.expected), device=roles.device)
        filled = (self.slot[self.role(roles)][:, None] == expected).to(roles)  # N × R
        return roles.new_zeros(cases, len(expected)).index_add(0, roles[:, 0].long(), filled) == 0
