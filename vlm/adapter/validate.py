"""Reading what a stranger may have written: nothing is believed, and no memory is given to it, before it was judged.

An adapter comes from whoever shares one. Its files must be plain files inside its folder, its JSON small, flat and
without a second value for a key, its tensors where their header says and of the sizes that it says.
"""

import math
import re
import stat
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from vlm.adapter.layout import FILES, REQUIRED, read_config
from vlm.atomic import MANIFEST, seal, verify
from vlm.config import LLMConfig, ModelConfig
from vlm.errors import UserError
from vlm.plain import shortened
from vlm.untrusted import LARGEST_TEXT, parse_json, read_json
from vlm.weights import is_wheel

LARGEST_HEADER = 8 << 20
"""Bytes of what stands before the tensors of a safetensors file."""
LARGEST_TENSORS = 8 << 30
"""Bytes of such a file, which is hashed when it is loaded."""
MOST_TENSORS = 50_000
"""In one file."""
PARTS = ("vision.", "vitals.", "joint.", "evidence.")
"""Beginnings of the names in vlm.safetensors."""
HUB_ID = re.compile(r"\w[\w-]*(\.[\w-]+)*(/\w[\w-]*(\.[\w-]+)*)?")
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
"""Of one value of each type that our tensors may have."""


class TensorEntry(NamedTuple):
    """What a header says of a tensor."""

    shape: tuple[int, ...]
    begin: int
    end: int
    """Its bytes, counted from the end of the header."""


def check_files(folder: Path) -> None:
    """Raise `UserError` unless a folder holds the files of an adapter, as plain files inside it, and no others.

    Hidden files, such as those of git, are nobody's business: they are never read.
    """
    try:
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from None
    for name in REQUIRED:
        if name not in names:
            raise UserError(f"{folder}: no {name}; not a complete adapter folder")
    if others := names - set(FILES):
        raise UserError(f"{folder}: holds {min(others)!r}, which is no file of an adapter; move it away")
    for name in names:
        _check_file(folder / name)


def check_manifest(folder: Path) -> None:
    """Raise `UserError` for a file that is not what was saved. The card may be edited: people do so on the Hub's page.

    It tells damage, and files of two adapters that were mixed; whoever changes a file on purpose can seal it again.
    """
    if (folder / MANIFEST).is_file():
        verify(folder, REQUIRED, editable=("README.md",))
        return
    config = read_json(folder / "config.json", "the adapter's config")
    if isinstance(config, dict) and config.get("sealed"):
        raise UserError(f"{folder}: no {MANIFEST}, which was saved with it; not a complete adapter folder")
    _say_unsealed(folder)


def seal_folder(folder: Path) -> Path:
    """Write the manifest of an adapter as it is now; raises `UserError` where it could not be loaded."""
    check_files(folder)
    check_tensors(folder)
    seal(folder)
    return folder / MANIFEST


@cache
def _say_unsealed(folder: Path) -> None:
    """Said once of a folder, however often it is looked at."""
    what = f"{folder}: saved by an earlier version, without a {MANIFEST} to check it against"
    print(f"{what}; `clinical-vlm seal {folder}` writes one", file=sys.stderr)


def check_sources(folder: Path, config: ModelConfig, given_base: bool = False) -> None:
    """Raise `UserError` where somebody else's adapter names files of this machine to be read as base or CNN."""
    sources = {} if given_base else {"model.llm.base": config.llm.base}
    if config.vision.weights not in ("pretrained", "random"):
        sources["model.vision.weights"] = config.vision.weights
    for key, source in sources.items():
        on_hub = key == "model.llm.base" and HUB_ID.fullmatch(source)
        if is_fetched(folder.resolve()) and not is_wheel(source) and not on_hub:
            way_out = "name your own copy with --base" if key == "model.llm.base" else "its authors must share it again"
            raise UserError(f"{folder / 'config.json'}: {key}: {shortened(source)} is a path of a machine; {way_out}")


def is_fetched(folder: Path) -> bool:
    """Whether a folder is a snapshot in the Hub's cache: somebody else's."""
    return folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")


def _check_file(file: Path) -> None:
    home = file.parent.resolve()
    try:
        real = file.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError):  # a link to nothing, or one that leads to itself
        raise UserError(f"{file}: is a link that leads nowhere") from None
    blobs = home.parent.parent / "blobs"  # where the links of a snapshot in the Hub's cache lead
    if real.parent != home and not (is_fetched(home) and real.parent == blobs):
        raise UserError(f"{file}: is a link that leads out of the folder; put the file itself in its place")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{file}: is no plain file")
    largest = largest_size(file.name)
    if status.st_size > largest:
        raise UserError(f"{file}: larger than {largest >> 20:,} MiB")


def largest_size(name: str) -> int:
    """Bytes that a file of an adapter may have."""
    return LARGEST_TENSORS if name.endswith(".safetensors") else LARGEST_TEXT


