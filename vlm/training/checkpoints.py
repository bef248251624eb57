"""Write and read checkpoints, from which a run resumes exactly, in safetensors and JSON.

trainable.safetensors                  the trainable weights, without the frozen base
optimizer.safetensors, optimizer.json  the optimizer state: its tensors, and all else
scheduler.json                         the state of the learning-rate schedule
processes.safetensors                  random states and running sums, one row a process
trainer_state.json                     step, epoch, best checkpoint and the log so far; see `vlm.training.state`
manifest.json                          size and SHA-256 of each file; see `vlm.atomic`
"""

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save

from vlm.atomic import remove_folder, remove_leftovers, staged, verify_manifest, write_file
from vlm.errors import UserError
from vlm.finite import first_nonfinite
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.run_folder import CHECKPOINT_FILES, checkpoint_folder, checkpoints_of

TRAINABLE, OPTIMIZER, OPTIMIZER_REST, SCHEDULER, PROCESSES, STATE = CHECKPOINT_FILES

Tensors = Mapping[str, torch.Tensor]


def write_checkpoint(
    folder: Path,
    weights: Tensors,
    optimizer: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    processes: Tensors,
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint in an atomic write; `optimizer` and `scheduler` are their `state_dict`.

    Raises `UserError` for a value that is not finite, and if the disk write fails.
    """
    tensors, rest = split_tensors(optimizer)
    for title, values in (("weights", weights), ("state of the optimizer", tensors)):
        if wrong := first_nonfinite(values):
            raise UserError(f"{folder}: not written: the {title} hold a value that is not finite, in {wrong}")
    with staged(folder) as staging:
        for name, part in ((TRAINABLE, weights), (OPTIMIZER, tensors), (PROCESSES, processes)):
            write_file(staging / name, save({key: _to_save(value) for key, value in part.items()}))
        texts = {OPTIMIZER_REST: rest, SCHEDULER: scheduler, STATE: finite(dict(state))}
        for name, values in texts.items():
            write_file(staging / name, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint; raises `UserError` unless every file matches the manifest."""
    verify_manifest(checkpoint, CHECKPOINT_FILES)
    return load_file(checkpoint / TRAINABLE)


def load_trainable(model: ClinicalVLM, checkpoint: Path) -> None:
    """Load a checkpoint's weights into the model; raises `UserError` if it is not whole or of another model."""
    given = read_weights(checkpoint)
    wanted = model.trainable_parameters()
    different = wanted.keys() ^ given.keys() or {n for n in wanted if wanted[n].shape != given[n].shape}
    if different:
        raise UserError(f"{checkpoint}: tensor {min(different)} does not fit; the config changed since this run began")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(given[name])


def read_optimizer(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the `state_dict` of optimizer and schedule, on the CPU; `read_weights` must have checked the checkpoint."""
    optimizer = join_tensors(_read_json(checkpoint / OPTIMIZER_REST), load_file(checkpoint / OPTIMIZER))
    optimizer["state"] = {int(number): state for number, state in optimizer["state"].items()}
    return optimizer, _read_json(checkpoint / SCHEDULER)


def read_processes(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read the `process_state` of each process, P × …"""
    return load_file(checkpoint / PROCESSES)


def prune(checkpoints: Path, step: int, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` checkpoints up to a step and the best one, and leftover temporary folders.

    Checkpoints after the step are not counted: the run resumed from an earlier one because they are broken.
    """
    steps = [number for number in checkpoints_of(checkpoints) if number <= step]
    for number in set(steps) - set(steps[: max(keep, 1)]) - {best}:
        remove_folder(checkpoint_folder(checkpoints, number))
    remove_leftovers(checkpoints)


def split_tensors(values: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], Any]:
    """Split nested values into tensors by dotted path, and JSON with `{"tensor": path}` in their place."""
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[path] = value
            return {"tensor": path}
        if isinstance(value, Mapping):
            return {str(key): walk(item, f"{path}.{key}") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [walk(item, f"{path}.{number}") for number, item in enumerate(value)]
        return value

    return tensors, {key: walk(value, key) for key, value in values.items()}


def join_tensors(values: Any, tensors: Tensors) -> Any:
    """Invert `split_tensors`; keys become strings, tuples become lists."""
    if isinstance(values, dict):
        if values.keys() == {"tensor"}:
            return tensors[values["tensor"]]
        return {key: join_tensors(value, tensors) for key, value in values.items()}
    return [join_tensors(value, tensors) for value in values] if isinstance(values, list) else values


def process_state(sums: torch.Tensor) -> dict[str, torch.Tensor]:
    """Collect this process's random states, of Python, NumPy and PyTorch, and its running sums."""
    _, words, gauss = random.getstate()
    numpy = cast(dict[str, Any], np.random.get_state(legacy=False))
    return {
        "python": torch.tensor(words),  # 625
        "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),  # 624
        "numpy_rest": torch.tensor([numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
        **({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}),  # of its own device
        "sums": sums.detach().cpu().double(),
    }


def set_random_state(state: Tensors) -> None:
    """Restore every random generator from a `process_state`."""
    has_gauss, gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss if has_gauss else None))
    position, has_second, second = state["numpy_rest"].tolist()
    np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), int(position), int(has_second), second))
    torch.set_rng_state(state["torch"].clone())  # a view would be read from the start of its storage
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].clone())


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None, also in nested dicts and lists."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_save(value: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to contiguous CPU memory that no other tensor shares, as safetensors requires."""
    return value.detach().to("cpu", copy=True).contiguous()


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
