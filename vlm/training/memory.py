"""Model the memory of a training step: peak(B) = weights + training + fixed + B × case.

`vlm.training.dry_run` measures the terms on a real model; `benchmarks.plan` computes them from shapes alone.
"""

from dataclasses import dataclass

from vlm.config import LLMConfig

MIB, GIB = 2**20, 2**30
CUDA_CONTEXT = 0.5 * GIB
"""Bytes of CUDA and its libraries before the first tensor; varies a little with the driver."""
TRAINED_BYTES = 12
"""Bytes a trainable parameter needs beside its value: its gradient and the two states of AdamW, in fp32."""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step on one device."""

    weights: float
    """All parameters and buffers."""
    training: float
    """Gradients and the two AdamW states of the trainable parameters."""
    fixed: float
    """Other memory of a step, independent of the batch size."""
    case: float
    """Memory added by each case."""

    def peak(self, cases: int) -> float:
        """Compute the peak bytes of a step over `cases` cases at once."""
        return self.weights + self.training + self.fixed + cases * self.case


def packed_bytes(llm: LLMConfig) -> float:
    """Compute the bytes of a quantised value: one for int8, whose constants are one a row, half a byte for 4 bits."""
    return 1.0 if llm.quantization == "int8" else four_bit_bytes(llm.double_quantization)


def four_bit_bytes(double_quantization: bool) -> float:
    """Compute the bytes of a value packed in 4 bits (QLoRA): half a byte and its constants.

    32 bits for 64 values, or 8 bits and 32 for 64 · 256 where the constants are quantised too.
    """
    constants = 8 / 64 + 32 / (64 * 256) if double_quantization else 32 / 64  # bits a value
    return (4 + constants) / 8
