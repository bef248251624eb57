"""Measure how unlike the training pictures a picture is: its distance from their image features f.

The features, scaled to length 1, are taken as a Gaussian with a few tens of directions and one variance in all others:
probabilistic PCA (Tipping and Bishop, 1999). The distance is that of Mahalanobis over the root of their number. Without
the scaling a picture that excites few features would lie near the mean, whatever it shows (Mueller and Hein, 2025).
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

MOST_DIRECTIONS = 32
FEWEST_PICTURES = 40
"""Fewest training pictures for a fit."""
MOST_PICTURES = 1000
"""Most pictures of a split that are looked at."""
FALSE_ALARMS = 0.05
"""Share of pictures like those of training that are called unlike."""


class Familiarity(nn.Module):
    """Hold the mean, the directions and the variances of the training features; without directions it holds nothing."""

    mean: torch.Tensor
    directions: torch.Tensor
    variances: torch.Tensor
    rest: torch.Tensor

    def __init__(self, size: int, directions: int) -> None:
        """`size` is F, the length of f."""
        super().__init__()
        if directions:
            self.register_buffer("mean", torch.zeros(size))  # F
            self.register_buffer("directions", torch.zeros(directions, size))  # D × F, of length 1
            self.register_buffer("variances", torch.ones(directions))  # D
            self.register_buffer("rest", torch.ones(()))  # variance in every other direction
        self.size, self.count = size, directions

    @classmethod
    def fit(cls, features: np.ndarray) -> "Familiarity":
        """Fit to the features of N training pictures, N × F; with fewer than `FEWEST_PICTURES` it holds nothing."""
        count, size = features.shape
        directions = min(MOST_DIRECTIONS, count // 4, size - 1)
        if count < FEWEST_PICTURES or directions < 1:
            return cls(size, 0)
        from sklearn.decomposition import PCA

        scaled = functional.normalize(torch.from_numpy(features).double(), dim=1).numpy()
        pca = PCA(directions, svd_solver="randomized", random_state=0).fit(scaled)
        floor = 1e-9 + 1e-6 * float(pca.explained_variance_[0])  # features that never vary
        made = cls(size, directions)
        made.mean.copy_(torch.from_numpy(pca.mean_))
        made.directions.copy_(torch.from_numpy(pca.components_))
        made.variances.copy_(torch.from_numpy(np.maximum(pca.explained_variance_, floor)))
        made.rest.fill_(max(float(pca.noise_variance_), floor))
        return made

    @torch.no_grad()
    def forward(self, f: torch.Tensor) -> torch.Tensor:
        """Compute the distances of features; B × F → B, NaN where nothing was fitted."""
        if not self.count:
            return f.new_full((len(f),), torch.nan)
        centred = functional.normalize(f.float(), dim=1) - self.mean  # B × F
        along = centred @ self.directions.T  # B × D
        other = centred.square().sum(dim=1) - along.square().sum(dim=1)  # B
        squared = (along.square() / self.variances).sum(dim=1) + other.clamp(min=0) / self.rest
        return (squared / self.size).sqrt()
