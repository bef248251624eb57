"""Encode images into image tokens and a summary vector by a timm CNN: equation (1), f = CNN(I)."""

from collections.abc import Iterable

import timm
import torch
from torch import nn
from torch.nn import functional as F

from vlm.config import VisionConfig
from vlm.errors import UserError, one_line
from vlm.model.projection import TokenProjector
from vlm.weights import vision_weights_file


def build_cnn(config: VisionConfig, load_weights: bool = True) -> nn.Module:
    """Build the timm model without classifier and pooling, so that it returns a feature map.

    Raises `UserError` for an unknown name or weights that do not fit.
    """
    if not timm.is_model(config.name.removeprefix("hf_hub:").split(".")[0]) and not config.name.startswith("hf_hub:"):
        near = timm.list_models(f"*{config.name.split('_')[0]}*")[:3]
        raise UserError(f"model.vision.name: timm has no model {config.name}{f'; try {near[0]}' if near else ''}")
    pretrained = load_weights and config.weights == "pretrained"
    with one_line(f"model.vision: cannot build {config.name}"):
        cnn = timm.create_model(config.name, pretrained=pretrained, num_classes=0, global_pool="")
    if config.name.startswith("hf_hub:"):
        _refuse_options(cnn, config.name)
    if load_weights and config.weights not in ("pretrained", "random"):
        _load_weights(cnn, config)
    return cnn


def architecture(cnn: nn.Module) -> str:
    """Get timm's name of the architecture, whatever repository its options came from."""
    return str(cnn.pretrained_cfg["architecture"])  # type: ignore[index]


def _refuse_options(cnn: nn.Module, name: str) -> None:
    """Raise `UserError` where a repository's options change the architecture that it names.

    An adapter names the architecture alone: loading it must not need that repository.
    """
    with torch.device("meta"):
        plain = timm.create_model(architecture(cnn), num_classes=0, global_pool="").state_dict()
    given = {tensor: value.shape for tensor, value in cnn.state_dict().items()}
    if given != {tensor: value.shape for tensor, value in plain.items()}:
        raise UserError(f"model.vision.name: {name} is no plain {architecture(cnn)}, so no adapter could name it")


def _load_weights(cnn: nn.Module, config: VisionConfig) -> None:
    """Load all tensors of the CNN from a file; only a classifier may be left over."""
    from safetensors.torch import load_file

    file = vision_weights_file(config.weights, config.sha256, config.name)
    try:
        given = load_file(file)
    except Exception as error:  # safetensors raises its own bare exception type
        raise UserError(f"model.vision.weights: {file} is no safetensors file: {error}") from None
    wanted = cnn.state_dict()
    missing = [name for name, value in wanted.items() if name not in given or given[name].shape != value.shape]
    if missing:
        raise UserError(
            f"model.vision.weights: {file} does not fit {config.name}: {len(missing)} tensors, first {missing[0]}"
        )
    cnn.load_state_dict({name: given[name] for name in wanted})


class ImageEncoder(nn.Module):
    """Encode an image into a feature map, g·g image tokens and the vector f of equation (4).

    BatchNorm keeps its running statistics, and a frozen CNN stays in eval mode even after `train()`: statistics
    that drift with small batches cost more than they give.
    """

    def __init__(
        self, config: VisionConfig, image_size: int, hidden_size: int, token_rms: float, load_weights: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.cnn = build_cnn(config, load_weights)
        self.channels = _grid_channels(self.cnn, config.name, image_size)
        tokens = config.grid**2
        self.missing = nn.Parameter(torch.zeros(self.channels))
        self.position = nn.Parameter(0.02 * torch.randn(tokens, self.channels))
        self.projector = TokenProjector(self.channels, hidden_size, token_rms)
        self._freeze()

    @property
    def summary_size(self) -> int:
        """Length of f."""
        return self.channels * self.config.summary_grid**2

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Shape of `features` for one image: g·g positions of the tokens and s·s of f, of C channels each."""
        return self.config.grid**2 + self.config.summary_grid**2, self.channels

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute the pooled features of the tokens and of f; B × 3 × S × S → B × (g·g + s·s) × C."""
        return self.pool(self.grid(pixel_values))

    def grid(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Compute the CNN's last feature map; B × 3 × S × S → B × C × h × w."""
        with torch.autocast("cpu", enabled=False):  # on a CPU bf16 convolutions take three times as long backwards
            return self.cnn(pixel_values.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]

    def pool(self, grid: torch.Tensor) -> torch.Tensor:
        """Pool the feature map to the positions of the tokens and of f; B × C × h × w → B × (g·g + s·s) × C."""
        sides = (self.config.grid, self.config.summary_grid)
        pooled = [F.adaptive_avg_pool2d(grid, side).flatten(2) for side in sides]  # B × C × g·g, B × C × s·s
        return torch.cat(pooled, dim=2).transpose(1, 2)

    def forward(self, images: torch.Tensor, has_image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode images into image tokens and f.

        `images` is B × 3 × S × S, or the output of `features`; `has_image` B (bool). Returns B × g·g × H and B × F.
        A case without an image gets a learned vector at every position.
        """
        features = images if images.ndim == 3 else self.features(images)
        features = torch.where(has_image.view(-1, 1, 1), features, self.missing.to(features.dtype))
        tokens, summary = features.split([self.config.grid**2, self.config.summary_grid**2], dim=1)
        return self.projector(tokens + self.position), summary.transpose(1, 2).flatten(1)

    def train(self, mode: bool = True) -> "ImageEncoder":
        super().train(mode)
        self.cnn.train(mode and self.config.train)
        for module in self.cnn.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def _freeze(self) -> None:
        self.cnn.to(memory_format=torch.channels_last)
        if not self.config.train:
            self.cnn.requires_grad_(False)
            return
        if not self.config.frozen_stages:
            return
        with one_line(f"model.vision.frozen_stages: {self.config.name} has no stages"):
            stages = timm.models.group_parameters(self.cnn, self.cnn.group_matcher(coarse=True))  # type: ignore[operator]
        if self.config.frozen_stages >= len(stages):
            way_out = "set model.vision.train false to freeze all"
            raise UserError(f"model.vision.frozen_stages: {self.config.name} has {len(stages)} stages; {way_out}")
        frozen: Iterable[str] = (name for stage in range(self.config.frozen_stages) for name in stages[stage])
        for name in frozen:
            self.cnn.get_parameter(name).requires_grad_(False)


def _grid_channels(cnn: nn.Module, name: str, image_size: int) -> int:
    """Count the channels of the feature map by one forward pass; raises `UserError` if there is no feature map."""
    with one_line(f"model.vision.name: {name} takes no images of {image_size} pixels"), torch.no_grad():
        grid = cnn.eval()(torch.zeros(1, 3, image_size, image_size))  # some models accept one size only
    if not isinstance(grid, torch.Tensor):
        raise UserError(f"model.vision.name: {name} gives several features, not a grid; choose a CNN")
    if grid.ndim != 4 or grid.shape[1] != getattr(cnn, "num_features", grid.shape[1]):
        raise UserError(
            f"model.vision.name: {name} gives features of shape {tuple(grid.shape)}, not a grid; choose a CNN"
        )
    return int(grid.shape[1])