def check_tensors(folder: Path) -> None:
    """Raise `UserError` for tensors that no LoRA has or that their files do not hold; reads headers alone.

    It costs milliseconds and stands before the base is fetched and loaded.
    """
    rank = read_lora_config(folder)["r"]
    file = folder / "adapter_model.safetensors"
    lora = read_header(file)
    for name, (shape, *_) in lora.items():
        layer, _, side = name.removesuffix(".weight").rpartition(".")
        other = f"{layer}.lora_{'B' if side == 'lora_A' else 'A'}.weight"
        if not layer.startswith("base_model.model.") or side not in ("lora_A", "lora_B") or other not in lora:
            raise UserError(f"{file}: {name} is no part of a LoRA, or its other half is missing")
        if len(shape) != 2 or shape[0 if side == "lora_A" else 1] != rank:
            raise UserError(f"{file}: {name} is {' × '.join(map(str, shape))}, not of the rank {rank} of the config")
    rest = read_header(folder / "vlm.safetensors")
    for name in rest:
        if not name.startswith(PARTS):
            raise UserError(f"{folder / 'vlm.safetensors'}: {name} is no part of an adapter")
    for name, tensors in (("adapter_model.safetensors", lora), ("vlm.safetensors", rest)):
        if not tensors:
            raise UserError(f"{folder / name}: holds no tensor")


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Name → entry of every tensor of a safetensors file, which must fill the file without a gap.

    Reads the header alone. Raises `UserError` that names the file and the tensor for anything else.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as read:
            length = int.from_bytes(read.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header = parse_json(read.read(length), MOST_TENSORS)
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        header.pop("__metadata__", None)
        entries = {name: _entry(name, value) for name, value in header.items()}
        _check_layout(entries, size - 8 - length)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: broken safetensors file: {error}") from None
    return entries


def read_lora_config(folder: Path) -> Mapping[str, Any]:
    """adapter_config.json, which must be what PEFT writes for the LoRA of config.json.

    Our own model is built from config.json alone; this file is for other programs. Raises `UserError` that names the
    key: custom classes, patterns and further modules have no place in it.
    """
    file = folder / "adapter_config.json"
    values = read_json(file, "the LoRA's config")
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise UserError(f"{file}: cannot read the LoRA's config: not a LoRA")
    llm = read_config(folder).model.llm
    written = _written(llm)
    for key, wanted in written.items():
        given = values.get(key)
        if key == "target_modules" and _are_names(given):
            given = sorted(given)
        if given != wanted:
            raise UserError(f"{file}: {key}: {shortened(str(given))} is not what config.json says, {wanted}")
    for key in sorted(values.keys() - written.keys()):
        if not _is_default(key, values[key]):
            raise UserError(f"{file}: {key}: {shortened(str(values[key]))} has no place in an adapter of ours")
    return values


def _written(llm: LLMConfig) -> dict[str, Any]:
    """What differs from PEFT's defaults."""
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": llm.base,
        "revision": llm.revision,
        "r": llm.lora_rank,
        "lora_alpha": llm.lora_alpha,
        "lora_dropout": llm.lora_dropout,
        "bias": "none",
    }
    return written if llm.lora_targets == ["all-linear"] else written | {"target_modules": sorted(llm.lora_targets)}


def _are_names(values: Any) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(v, str) and re.fullmatch(r"[\w.-]{1,100}", v) for v in values)


DEFAULTS = {
    "init_lora_weights": True,
    "inference_mode": True,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}
"""What PEFT writes of options that we leave alone, where it is not nothing."""


def _is_default(key: str, value: Any) -> bool:
    """Whether an option is as PEFT leaves it."""
    if key == "target_modules":  # of all linear layers PEFT writes the names
        return _are_names(value)
    if key == "fan_in_fan_out":  # true for GPT-2's layers, whose weights lie the other way
        return isinstance(value, bool)
    if key == "peft_version":
        return isinstance(value, str) and len(value) < 40
    if not value or DEFAULTS.get(key) == value:
        return True
    from peft import LoraConfig  # a later version may have further options; to import it takes a second

    return getattr(LoraConfig(), key, None) == value


def _entry(name: str, value: Any) -> TensorEntry:
    where = f"tensor {shortened(name)}"
    if not name.replace(".", "").replace("_", "").replace("-", "").isalnum() or ".." in name:
        raise ValueError(f"{where}: no name of a tensor")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where}: is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BYTES:
        raise ValueError(f"{where}: dtype {shortened(str(dtype))} is none of {', '.join(BYTES)}")
    for key, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers) or len(numbers) > 8:
            raise ValueError(f"{where}: {key} is no list of sizes")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * BYTES[dtype]:
        raise ValueError(f"{where}: {' × '.join(map(str, shape))} values of {dtype} do not fill data_offsets {offsets}")
    return TensorEntry(tuple(shape), *offsets)


def _check_layout(entries: Mapping[str, TensorEntry], size: int) -> None:
    """Raise `ValueError` unless the tensors stand one behind the other from the first to the last byte."""
    place = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][1:]):
        if entry.begin != place:
            raise ValueError(f"tensor {name}: data_offsets begin at {entry.begin:,}, not at {place:,}")
        place = entry.end
    if place != size:
        raise ValueError(f"its tensors end at byte {place:,} of {size:,}")
