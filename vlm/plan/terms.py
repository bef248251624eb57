"""What of a plan is neither the config's nor the machine's, and how much of a device can be filled."""

from dataclasses import dataclass

from vlm.plan.gpus import Machine
from vlm.training.memory import CUDA_CONTEXT

HOST = 8
"""Devices in one host."""
ROOM = 0.92
"""Share of a device's memory that tensors can fill before fragments leave no room."""


@dataclass(frozen=True)
class Terms:
    """What of a plan is neither the config's nor the machine's."""

    studies: float
    epochs: float
    draft_tokens: float = 60
    """Mean length of a draft."""
    study_bytes: float = 300e3
    """Encoded image of a study."""
    decode_s: float = 0.02
    """CPU seconds to read and decode it."""
    cores: int = 8
    """CPU cores that read images for one device."""
    days: float = 7.0
    """Time in which training, and drafting, shall end where the number of devices is free."""
    gpus: int | None = None
    """Number of devices; None: as few as end in that time."""


def room_of(machine: Machine) -> float:
    """Bytes of a device that tensors can take."""
    return ROOM * machine.memory - CUDA_CONTEXT
