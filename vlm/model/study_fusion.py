"""Combine the images of a study: their tokens, marked by view and time, and one vector f for equation (4)."""

import math
from typing import NamedTuple

import torch
from torch import nn

from vlm.data.study import LONGEST_DAYS, StudySpec

MOST_HEADS = 8
"""Heads of the attention pool, each for its share of the channels."""


class ImageTokens(NamedTuple):
    """Image tokens and the vector f of B cases."""

    tokens: torch.Tensor
    """B × I × H; I is the largest number of image tokens of a case."""
    f: torch.Tensor
    """B × F."""
    there: torch.Tensor | None = None
    """B × I, bool: False at padding; None where every case has I tokens."""


class StudyFusion(nn.Module):
    """Mark each image by its role, and pool the images of a case by attention.

    A role is a view, current or prior; a prior also has a time. Each role scales and shifts the features, so that f can
    hold a difference between current and prior; each head attends to the images by role and by content. One image has
    the weight 1.
    """

    def __init__(self, study: StudySpec, channels: int, pool: str) -> None:
        super().__init__()
        self.study, self.channels, self.pool = study, channels, pool
        roles = 2 * (len(study.views) + 1)
        self.heads = max(h for h in range(1, MOST_HEADS + 1) if channels % h == 0)
        self.mark = nn.Parameter(0.02 * torch.randn(roles, channels))  # added before the tokens are projected
        self.time = nn.Parameter(0.02 * torch.randn(2, channels))  # of log-days; of a prior of unknown time
        self.scale = nn.Parameter(torch.zeros(roles, channels))
        self.shift = nn.Parameter(torch.zeros(roles, channels))
        self.score = nn.Parameter(torch.randn(roles, self.heads)) if pool == "attention" else None
        self.content = nn.Parameter(torch.zeros(channels, self.heads)) if pool == "attention" else None
        self.absent = nn.Parameter(torch.zeros(len(study.expected), channels))
        expected = torch.tensor(study.expected_numbers(), dtype=torch.long)
        self.register_buffer("expected", expected, persistent=False)

    expected: torch.Tensor

    def marks(self, roles: torch.Tensor) -> torch.Tensor:
        """Embed the role and time of each image; N × 4 (row, view, prior, days) → N × C."""
        prior, days = roles[:, 2], roles[:, 3]
        unknown = days.isnan()
        known = days.nan_to_num(0).clamp(0, LONGEST_DAYS).log1p() / math.log1p(LONGEST_DAYS)  # N, 0 to 1
        time = torch.stack([known * ~unknown, unknown.to(known)], dim=1) * prior[:, None]  # N × 2
        return self.mark[self.role(roles)] + time @ self.time

    def role(self, roles: torch.Tensor) -> torch.Tensor:
        """Number the role of each image: view and current or prior; N × 4 → N."""
        return (2 * roles[:, 1] + roles[:, 2]).long()

    def vector(self, summary: torch.Tensor, roles: torch.Tensor, cases: int) -> torch.Tensor:
        """Pool the features of the images of each case; N × s·s × C → B × s·s × C."""
        role, row = self.role(roles), roles[:, 0].long()
        marked = summary * (1 + self.scale[role])[:, None] + self.shift[role][:, None]
        if self.score is None or self.content is None:
            counts = torch.bincount(row, minlength=cases).to(summary.dtype)
            return marked.new_zeros(cases, *marked.shape[1:]).index_add(0, row, marked) / counts.view(-1, 1, 1)
        content = (
            nn.functional.layer_norm(summary.mean(dim=1), (self.channels,)) / self.channels
        )  # else it saturates soon
        scores = self.score[role] + content @ self.content  # N × heads
        most = scores.new_full((cases, self.heads), -torch.inf)
        most = most.scatter_reduce(0, row[:, None].expand_as(scores), scores.detach(), "amax")
        weights = (scores - most[row]).exp()
        total = weights.new_zeros(cases, self.heads).index_add(0, row, weights)
        weights = (weights / total[row]).repeat_interleave(self.channels // self.heads, dim=1)  # N × C
        return marked.new_zeros(cases, *marked.shape[1:]).index_add(0, row, marked * weights[:, None])

    def gather(
        self, tokens: torch.Tensor, missing: torch.Tensor, roles: torch.Tensor, cases: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gather the tokens of each case's images, and a learned one for each expected role that it lacks.

        N × g·g × H and R × H → B × I × H with its mask B × I.
        """
        row = roles[:, 0].long()
        counts = torch.bincount(row, minlength=cases)  # B
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]  # N, within its case
        most, size = int(counts.max()), tokens.shape[1]
        gathered = tokens.new_zeros(cases, most, *tokens.shape[1:]).index_put((row, place), tokens)  # B × n × g·g × H
        there = (torch.arange(most, device=row.device) < counts[:, None]).repeat_interleave(size, dim=1)
        lacking = missing.to(tokens.dtype).expand(cases, -1, -1)  # B × R × H
        return torch.cat([gathered.flatten(1, 2), lacking], dim=1), torch.cat([there, self.lacks(roles, cases)], dim=1)

    def lacks(self, roles: torch.Tensor, cases: int) -> torch.Tensor:
        """Find the expected roles that no image of a case has; N × 4 → B × R, bool."""
        number = torch.where(roles[:, 2] > 0, 0, torch.where(roles[:, 1] > 0, roles[:, 1], -1)).long()  # N
        matches = (number[:, None] == self.expected).to(roles)  # N × R
        return roles.new_zeros(cases, len(self.expected)).index_add(0, roles[:, 0].long(), matches) == 0
