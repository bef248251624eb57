"""Build the image encoder that a config names, and decide what an adapter keeps of it."""

import re
from dataclasses import replace
from functools import lru_cache

import timm
import torch
from torch import nn

from vlm.config import VisionConfig
from vlm.data.images.image import ImageSpec
from vlm.device import Choice
from vlm.errors import UserError
from vlm.model.encoders.encoder import MOST_CELLS, Encoder, Pictures
from vlm.model.encoders.encoder_options import parse_options, write_options
from vlm.model.encoders.locate import find_source
from vlm.model.encoders.source import Source, file_digest
from vlm.model.encoders.timm_encoder import TimmEncoder, build_network, choose_reading, own_weights
from vlm.model.encoders.transformers_encoder import build_vision_model

SMALL = 4_000_000
"""Most parameters of a frozen encoder of a repository that an adapter carries: 16 MB."""


def build_encoder(
    config: VisionConfig, size: int, channels: int = 3, load_weights: bool = True
) -> tuple[nn.Module, Encoder, VisionConfig]:
    """Build the network and what reads its grid; also returns the config that an adapter keeps.

    Raises `UserError` for an unknown name, a size that the encoder does not take, or weights that do not fit.
    """
    source = find_source(config, load_weights)
    network: nn.Module
    encoder: Encoder
    if source.library == "timm":
        encoder = reading = _reading(source, size, channels)
        own = load_weights and (_is_own(source) if source.file else config.weights == "pretrained")
        network = build_network(source, reading, own)
    else:
        network, encoder = build_vision_model(source, size, channels)
    return network, encoder, _kept(config, source, network) if load_weights else config


def image_pictures(config: VisionConfig, size: int) -> tuple[Pictures, str]:
    """Get how the encoder's pictures are prepared, and a line that says so.

    Area averaging stays for CNNs where the config does not choose: adapters were trained with it.
    """
    source = find_source(config)
    pictures = replace(source.pictures, size=size or source.pictures.size)
    chosen = source.library != "timm" or config.interpolation != "auto"
    if not chosen and _reading(source, pictures.size, pictures.channels).halves:
        pictures = replace(pictures, interpolation="area")
    other = "" if pictures.size == source.pictures.size else f", not the {source.pictures.size} of its weights"
    return pictures, (
        f"image encoder: {source.architecture} of {source.library} ({source.reason}); pictures of "
        f"{pictures.size} pixels{other}, mean {pictures.mean:g}, std {pictures.std:g}, {pictures.interpolation}"
    )


def image_spec(pictures: Pictures, color: bool) -> ImageSpec:
    """Make the specification of the pictures, in colour or in grey."""
    grey = ImageSpec(
        pictures.size, pictures.mean, pictures.std, interpolation=pictures.interpolation, channels=pictures.channels
    )
    if not color:
        return grey
    return replace(grey, color="rgb", color_mean=pictures.color_mean, color_std=pictures.color_std)


def _reading(source: Source, size: int, channels: int) -> TimmEncoder:
    return _chosen(source.architecture, write_options(dict(source.options)), source.pictures, size, channels)


@lru_cache(32)
def _chosen(name: str, options: str, pictures: Pictures, size: int, channels: int) -> TimmEncoder:
    return choose_reading(Source("timm", name, parse_options(options), pictures), size, channels)


def _is_own(source: Source) -> bool:
    """Check whether a file is the one that timm itself loads for this name."""
    config = timm.get_pretrained_cfg(source.architecture, allow_unregistered=True)
    own = f"hf-hub:{config.hf_hub_id}@" if config and config.hf_hub_id else None
    return bool(own and source.address and source.address.startswith(own))


# ---------------------------------------------------------------------------- what an adapter keeps of it


def _kept(config: VisionConfig, source: Source, network: nn.Module) -> VisionConfig:
    """Get the config that rebuilds the encoder from an adapter alone.

    A repository's or folder's name becomes that of the architecture with its options. Weights that train are carried,
    and so are those that nobody could fetch; others are named by repository, commit and SHA-256.
    """
    named = replace(config, name=source.name, options=write_options(dict(source.options)))
    if config.weights == "pretrained" and source.file is None:
        return _pinned(named, source)  # timm's own
    if config.name == named.name and (not config.weights.startswith("hf") or is_pinned(config)):
        return config
    if choose_carrying(config, source, network).value:
        return replace(named, weights="random", sha256=None)
    assert source.address and source.file
    return replace(named, weights=source.address, sha256=file_digest(source.file))


def is_pinned(config: VisionConfig) -> bool:
    """Check whether a config names a file of weights by commit and SHA-256, as an adapter's does."""
    return bool(config.sha256 and re.fullmatch(r"hf-hub:[^@]+@[0-9a-f]{40}(/.+)?", config.weights))


def choose_carrying(config: VisionConfig, source: Source, network: nn.Module) -> Choice[bool]:
    """Choose whether an adapter carries the weights of an encoder of a repository or folder."""
    if config.train and not config.lora_rank:
        return Choice(True, "the encoder trains")
    if source.address is None:
        return Choice(True, "its weights are local")
    count = sum(value.numel() for value in network.parameters())
    if count <= SMALL:
        return Choice(True, f"its {count:,} weights are few")
    return Choice(False, f"its {count:,} weights are frozen, and {source.address} has them")


def _pinned(config: VisionConfig, source: Source) -> VisionConfig:
    """Pin timm's own weights of a frozen encoder by commit and SHA-256, where they are a file of the Hub."""
    if config.train and not config.lora_rank:
        return config
    found = own_weights(source.architecture)
    return replace(config, weights=found[0], sha256=file_digest(found[1])) if found else config


def check_cells(grid: torch.Tensor, name: str, size: int) -> None:
    """Raise `UserError` for what is no grid, B × C × h × w, or has too many cells."""
    if not isinstance(grid, torch.Tensor) or grid.ndim != 4:
        raise UserError(f"model.vision.name: {name} gives no grid of features; choose another encoder")
    cells = grid.shape[2] * grid.shape[3]
    if not 1 <= cells <= MOST_CELLS:
        raise UserError(f"model.vision.name: {name} gives {cells:,} cells of {size} pixels, more than {MOST_CELLS:,}")
