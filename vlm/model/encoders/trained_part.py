"""Choose which parameters of an image encoder train: none, all but frozen stages and layers, or its LoRA."""

import torch
from torch import nn

from vlm.config import VisionConfig
from vlm.errors import UserError, nearest, one_line
from vlm.model.encoders.encoder import Encoder, reached
from vlm.model.encoders.encoder_lora import add_encoder_lora


def choose_trained(network: nn.Module, encoder: Encoder, config: VisionConfig, pixels: torch.Tensor) -> str:
    """Freeze what the config keeps, and what no grid of `pixels` depends on; returns a line on LoRA, or nothing."""
    if not config.train:
        network.requires_grad_(False)
        return ""
    line = ""
    if config.lora_rank:
        line = add_encoder_lora(network, encoder, config.lora_rank, config.name, pixels)
    for name in [*_frozen_stages(network, encoder, config), *_frozen_layers(network, config)]:
        network.get_parameter(name).requires_grad_(False)
    freeze_unused(network, encoder, pixels)
    return line


def _frozen_stages(network: nn.Module, encoder: Encoder, config: VisionConfig) -> list[str]:
    """List the parameters of the first `frozen_stages` stages."""
    count = config.frozen_stages
    if not count:
        return []
    with one_line(f"model.vision.frozen_stages: {config.name} has no stages"):
        stages = encoder.stages(network)
    if count >= len(stages):
        way_out = "set model.vision.train false to freeze all"
        raise UserError(f"model.vision.frozen_stages: {config.name} has {len(stages)} stages; {way_out}")
    return [parameter for stage in stages[:count] for parameter in stage]


def _frozen_layers(network: nn.Module, config: VisionConfig) -> list[str]:
    """List the parameters of the modules named in `frozen_layers`."""
    names, frozen = [name for name, _ in network.named_parameters()], []
    for layer in config.frozen_layers:
        found = [name for name in names if f"{name}.".startswith(f"{layer}.")]
        if not found:
            near = nearest(layer, (path for path, _ in network.named_modules() if path), cutoff=0.0)
            raise UserError(f"model.vision.frozen_layers: {config.name} has no {layer}; try {near}")
        frozen += found
    return frozen


def freeze_unused(network: nn.Module, encoder: Encoder, pixels: torch.Tensor) -> list[str]:
    """Freeze the parameters that no grid depends on, such as a classifier's or a mask token; returns their names."""
    trained = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
    used = reached(encoder.grid(network.eval(), pixels))
    unused = [(name, value) for name, value in trained if id(value) not in used]
    for _, value in unused:
        value.requires_grad_(False)
    return [name for name, _ in unused]
