"""Machines as their makers publish them, and what share of that is reached."""

import difflib
from dataclasses import dataclass, replace

from vlm.errors import UserError

GB = 1e9
CPU = "cpu"
"""Name of the machine that is measured on the spot; see `vlm.plan.measured`."""


@dataclass(frozen=True)
class Machine:
    """One device; rates are peaks, and the shares say how much of them work like ours reaches."""

    name: str
    flops: float
    """Dense products a second in the precision that training takes on it."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second of its own memory: weights and keys."""
    link: float
    """Bytes a second to another device of the same host, one way."""
    passing: float
    """Bytes a second of a step's values, element by element; on a CPU they are still near."""
    large: float
    """Bytes a second of the values of large tensors, those of the CNN and the logits, for which memory is fresh."""
    value_bytes: int = 2
    """Of one value in that precision: 2 in bf16, 4 in fp32."""
    mfu: float = 0.5
    """Share of `flops` in matrix products."""
    attention: float = 0.2
    """Share of `flops` in attention over rows of a few hundred tokens."""
    mbu: float = 0.7
    """Share of `bandwidth`, `passing` and `large`."""
    call_s: float = 1e-5
    """Seconds to launch one operation from Python."""
    packed: bool = True
    """Whether the 4-bit weights stay packed and are unpacked at each use."""
    overlaps: bool = True
    """Whether launching goes on while earlier operations run, as on a GPU."""


def _gpu(name: str, tflops: float, memory: float, bandwidth: float, link: float, value_bytes: int = 2) -> Machine:
    """In the units of the data sheets: TFLOP/s, GB and GB/s."""
    rate = bandwidth * GB
    return Machine(name, tflops * 1e12, memory * GB, rate, link * GB, rate, rate, value_bytes)


# Dense rates without sparsity, SXM where there is a choice; links one way: half of what is published for both.
GPUS = {
    machine.name: machine
    for machine in (
        _gpu("T4", 8.1, 16, 320, 16, 4),  # NVIDIA T4 data sheet; no bf16, so fp32 as `choose_precision` has it; PCIe 3
        _gpu("L4", 121, 24, 300, 32),  # NVIDIA L4 data sheet (242 with sparsity); PCIe 4 x16
        _gpu("A10", 125, 24, 600, 32),  # NVIDIA A10 data sheet; PCIe 4 x16
        _gpu("RTX-4090", 165.2, 24, 1008, 32),  # NVIDIA Ada architecture white paper, fp32 accumulation; PCIe 4 x16
        _gpu("A100-40", 312, 40, 1555, 300),  # NVIDIA A100 data sheet; NVLink 3
        _gpu("A100-80", 312, 80, 2039, 300),  # NVIDIA A100 data sheet; NVLink 3
        _gpu("H100", 989.4, 80, 3350, 450),  # NVIDIA H100 data sheet (1,979 with sparsity); NVLink 4
        _gpu("H200", 989.4, 141, 4800, 450),  # NVIDIA H200 data sheet; NVLink 4
        _gpu("B200", 2250, 180, 8000, 900),  # NVIDIA HGX B200 data sheet, an eighth of it; NVLink 5
    )
}


def find_gpu(name: str, mfu: float | None = None, mbu: float | None = None) -> Machine:
    """A GPU by its name, whatever its case; raises `UserError` that names the nearest one."""
    names = {known.lower(): known for known in GPUS}
    wanted = name.lower().replace(" ", "-").removeprefix("nvidia-")
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.4)
        way_out = f"did you mean {names[near[0]]}? All: " if near else "known are "
        raise UserError(f"--gpu: no published numbers of {name}; {way_out}{', '.join(GPUS)}, {CPU}")
    machine = GPUS[names[wanted]]
    return replace(machine, mfu=mfu or machine.mfu, mbu=mbu or machine.mbu)
