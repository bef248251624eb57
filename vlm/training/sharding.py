"""Shard the frozen base with FSDP, with the trainable weights replicated on every process.

The base takes nearly all of the memory, and never changes: each process holds a shard of every layer and gathers the
others when it reaches that layer (PyTorch's FSDP2). The trainable weights, a few MB, stay whole, and their gradients
are averaged as in DDP. So checkpoints, and a resume by another number of processes, are the same with and without
shards.
"""

import inspect
import os

import torch

from vlm.device import Choice
from vlm.errors import UserError
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.kernels import decoder_layers

FSDP, DEEPSPEED = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
"""Environment variables in which `accelerate launch` passes on its config."""


def asked_to_shard() -> Choice[bool]:
    """Check whether the launcher's config asks for FSDP or DeepSpeed ZeRO-3, and clear it, so accelerate does neither.

    accelerate's versions would also shard the trainable weights; its FSDP needs GPUs, and DeepSpeed pickles its state.
    Raises `UserError` for both at once, and for a stage of ZeRO that leaves the parameters whole.
    """
    asked = [switch for switch in (FSDP, DEEPSPEED) if os.environ.get(switch, "false").lower() == "true"]
    if not asked:
        return Choice(False, "not asked for")
    if len(asked) > 1:
        raise UserError("FSDP and DeepSpeed were both asked for; launch with one of configs/accelerate")
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    if asked == [DEEPSPEED] and stage != "3":
        raise UserError(
            f"DeepSpeed: ZeRO-{stage} splits only what trains, some MB; launch with configs/accelerate/ddp.yaml"
        )
    if not can_shard():
        raise UserError(
            f"FSDP: PyTorch {torch.__version__} cannot leave whole what trains; update it, or launch with "
            "configs/accelerate/ddp.yaml"
        )
    os.environ[asked[0]] = "false"
    reasons = {FSDP: "FSDP", DEEPSPEED: "as ZeRO-3 does, by PyTorch's FSDP2 in place of DeepSpeed"}
    return Choice(True, reasons[asked[0]])


def can_shard() -> bool:
    """Check whether PyTorch's FSDP2 leaves parameters out, as it does since the version after 2.6."""
    from torch.distributed.fsdp import fully_shard

    return "ignored_params" in inspect.signature(fully_shard).parameters


def shard_base(model: ClinicalVLM, device: torch.device) -> str:
    """Shard each layer of the frozen base over all processes; trainable weights and word embeddings stay whole.

    Returns a description of each process's share. Raises `UserError` for a base whose quantised values are stored as
    integers, which cannot be sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    trunk = model.base.base_model
    layers = decoder_layers(model)
    inside = {parameter for layer in layers for parameter in layer.parameters() if not parameter.requires_grad}
    if not all(parameter.is_floating_point() for parameter in inside):
        raise UserError("FSDP: the base comes with quantised values in bytes, which cannot be split; take the original")
    processes = torch.distributed.get_world_size()
    before = sum(parameter.nbytes for parameter in inside)
    mesh = init_device_mesh(device.type, (processes,))
    whole = set(model.parameters()) - inside
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=whole)
    fully_shard(trunk, mesh=mesh, ignored_params=whole)  # the root: prefetches the next layer during compute
    model.sharded = True
    held = sum(p.to_local().nbytes for p in model.parameters() if isinstance(p, DTensor))
    split = f"{held / 2**20:,.2f} MiB on each of {processes} processes in place of {before / 2**20:,.2f}"
    return f"the frozen layers are split, {split}; what trains is whole on each"
