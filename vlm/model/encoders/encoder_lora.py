"""Put LoRA on an encoder's attention by PEFT: the light way to train it."""

import re
from collections import Counter

import torch
from torch import nn

from vlm.errors import UserError, one_line
from vlm.model.encoders.encoder import LORA, Encoder

ATTENTION, OTHER = re.compile(r"attn|attention"), re.compile(r"mlp|ffn")
"""Patterns in the path of a layer of attention, in timm and Transformers, and of one beside it."""


def attention_layers(network: nn.Module) -> list[str]:
    """List the paths of the linear layers of attention."""
    linear = (path for path, module in network.named_modules() if type(module) is nn.Linear)
    return [path for path in linear if ATTENTION.search(path) and not OTHER.search(path)]


def add_encoder_lora(network: nn.Module, encoder: Encoder, rank: int, name: str, pixels: torch.Tensor) -> str:
    """Wrap the linear layers of attention: h = W x + 2 B A x of rank `rank`, with A and B trainable.

    Some models read a layer's weight without calling the layer: a LoRA there would change nothing, and is left out.
    Returns a line that counts the layers with and without. Raises `UserError` for an encoder without such layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    paths = attention_layers(network)
    with one_line(f"model.vision.lora_rank: {name} cannot carry LoRA"):
        called = _called(network, encoder, paths, pixels)
        if called:
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_exactly(called), bias="none")
            inject_adapter_in_model(config, network)
    if not called:
        raise UserError(
            f"model.vision.lora_rank: {name} has no linear layers of attention that LoRA could change; set it 0, and "
            "model.vision.frozen_stages to train less than the whole encoder"
        )
    for parameter_name, value in network.named_parameters():
        value.requires_grad_(bool(LORA.search(parameter_name)))
    bare = [path for path in paths if path not in called]
    return f"LoRA of the image encoder: {_counted(called)}" + (
        f"; none on {_counted(bare)}, whose weights {name} reads without calling them" if bare else ""
    )


def _counted(paths: list[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(path.rpartition(".")[2] for path in paths).items())


def _exactly(paths: list[str]) -> str:
    """Write the pattern that PEFT matches against whole paths."""
    return "|".join(map(re.escape, paths))


def _called(network: nn.Module, encoder: Encoder, paths: list[str], pixels: torch.Tensor) -> list[str]:
    """List the layers whose output the grid depends on."""
    called: set[str] = set()
    hooks = [network.get_submodule(path).register_forward_hook(lambda *_, path=path: called.add(path))
             for path in paths]  # fmt: skip
    try:
        with torch.no_grad():
            encoder.grid(network.eval(), pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return [path for path in paths if path in called]
