"""Encode images by a vision model of Transformers: those alone, and the vision half of image-text models."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import nn

from vlm.errors import UserError, one_line
from vlm.model.encoders.encoder import Encoder, by_depth
from vlm.model.encoders.encoder_options import FOREIGN, check_options
from vlm.model.encoders.source import Source, read_tensors

METADATA = {
    "architectures", "dtype", "id2label", "label2id", "model_type", "problem_type", "torch_dtype",
    "transformers_version", "projection_dim", "initializer_range", "initializer_factor", "use_cache",
}  # fmt: skip
"""Keys of a config that do not change the features."""
MOST_OTHERS = 32
"""Most class and register tokens; more are queries, which stand elsewhere."""
REFUSED = {
    "vit_mae": "shuffles its patches; write model_type vit in its config.json",
    "videomae": "reads videos", "vivit": "reads videos", "timesformer": "reads videos",
    "timm_backbone": "is timm's; name it as timm does", "timm_wrapper": "is timm's; name it as timm does",
}  # fmt: skip
"""Model type → why its output is no grid of the image."""
NORM_AFTER_POOLING = {"clip_vision_model", "chinese_clip_vision_model", "altclip_vision_model"}
"""Model types that put their last norm on the pooled token alone."""


@dataclass(frozen=True)
class TransformersEncoder(Encoder):
    """Read the last hidden state of a vision model as a grid: patches without class and register tokens."""

    patch: int | None
    """Pixels of a token's side; None where the hidden state is a grid already."""
    interpolates: bool
    """Interpolate the position embeddings, which are of another size."""
    normed: bool
    """Put the norm that the model keeps for its pooled token on the others."""

    def grid(self, network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        options = {"interpolate_pos_encoding": True} if self.interpolates else {}
        states = network(pixels, **options).last_hidden_state
        if self.patch is None:
            _, first, _, last = states.shape  # B × h × w × C, or B × C × h × w
            channels_last = first == states.shape[2] != last
            return states.permute(0, 3, 1, 2) if channels_last else states  # type: ignore[no-any-return]
        height, width = (side // self.patch for side in pixels.shape[2:])
        others = states.shape[1] - height * width  # class and register tokens stand first
        if not 0 <= others <= MOST_OTHERS:
            raise ValueError(f"it gives {states.shape[1]} tokens for {height} × {width} patches")
        if self.normed:
            states = network.post_layernorm(states)  # type: ignore[operator]
        return states[:, others:].transpose(1, 2).unflatten(2, (height, width))  # type: ignore[no-any-return]

    def stages(self, network: nn.Module) -> list[list[str]]:
        return by_depth(name for name, _ in network.named_parameters())

    layers = stages


def vision_options(config: Mapping[str, Any], place: str) -> tuple[str, dict[str, Any]]:
    """Get the model type of the vision model, or of the vision half, and its options, from a config of Transformers.

    Raises `UserError` for a type that Transformers does not have, or that reads no images.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config["model_type"]
    with one_line(f"model.vision.name: {place}"):
        if not isinstance(kind, str) or kind in REFUSED:
            raise ValueError(f"{kind!s:.60} {REFUSED.get(str(kind), 'is no model type')}")
        if kind not in CONFIG_MAPPING:
            raise ValueError(f"Transformers has no model type {kind:.60}")
        half = config.get("vision_config")
        if half is not None:  # CLIP and its kin: a text half, a vision half
            if not isinstance(half, dict):
                raise ValueError("its vision_config is no JSON object")
            half = _cleaned(half, place)
            found = AutoConfig.for_model(kind, vision_config=half)
            return found.vision_config.model_type, half
    return kind, _cleaned(config, place)


def _cleaned(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Keep the options of the architecture, checked as a stranger's."""
    options = {key: value for key, value in config.items()
               if key not in METADATA and not FOREIGN.search(key) and value is not None}  # fmt: skip
    check_options(options, f"model.vision.name: config of {place}")
    return options


def build_vision_model(source: Source, size: int, channels: int) -> tuple[nn.Module, TransformersEncoder]:
    """Build the vision model, with random weights or those of the source's file.

    Raises `UserError` for a type that gives no grid, a size that it does not take, and weights that do not fit.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    with one_line(f"model.vision: cannot build {source.architecture}"):
        config = AutoConfig.for_model(source.architecture, **source.options)
        if "siglip" in source.architecture:
            config.vision_use_head = False  # its pooling, which nothing here uses
        if getattr(config, "num_channels", channels) != channels:
            if source.file:
                raise ValueError(f"its first layer takes {config.num_channels} channels, not {channels}")
            config.num_channels = channels
        kinds = MODEL_MAPPING[type(config)]
        kind: Any = kinds[0] if isinstance(kinds, tuple | list) else kinds
        if kind.main_input_name != "pixel_values":
            raise ValueError("it reads no images")
        options = {"add_pooling_layer": False} if "add_pooling_layer" in signature(kind).parameters else {}
        network = _load(kind, config, options, source) if source.file else kind(config, **options)
        network = getattr(network, "vision_model", network)  # early Transformers 5 wraps CLIP's and SigLIP's
    patch = _patch(config)
    if patch and size % patch:
        near = sorted({patch * max(1, size // patch), patch * (size // patch + 1)})
        raise UserError(
            f"model.vision.name: {source.architecture} takes no images of {size} pixels (its patches have {patch}); "
            f"set data.image_size {' or '.join(map(str, near))}"
        )
    other = patch is not None and getattr(config, "image_size", size) not in (size, [size, size], (size, size))
    interpolates = other and "interpolate_pos_encoding" in signature(network.forward).parameters
    return network, TransformersEncoder(patch, interpolates, source.architecture in NORM_AFTER_POOLING)


def _load(kind: Any, config: Any, options: dict[str, Any], source: Source) -> nn.Module:
    """Load all tensors of the vision half; those of another half and of a classifier may be left over."""
    assert source.file
    given = read_tensors(source.file)
    with _quiet():  # a report of the tensors that the other half has left over
        network, info = kind.from_pretrained(
            None, config=config, state_dict=given, output_loading_info=True, dtype=torch.float32, **options
        )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{source.file.name} does not fit: {len(missing)} tensors are missing, first {missing[0]}")
    return network  # type: ignore[no-any-return]


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _patch(config: Any) -> int | None:
    """Compute the pixels of a token's side; None for a model whose hidden state is a grid."""
    side = getattr(config, "patch_size", None)
    if side is None or config.model_type in ("convnext", "convnextv2", "dinat", "pvt"):
        return None
    side = side[0] if isinstance(side, list | tuple) else side
    depths = getattr(config, "depths", None)  # Swin and its kin halve the grid after each stage but the last
    return int(side) * 2 ** (len(depths) - 1 if depths else 0)
