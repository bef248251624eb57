"""A plan: how long, on how many devices, with which engine, and what must be stored and sent."""

import math
from dataclasses import dataclass, replace

from vlm.plan.cost import Job
from vlm.plan.drafting import Drafting, plan_drafting
from vlm.plan.gpus import GB, Machine
from vlm.plan.terms import HOST, Terms, room_of
from vlm.training.memory import CUDA_CONTEXT

NETWORK = 400e9 / 8
"""Bytes a second between two hosts, shared by the devices of one."""
READ_LATENCY, READERS = 0.02, 32
"""Seconds to open one object of a store, and how many are opened at once by a device's readers."""
SHARD_ROWS = 1000
"""Studies in a Parquet shard."""
TRAINED_STATE = 12
"""Bytes of a trained value in a checkpoint: itself and the two states of AdamW, in fp32."""
DRAFT_BYTES = 1024
"""Of one line of a table of drafts."""
SHARDS = (2, 4, 8, 16, 32, 64)
"""Devices among which FSDP shares the weights."""


@dataclass(frozen=True)
class Training:
    """Training on `gpus` devices."""

    engine: str
    reason: str
    gpus: int
    micro_batch: int
    gpu_hours: float
    wall_hours: float
    memory_gb: float
    """Of one device."""
    fits: bool
    step_s: float
    reader_cores: float
    """CPU cores that keep one device fed."""
    sent_gb: float
    """Between devices, all of them and all steps."""


@dataclass(frozen=True)
class Data:
    """Bytes stored and read; GB are 10^9."""

    images_gb: float
    features_gb: float
    checkpoints_gb: float
    adapter_gb: float
    drafts_gb: float
    read_gb: float
    """From where the images lie, in all epochs."""
    loose_reads: float
    """Files opened, one image each."""
    packed_reads: float
    """Shards opened."""
    loose_hours: float
    """That opening loose files alone takes one device's readers from an object store."""


@dataclass(frozen=True)
class Plan:
    """All of it."""

    base: str
    gpu: str
    studies: float
    epochs: float
    trainable: int
    training: Training
    drafting: Drafting
    data: Data
    notes: tuple[str, ...]


def make_plan(job: Job, machine: Machine, terms: Terms) -> Plan:
    """Plan a job on machines of one kind."""
    training, notes = plan_training(job, machine, terms)
    drafting = plan_drafting(job, machine, terms)
    if training.reader_cores > terms.cores:
        notes.append(
            f"{training.reader_cores:.0f} CPU cores a device decode as fast as it learns, {terms.cores} are there: "
            "the readers set the pace"
        )
    return Plan(job.base.name, machine.name, terms.studies, terms.epochs, job.trainable, training, drafting,
                plan_data(job, terms, training.gpus), tuple(notes))  # fmt: skip


# ---------------------------------------------------------------------------------------- training


