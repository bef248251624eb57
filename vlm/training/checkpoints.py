"""A checkpoint: all that a run needs to go on as if it had never stopped, in safetensors and JSON.

trainable.safetensors                  the weights of what trains, and nothing of the frozen base
optimizer.safetensors, optimizer.json  the state of the optimizer: its tensors, and all else
scheduler.json                         the state of the learning rate's schedule
processes.safetensors                  random generators and running sums, one row a process
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

from vlm.atomic import remove_folder, staged, sweep, verify, write_file
from vlm.errors import UserError
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.gradients import all_finite
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
    """Write a checkpoint, complete or not at all; `optimizer` and `scheduler` are their `state_dict`.

    Raises `UserError` for a value that is not finite, and where the disk does not take it.
    """
    tensors, rest = split_tensors(optimizer)
    for title, values in (("weights", weights), ("state of the optimizer", tensors)):
        wrong = next((name for name, value in values.items() if not all_finite(value)), None)
        if wrong:
            raise UserError(f"{folder}: not written: the {title} hold a value that is not finite, in {wrong}")
    with staged(folder) as staging:
        for name, part in ((TRAINABLE, weights), (OPTIMIZER, tensors), (PROCESSES, processes)):
            write_file(staging / name, save({key: _to_save(value) for key, value in part.items()}))
        texts = {OPTIMIZER_REST: rest, SCHEDULER: scheduler, STATE: finite(dict(state))}
        for name, values in texts.items():
            write_file(staging / name, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def read_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint; raises `UserError` unless every file of it is what was written."""
    verify(checkpoint, CHECKPOINT_FILES)
    return load_file(checkpoint / TRAINABLE)


def load_trainable(model: ClinicalVLM, checkpoint: Path) -> None:
    """Put a checkpoint's weights into the model; raises `UserError` if it is not whole or of another model."""
    given = read_weights(checkpoint)
    wanted = model.trainable_parameters()
    different = wanted.keys() ^ given.keys() or {n for n in wanted if wanted[n].shape != given[n].shape}
    if different:
        raise UserError(f"{checkpoint}: tensor {min(different)} does not fit; the config changed since this run began")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(given[name])


def read_optimizer(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `state_dict` of the optimizer and of the schedule, on the CPU, of a checkpoint that `read_weights` took."""
    optimizer = join_tensors(_read_json(checkpoint / OPTIMIZER_REST), load_file(checkpoint / OPTIMIZER))
    optimizer["state"] = {int(number): state for number, state in optimizer["state"].items()}
    return optimizer, _read_json(checkpoint / SCHEDULER)


def read_processes(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What `process_state` gave of each process, P × …"""
    return load_file(checkpoint / PROCESSES)


def prune(checkpoints: Path, step: int, keep: int, best: int | None) -> None:
    """Delete all but the newest `keep` up to a step, and the best one; and what deaths have left.

    Those after the step are no checkpoints of this run: it went on from an earlier one because they are broken.
    """
    steps = [number for number in checkpoints_of(checkpoints) if number <= step]
    for number in set(steps) - set(steps[: max(keep, 1)]) - {best}:
        remove_folder(checkpoint_folder(checkpoints, number))
    sweep(checkpoints)


def split_tensors(values: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], Any]:
    """Nested mappings and lists → their tensors by dotted path, and the same as JSON, with `{"tensor": path}` there."""
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
    """What `split_tensors` took apart; keys are strings, tuples are lists."""
    if isinstance(values, dict):
        if values.keys() == {"tensor"}:
            return tensors[values["tensor"]]
        return {key: join_tensors(value, tensors) for key, value in values.items()}
    return [join_tensors(value, tensors) for value in values] if isinstance(values, list) else values


def process_state(sums: torch.Tensor) -> dict[str, torch.Tensor]:
    """This process's random generators, of Python, NumPy and PyTorch, and its running sums."""
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
    """Put every generator back to what `process_state` saw."""
    has_gauss, gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss if has_gauss else None))
    position, has_second, second = state["numpy_rest"].tolist()
    np.random.set_state(("MT19937", state["numpy"].numpy().astype(np.uint32), int(position), int(has_second), second))
    torch.set_rng_state(state["torch"].clone())  # a row of a larger tensor would be read from that one's beginning
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].clone())


def finite(value: Any) -> Any:
    """The same with null for NaN and infinity, which are no JSON; in nested mappings and lists too."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _to_save(value: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU that shares its memory with no other, as safetensors wants it."""
    return value.detach().to("cpu", copy=True).contiguous()


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
