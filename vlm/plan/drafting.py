"""A draft for each study: with PyTorch, behind a server, or behind many."""

import math
from dataclasses import dataclass, replace

from vlm.plan.cost import Job
from vlm.plan.gpus import CPU, GB, Machine
from vlm.plan.terms import HOST, Terms, room_of

SHORT = 3600.0
"""Seconds below which drafting with PyTorch is not worth a server."""
LONGEST = 1.5
"""Words of a batch's longest draft against their mean: a batch of PyTorch runs until its longest ends."""
SERVED = 256
"""Most cases that a server drafts together."""
SERVERS = (1, 2, 4, HOST)
"""Devices among which a server shares its weights."""
SERVER_OWN = 2 * GB
"""What a server holds on each device beside weights and keys."""


@dataclass(frozen=True)
class Drafting:
    """A draft for each study."""

    engine: str
    reason: str
    gpus: int
    gpu_hours: float
    wall_hours: float
    pytorch_gpu_hours: float
    vllm_gpu_hours: float


def plan_drafting(job: Job, machine: Machine, terms: Terms) -> Drafting:
    """PyTorch for what is done within the hour, then a server, then many of them."""
    pytorch = terms.studies * pytorch_seconds(job, machine, terms)
    served, shards = vllm_seconds(job, machine, terms)
    server = terms.studies * served
    deadline = 24 * 3600 * terms.days
    if pytorch and (pytorch <= SHORT * (terms.gpus or 1) or not served):
        engine, seconds, devices = "PyTorch", pytorch, terms.gpus or math.ceil(pytorch / deadline)
        reason = "done within the hour: no server to keep" if served else f"no host of {machine.name} holds a server"
    elif served:
        engine, seconds, devices = "vLLM", server, math.ceil((terms.gpus or server / deadline) / shards) * shards
        faster = f"{pytorch / server:.0f} times as fast" if pytorch else f"the weights fit {shards} devices, not one"
        reason = f"{faster}: continuous batches of up to {SERVED}, keys in pages"
        if devices > HOST:
            engine, reason = "vLLM under Ray Data", f"{devices:,} devices are more than one host; {reason}"
    else:
        engine, seconds, devices = "none", 0.0, 0
        reason = f"the weights fit neither one {machine.name} in 4 bits nor a host of {HOST} in 16"
    wall = seconds / max(devices, 1) / 3600
    return Drafting(engine, reason, devices, seconds / 3600, wall, pytorch / 3600, server / 3600)


def pytorch_seconds(job: Job, machine: Machine, terms: Terms, longest: float = LONGEST) -> float:
    """Device seconds a study with `infer.py --input`; 0 where the weights do not fit.

    A batch runs until its longest draft ends.
    """
    cases = job.config.evaluation.batch_size
    words = min(terms.draft_tokens * longest, job.config.evaluation.max_new_tokens)
    keys = cases * (job.tokens.prompt + words) * job.key_bytes(machine)
    if job.memory(machine).weights + keys > room_of(machine):
        return 0.0
    reading = job.prompt_reading(cases, machine).seconds(machine)
    word = job.word(cases, words / 2, machine).seconds(machine, drafts=True)
    return (reading + max(words - 1, 0) * word) / cases


def vllm_seconds(job: Job, machine: Machine, terms: Terms) -> tuple[float, int]:
    """Device seconds a study behind a server with 16-bit weights, and the devices that share them; 0 where none do.

    Its operations are recorded once and replayed, so launching takes no time; cases enter and leave one by one. More
    devices than the weights need leave more room for keys, and so larger batches.
    """
    if machine.name == CPU:
        return 0.0, 0
    server = replace(machine, value_bytes=2, call_s=0)
    found = [(_served_seconds(job, server, terms, shards), shards) for shards in SERVERS]
    return min((pair for pair in found if pair[0]), default=(0.0, 0))


def _served_seconds(job: Job, server: Machine, terms: Terms, shards: int) -> float:
    room = shards * (room_of(server) - SERVER_OWN) - server.value_bytes * job.base.parameters
    cases = min(SERVED, int(room / (job.key_bytes(server) * (job.tokens.prompt + terms.draft_tokens))))
    if cases < 1:
        return 0.0
    llm = replace(job.config.model.llm, quantization="none")
    served = replace(job, config=replace(job.config, model=replace(job.config.model, llm=llm)))
    reading = served.prompt_reading(cases, server).seconds(server)
    word = served.word(cases, terms.draft_tokens / 2, server, copies=False).seconds(server, drafts=True)
    return (reading + terms.draft_tokens * word) / cases
