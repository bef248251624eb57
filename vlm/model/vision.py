"""Encode images into image tokens and a summary vector: equation (1), f = CNN(I), by a CNN or any other encoder."""

import torch
from torch import nn
from torch.nn import functional as F

from vlm.config import VisionConfig
from vlm.data.study import StudySpec
from vlm.errors import one_line
from vlm.model.encoders.build import build_encoder, check_cells
from vlm.model.encoders.encoder import memory_format
from vlm.model.encoders.trained_part import choose_trained
from vlm.model.projection import TokenProjector, WordTokens
from vlm.model.study_fusion import ImageTokens, StudyFusion

FEW = 8
"""Number of pictures that a CPU encodes at a time: those of 100 leave its caches, and take twice the time each."""


class ImageEncoder(nn.Module):
    """Encode an image into a feature map, g·g image tokens and the vector f of equation (4).

    BatchNorm keeps its running statistics, and a frozen encoder stays in eval mode even after `train()`: statistics
    that drift with small batches cost more than they give.
    """

    def __init__(
        self,
        config: VisionConfig,
        image_size: int,
        hidden_size: int,
        token_rms: float,
        load_weights: bool,
        image_channels: int = 3,
        study: StudySpec | None = None,
        missing_roles: torch.Tensor | None = None,
        projector_size: int = 0,
    ) -> None:
        """`missing_roles` is R × H, for a model of studies the words for each expected role that a case lacks."""
        super().__init__()
        self.cnn, self.encoder, self.config = build_encoder(config, image_size, image_channels, load_weights)
        self.memory_format = memory_format(self.cnn)
        sample = torch.zeros(1, image_channels, image_size, image_size)
        self.channels = self._count_channels(sample)
        tokens = config.grid**2
        self.missing = nn.Parameter(torch.zeros(self.channels))
        self.position = nn.Parameter(0.02 * torch.randn(tokens, self.channels))
        self.projector = TokenProjector(self.channels, hidden_size, token_rms, projector_size)
        self.study: StudyFusion | None = None
        if study is not None and missing_roles is not None:
            self.study = StudyFusion(study, self.channels, WordTokens(missing_roles, token_rms))
        self.cnn.to(memory_format=self.memory_format)
        self.lora_line = choose_trained(self.cnn, self.encoder, config, sample)
        """What LoRA reaches, to print."""

    @property
    def summary_size(self) -> int:
        """Length of f."""
        return self.channels * self.config.summary_grid**2 * (self.study.pools if self.study else 1)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Shape of `features` for one image: g·g positions of the tokens and s·s of f, of C channels each."""
        return self.config.grid**2 + self.config.summary_grid**2, self.channels

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute the pooled features of the tokens and of f; B × 3 × S × S → B × (g·g + s·s) × C."""
        return self.pool(self.grid(pixel_values))

    def grid(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute the encoder's last feature map; B × 3 × S × S, or one channel → B × C × h × w."""
        pixels = pixel_values.contiguous(memory_format=self.memory_format)
        if torch.is_grad_enabled() or not pixels.is_cpu:
            with torch.autocast("cpu", enabled=False):  # on a CPU bf16 convolutions take three times as long backwards
                return self.encoder.grid(self.cnn, pixels)
        return torch.cat([self.encoder.grid(self.cnn, some) for some in pixels.split(FEW)])

    def pool(self, grid: torch.Tensor) -> torch.Tensor:
        """Pool the feature map to the positions of the tokens and of f; B × C × h × w → B × (g·g + s·s) × C."""
        sides = (self.config.grid, self.config.summary_grid)
        pooled = [F.adaptive_avg_pool2d(grid, side).flatten(2) for side in sides]  # B × C × g·g, B × C × s·s
        return torch.cat(pooled, dim=2).transpose(1, 2)

    def forward(self, images: torch.Tensor, has_image: torch.Tensor, roles: torch.Tensor | None = None) -> ImageTokens:
        """Encode the images of B cases into image tokens and f.

        `images` is N × 3 × S × S, or the output of `features`; `has_image` B (bool); `roles` N × 4 (see `Batch`), for a
        model of one image None. A case without an image gets a learned vector at every position.
        """
        features = images if images.ndim == 3 else self.features(images)
        rows = slice(None) if self.study is None or roles is None else roles[:, 0].long()
        features = torch.where(has_image[rows].view(-1, 1, 1), features, self.missing.to(features.dtype))
        tokens, summary = features.split([self.config.grid**2, self.config.summary_grid**2], dim=1)
        tokens = tokens + self.position
        if self.study is None or roles is None:
            return ImageTokens(self.projector(tokens), summary.transpose(1, 2).flatten(1))
        cases = len(has_image)
        summary = self.study.vector(summary.float(), roles, cases)  # B × K·s·s × C
        marked = self.projector(tokens + self.study.role_embeddings(roles)[:, None])  # N × g·g × H
        lacking = self.study.lacks(roles, cases)
        found, there = self.study.gather(marked, roles, lacking)
        return ImageTokens(found, summary.transpose(1, 2).flatten(1), there, lacking)

    def train(self, mode: bool = True) -> "ImageEncoder":
        super().train(mode)
        self.cnn.train(mode and self.config.train)
        for module in self.cnn.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    # ------------------------------------------------------------------------------------ building

    def _count_channels(self, sample: torch.Tensor) -> int:
        """Count the channels of the feature map by one forward pass; raises `UserError` if there is no feature map."""
        name, size = self.config.name, sample.shape[-1]
        with one_line(f"model.vision.name: {name} takes no images of {size} pixels"), torch.no_grad():
            grid = self.encoder.grid(self.cnn.eval(), sample)  # some models accept one size only
        check_cells(grid, name, size)
        return int(grid.shape[1])
