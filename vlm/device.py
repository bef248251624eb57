"""Choose device, precision and threads automatically, each with a reason to print."""

import math
import os
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch

Value = TypeVar("Value")
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
"""File with the processor time of a container, quota and period in microseconds (cgroup v2)."""


class Choice(NamedTuple, Generic[Value]):
    """Hold an automatically chosen value and the reason."""

    value: Value
    reason: str


def choose_device() -> Choice[torch.device]:
    """Choose the accelerator PyTorch sees, else the CPU."""
    index = int(os.environ.get("LOCAL_RANK", 0))
    for kind, library in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if library.is_available():
            return Choice(torch.device(kind, index), f"GPU found: {library.get_device_name(index)}")
    if torch.backends.mps.is_available():
        return Choice(torch.device("mps"), "GPU found: Apple's")
    return Choice(torch.device("cpu"), "no GPU found")


NO_BF16 = "this GPU has no bf16 units (NVIDIA's have from compute capability 8.0)"
WITHOUT_BF16 = (
    f"{NO_BF16}; in fp16 gradients vanish and activations can overflow; fp32 takes more time, and twice the memory for "
    "activations: lower train.micro_batch_size, or set it to auto"
)


def choose_precision(wanted: str, device: torch.device) -> Choice[torch.dtype]:
    """Choose `torch.bfloat16` or `torch.float32`; never float16, whose range loses gradients silently.

    `auto` on a CPU is fp32 even where it has native bf16, since in fp32 a case has the same draft in every batch;
    `fastest` takes bf16 there (benchmarks/README.md has both).
    """
    if wanted == "bf16" and device.type in ("cuda", "xpu") and not gpu_multiplies_bf16(device):
        return Choice(torch.bfloat16, f"set by train.precision; warning: {NO_BF16} and emulates them slowly; take auto")
    if wanted not in ("auto", "fastest"):
        return Choice(torch.bfloat16 if wanted == "bf16" else torch.float32, "set by train.precision")
    if gpu_multiplies_bf16(device):
        return Choice(torch.bfloat16, "the GPU computes in bf16")
    if device.type == "mps":
        return Choice(torch.float32, "exact on Apple's GPU; train.precision bf16 takes less memory")
    if device.type != "cpu":
        return Choice(torch.float32, WITHOUT_BF16)
    if multiplies_bf16() and wanted == "fastest":
        return Choice(torch.bfloat16, "the fastest: this CPU multiplies bf16 itself")
    if multiplies_bf16():
        return Choice(torch.float32, "exact on a CPU; this one would train faster with train.precision bf16")
    return Choice(torch.float32, "on a CPU without native bf16, bf16 is many times slower")


def gpu_multiplies_bf16(device: torch.device) -> bool:
    """Check whether a device is a GPU with bf16 units; PyTorch emulates them where there are none, such as on a T4."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "xpu" and bool(torch.xpu.is_bf16_supported())


def multiplies_bf16() -> bool:
    """Check whether this CPU has native bf16: tiles (Intel's AMX) or AVX-512's dot products.

    A training step on the latter takes 0.6 of the time it takes in fp32; without either it takes many times as long.
    """
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(ask()) for name in names if (ask := getattr(torch.cpu, name, None)))


def choose_threads(wanted: int) -> Choice[int]:
    """Choose the CPU threads of this process: `accelerate launch` sets OMP_NUM_THREADS=1, which would idle cores."""
    if wanted > 0:
        return Choice(wanted, "set by train.threads")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    processes, quota = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), cpu_quota()
    limit = f", {quota:g} by the container's limit" if quota < cores else ""
    threads = max(1, int(min(cores, quota)) // processes)
    return Choice(threads, f"{cores} cores{limit}, {processes} process{'es' * (processes > 1)}")


def cpu_quota() -> float:
    """Get how many cores a container may keep busy; infinite without a limit. More threads would wait for each other.

    Source: the Linux kernel's documentation of cgroup v2, `cpu.max`.
    """
    try:
        quota, period = CPU_MAX.read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return math.inf


def memory_of(device: torch.device) -> int:
    """Get the memory of a CUDA device, bytes; 0 for any other."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
