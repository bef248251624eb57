"""Merge LoRA into the weights for a while, so that a forward pass costs no more than the base's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from vlm.errors import one_line

if TYPE_CHECKING:  # other engines draft without it, and start sooner
    from vlm.model.clinical_vlm import ClinicalVLM


@contextmanager
def merged_lora(model: "ClinicalVLM") -> Iterator[None]:
    """Merge LoRA into the weights while drafting, where they are plain tensors, and restore them bit for bit.

    It is merged into the dequantized NF4 values that training saw, never into 4-bit or into the original base; packed
    weights, and sharded ones, keep LoRA beside them.
    """
    from peft.tuners.lora import Linear

    was_training = model.training
    model.eval()
    layers = [module for module in model.llm.modules() if type(module) is Linear]  # quantised layers have other types
    layers = [layer for layer in layers if not (layer.merged_adapters or model.sharded)]  # a nested call merges nothing
    weights = [layer.get_parameter("base_layer.weight") for layer in layers]
    kept = [weight.data for weight in weights]
    try:
        for layer, weight in zip(layers, weights, strict=True):
            if layer.lora_variant:  # DoRA; a safe merge of PEFT leaves the old weight as it was
                with one_line("the adapter's DoRA cannot be merged"):  # values of a stranger may overflow
                    layer.merge(safe_merge=True)
                continue
            for name in layer.active_adapters:
                a, b = (layer.get_parameter(f"lora_{side}.{name}.weight").detach() for side in "AB")  # r × in, out × r
                # PEFT's own merge adds in place; one product beside the old weight is quicker and needs no copy of it.
                b, a = (a.T, b.T) if layer.fan_in_fan_out else (b, a)  # GPT-2's weights lie in × out
                merged = torch.addmm(weight.data.to(b.dtype), b, a, alpha=layer.scaling[name])  # LoRA stays fp32
                weight.data = merged.to(weight.dtype)
                layer.merged_adapters.append(name)
        yield
    finally:
        for layer, weight, before in zip(layers, weights, kept, strict=True):
            layer.merged_adapters.clear()
            weight.data = before
        model.train(was_training)
