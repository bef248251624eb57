"""Let bitsandbytes' layers of 8-bit integers be read by PEFT at any time, and take inputs of any shape."""

from typing import Any

import torch
from bitsandbytes.nn import Linear8bitLt as _Linear8bitLt
from torch import nn


class Linear8bitLt(_Linear8bitLt):
    """Hold 8-bit integers and a scale for each row (LLM.int8(), Dettmers et al., 2022), as bitsandbytes does.

    Two faults of bitsandbytes 0.50 are mended. Its first pass takes the scales away from the weight; PEFT, which reads
    the values for PiSSA, OLoRA and DoRA, then puts a weight without scales in its place, and the next pass fails. And
    its products take at most 3 dimensions, where DeepSeek V3's latent keys have 4.
    """

    weight: Any
    """Integers with their scales, as `Int8Params`."""

    def init_8bit_state(self) -> None:
        """Hand integers and scales to the state of the products, and keep the scales beside the weight."""
        self.state.CB, self.state.SCB = self.weight.CB, self.weight.SCB
        self.weight.CB = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute x Wᵀ + b; … × in → … × out."""
        if x.ndim <= 3:
            return super().forward(x)  # type: ignore[no-any-return]
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])  # type: ignore[no-any-return]


def mend_int8(layer: nn.Module) -> None:
    """Give a layer of bitsandbytes the class above, in place.

    Early bitsandbytes does not take integers that come quantised for such, and would quantise them once more, silently.
    """
    layer.__class__ = Linear8bitLt
    weight: Any = layer.weight
    if weight.CB is None and weight.dtype == torch.int8:
        weight.CB = weight.data