def plan_training(job: Job, machine: Machine, terms: Terms) -> tuple[Training, list[str]]:
    """The fewest devices on which the job fits and ends in time, or as many as were asked for."""
    micro = largest_micro_batch(job, machine, job.config.train.micro_batch_size)
    shards = 1 if micro else smallest_sharding(job, machine)
    micro = micro or _sharded_micro_batch(job, machine, shards)
    fewest = terms.gpus or shards or 1
    found = training_on(job, machine, terms, fewest, micro, sharded=shards != 1)
    while terms.gpus is None and shards and found.wall_hours > 24 * terms.days and found.gpus < 2**20:
        found = training_on(job, machine, terms, 2 * found.gpus, micro, sharded=shards != 1)
    batch, notes = job.config.train.batch_size, []
    if found.gpus > batch:
        notes.append(
            f"{found.gpus:,} devices learn {found.gpus * found.micro_batch:,} cases a step, not the {batch} of "
            "train.batch_size: another training, whose rates want tuning"
        )
    if micro < job.config.train.micro_batch_size:
        notes.append(f"train.micro_batch_size {micro}: {job.config.train.micro_batch_size} cases do not fit")
    work, larger = job.micro_batch(found.micro_batch, machine), largest_micro_batch(job, machine, batch // found.gpus)
    if machine.overlaps and larger > found.micro_batch and work.calls * machine.call_s >= work.seconds(machine):
        notes.append(
            f"launching the operations takes longer than the operations: raise train.micro_batch_size, {larger} fit"
        )
    engine, reason = _engine(found, machine, terms, shards)
    return replace(found, engine=engine, reason=reason, fits=bool(shards) and found.gpus >= shards), notes


def _engine(found: Training, machine: Machine, terms: Terms, shards: int) -> tuple[str, str]:
    """The engine of a training and why it is the right one."""
    if not shards:
        return "none", f"one case does not fit even {SHARDS[-1]} {machine.name} in shards"
    if shards > 1:
        return "FSDP-QLoRA", f"one case does not fit one {machine.name}; its weights in {shards} shards do"
    if found.gpus == 1:
        return "one device", "as asked" if terms.gpus else f"it fits and ends within {terms.days:g} days"
    why = "as asked" if terms.gpus else f"one device would take longer than {terms.days:g} days"
    return "DDP", f"it fits each device, and only what trains is sent; {why}"


def largest_micro_batch(job: Job, machine: Machine, most: int) -> int:
    """The cases, of `most`, that fit one device at once; 0 where one does not."""
    memory, room = job.memory(machine), room_of(machine)
    return next((n for n in range(most, 0, -1) if memory.peak(n) <= room), 0)


def smallest_sharding(job: Job, machine: Machine) -> int:
    """Devices among which the weights must be shared for one case to fit; 0 where all are too few."""
    return next((n for n in SHARDS if _sharded_memory(job, machine, n, 1) <= room_of(machine)), 0)


def _sharded_micro_batch(job: Job, machine: Machine, shards: int) -> int:
    most, room = job.config.train.micro_batch_size, room_of(machine)
    return next((n for n in range(most, 1, -1) if shards and _sharded_memory(job, machine, shards, n) <= room), 1)


def _sharded_memory(job: Job, machine: Machine, devices: int, cases: int) -> float:
    """A device's share of the weights and of what trains, one layer and one table of words whole, and its cases."""
    memory, base = job.memory(machine), job.base
    whole = (base.linear / base.layers + base.vocabulary * base.hidden) * machine.value_bytes
    return (memory.weights + memory.training) / devices + memory.fixed + whole + cases * memory.case


def training_on(job: Job, machine: Machine, terms: Terms, devices: int, micro: int, sharded: bool) -> Training:
    """Time and memory on so many devices; the engine is for the caller to name."""
    train = job.config.train
    steps = max(1.0, terms.studies * terms.epochs / train.batch_size)
    text_share = max(0.0, 1 - job.config.loss.head_only_steps / steps)
    batch = train.batch_size if devices <= train.batch_size else devices * micro  # a note asks for the larger one
    micro = min(micro, batch // devices)
    passes = math.ceil(batch / (micro * devices))
    text, plain = (job.micro_batch(micro, machine, text=t).seconds(machine) for t in (True, False))
    gathered = sharded_bytes(job, machine, devices) if sharded else 0.0
    text = max(text, gathered / _link(machine, devices))  # the next layer is fetched while one computes
    reduced = 2 * (devices - 1) / devices * 4 * job.trainable
    compute = passes * (text_share * text + (1 - text_share) * plain) + job.update().seconds(machine)
    step = compute + reduced / _link(machine, devices)
    decode = 0.0 if job.keeps_features else terms.decode_s
    paced = max(step, decode * passes * micro / terms.cores)
    count = steps * train.batch_size / batch
    once = _features_seconds(job, machine, terms) / devices
    wall = count * paced + once
    memory = _sharded_memory(job, machine, devices, micro) if sharded else job.memory(machine).peak(micro)
    return Training(
        engine="", reason="", gpus=devices, micro_batch=micro, gpu_hours=wall * devices / 3600, wall_hours=wall / 3600,
        memory_gb=(memory + CUDA_CONTEXT) / GB, fits=True, step_s=paced,
        reader_cores=decode * passes * micro / step,
        sent_gb=count * devices * (reduced + passes * gathered) / GB,
    )  # fmt: skip


def sharded_bytes(job: Job, machine: Machine, devices: int) -> float:
    """Bytes that a device receives for a micro batch: the whole base, packed, forwards and backwards."""
    return 2 * job.memory(machine).weights * (devices - 1) / devices


def _link(machine: Machine, devices: int) -> float:
    """Bytes a second that one device sends: to its host's others, or to other hosts through their network."""
    return machine.link if devices <= HOST else min(machine.link, NETWORK / HOST)


def _features_seconds(job: Job, machine: Machine, terms: Terms) -> float:
    """The one pass of a frozen CNN whose features are kept; the images are decoded meanwhile."""
    if not job.keeps_features:
        return 0.0
    computed = job.image(terms.studies, machine, learns=False).seconds(machine)
    return max(computed, terms.studies * terms.decode_s / terms.cores)


# -------------------------------------------------------------------------------------------- data


def plan_data(job: Job, terms: Terms, devices: int) -> Data:
    """Bytes and openings; a frozen CNN whose features are kept reads the images once."""
    vision, passes = job.config.model.vision, 1.0 if job.keeps_features else terms.epochs
    features = 4 * job.cnn.channels * (vision.grid**2 + vision.summary_grid**2) * terms.studies
    checkpoint = TRAINED_STATE * job.trainable * (job.config.train.keep_checkpoints + 1)  # and the best one
    loose = terms.studies * passes
    return Data(
        images_gb=terms.studies * terms.study_bytes / GB,
        features_gb=features / GB if job.keeps_features else 0.0,
        checkpoints_gb=checkpoint / GB,
        adapter_gb=4 * job.trainable / GB,
        drafts_gb=terms.studies * DRAFT_BYTES / GB,
        read_gb=loose * terms.study_bytes / GB,
        loose_reads=loose,
        packed_reads=math.ceil(terms.studies / SHARD_ROWS) * passes,
        loose_hours=loose * READ_LATENCY / READERS / devices / 3600,
    )
