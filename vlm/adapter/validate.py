"""Validate an untrusted adapter folder, and read its configs and tensor headers, before weights take memory.

Its files must be regular files inside the folder. Its JSON must be small, flat and without duplicate keys. Its tensors
must be those of an adapter.
"""

import re
import stat
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from vlm.adapter.layout import FILES, REQUIRED, AdapterConfig, read_config
from vlm.atomic import MANIFEST, verify_manifest, write_manifest
from vlm.cache import cache_folder
from vlm.config import LLMConfig, ModelConfig
from vlm.errors import UserError
from vlm.model.bases.lora_settings import layer_of, rank_of
from vlm.plain import shortened
from vlm.untrusted import LARGEST_TEXT, read_json
from vlm.weights import is_wheel

LARGEST_HEADER = 8 << 20
"""Most bytes of a safetensors header; the library itself accepts 100 MB."""
LARGEST_TENSORS = 8 << 30
"""Most bytes of a safetensors file, which is hashed on load."""
PARTS = ("vision.", "vitals.", "signal.", "joint.", "evidence.", "familiarity.")
"""Prefixes of the tensor names in vlm.safetensors."""
FETCHED = "adapters"
"""Folder of the cache with the adapters of release files."""
HUB_ID = re.compile(r"\w[\w-]*(\.[\w-]+)*(/\w[\w-]*(\.[\w-]+)*)?")
TENSOR_NAME = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)
DTYPES = ("F64", "F32", "F16", "BF16", "I64")
"""Allowed dtypes of an adapter's tensors."""

Shapes = dict[str, tuple[int, ...]]
"""Tensor name → shape."""


class AdapterFolder(NamedTuple):
    """Hold a checked adapter folder, its config and the shapes of its tensors, without their values."""

    path: Path
    config: AdapterConfig
    lora: Shapes
    """Shapes in adapter_model.safetensors."""
    rest: Shapes
    """Shapes in vlm.safetensors."""


def check_files(folder: Path) -> None:
    """Raise `UserError` unless a folder holds the files of an adapter, as plain files inside it, and no others.

    Hidden files, such as those of git, are ignored: they are never read.
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
    """Raise `UserError` for a file that does not match the manifest, but the card, which is edited on the Hub's page.

    It detects damage and mixed files of two adapters; after an intended change the folder can be sealed again.
    """
    if (folder / MANIFEST).is_file():
        verify_manifest(folder, REQUIRED, editable=("README.md",))
        return
    config = read_json(folder / "config.json", "the adapter's config")
    if isinstance(config, dict) and config.get("sealed"):
        raise UserError(f"{folder}: no {MANIFEST}, which was saved with it; not a complete adapter folder")
    _warn_no_manifest(folder)


def rewrite_manifest(folder: Path) -> Path:
    """Write the manifest of an adapter as it is now; raises `UserError` where it could not be loaded."""
    check_files(folder)
    read_folder(folder)
    write_manifest(folder)
    return folder / MANIFEST


@cache  # once per folder
def _warn_no_manifest(folder: Path) -> None:
    what = f"{folder}: saved by an earlier version, without a {MANIFEST} to check it against"
    print(f"{what}; `clinical-vlm seal {folder}` writes one", file=sys.stderr)


def check_sources(folder: Path, config: ModelConfig, given_base: bool = False) -> None:
    """Raise `UserError` if a fetched adapter names local files as base or CNN."""
    sources = {} if given_base else {"model.llm.base": config.llm.base}
    if config.vision.weights not in ("pretrained", "random") and not config.vision.weights.startswith("hf-hub:"):
        sources["model.vision.weights"] = config.vision.weights
    for key, source in sources.items():
        on_hub = key == "model.llm.base" and HUB_ID.fullmatch(source)
        if is_fetched(folder.resolve()) and not is_wheel(source) and not on_hub:
            way_out = "name your own copy with --base" if key == "model.llm.base" else "its authors must share it again"
            raise UserError(f"{folder / 'config.json'}: {key}: {shortened(source)} is a path of a machine; {way_out}")


def is_fetched(folder: Path) -> bool:
    """Check whether a folder was fetched, so is untrusted: a snapshot in the Hub's cache, or a release in ours."""
    from_hub = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return from_hub or folder.parent == (cache_folder() / FETCHED).resolve()


def _check_file(file: Path) -> None:
    home = file.parent.resolve()
    try:
        real = file.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError):  # a broken link or a loop
        raise UserError(f"{file}: is a link that leads nowhere") from None
    blobs = home.parent.parent / "blobs"  # target of the links of a snapshot in the Hub's cache
    if real.parent != home and not (is_fetched(home) and real.parent == blobs):
        raise UserError(f"{file}: is a link that leads out of the folder; put the file itself in its place")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{file}: is no plain file")
    largest = largest_size(file.name)
    if status.st_size > largest:
        raise UserError(f"{file}: larger than {largest >> 20:,} MiB")


def largest_size(name: str) -> int:
    """Get the size limit of an adapter's file, bytes."""
    return LARGEST_TENSORS if name.endswith(".safetensors") else LARGEST_TEXT


def read_folder(folder: Path, config: AdapterConfig | None = None) -> AdapterFolder:
    """Read the configs and the tensor headers of an adapter folder, before the base is fetched and loaded.

    Raises `UserError` where they are inconsistent, and for tensors that no adapter has.
    """
    config = config or read_config(folder)
    check_lora_config(folder / "adapter_config.json", config.model.llm)
    lora_file, rest_file = folder / "adapter_model.safetensors", folder / "vlm.safetensors"
    opened = AdapterFolder(folder, config, read_header(lora_file), read_header(rest_file))
    for file, shapes in ((lora_file, opened.lora), (rest_file, opened.rest)):
        if not shapes:
            raise UserError(f"{file}: holds no tensor")
    _check_lora(lora_file, opened.lora, config.model.llm)
    for name in opened.rest:
        if not name.startswith(PARTS):
            raise UserError(f"{rest_file}: {name} is no part of an adapter")
    return opened


def _check_lora(file: Path, shapes: Shapes, llm: LLMConfig) -> None:
    """Raise `UserError` unless the tensors are A and B of LoRA layers, each of its rank, with DoRA's norms if it is."""
    for name, shape in shapes.items():
        layer, side = layer_of(name), name.removesuffix(".weight").rpartition(".")[2]
        start = f"base_model.model.{layer}"
        sides = {"lora_A": f"{start}.lora_A.weight", "lora_B": f"{start}.lora_B.weight"}
        sides |= {"lora_magnitude_vector": f"{start}.lora_magnitude_vector"} if llm.use_dora else {}
        if sides.get(side) != name or not all(tensor in shapes for tensor in sides.values()):
            raise UserError(f"{file}: {name} is no part of a LoRA, or its other half is missing")
        rank = rank_of(llm, layer)
        if side == "lora_magnitude_vector":
            if len(shape) != 1:
                raise UserError(f"{file}: {name} is {' × '.join(map(str, shape))}, not one number a row")
        elif len(shape) != 2 or shape[0 if side == "lora_A" else 1] != rank:
            raise UserError(f"{file}: {name} is {' × '.join(map(str, shape))}, not of the rank {rank} of the config")


def read_header(file: Path) -> Shapes:
    """Read the names and shapes of the tensors in a safetensors file, none of their values.

    The library refuses overlaps, gaps and sizes that do not fit the file. Raises `UserError` that names the file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with file.open("rb") as read:
            length = int.from_bytes(read.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        with safe_open(file, "pt") as tensors:
            headers = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            for name, header in headers.items():
                if not TENSOR_NAME.fullmatch(name):
                    raise ValueError(f"{shortened(name)} is no name of a tensor")
                if header.get_dtype() not in DTYPES:
                    raise ValueError(f"tensor {name}: dtype {header.get_dtype()} is none of {', '.join(DTYPES)}")
            return {name: tuple(header.get_shape()) for name, header in headers.items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{file}: broken safetensors file: {error}") from None


def check_lora_config(file: Path, llm: LLMConfig) -> None:
    """Check that adapter_config.json is what PEFT writes for the LoRA of config.json.

    Our own model is built from config.json alone; this file is for other programs. Raises `UserError` that names the
    key: custom classes, patterns and further modules are not allowed.
    """
    values = read_json(file, "the LoRA's config")
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise UserError(f"{file}: cannot read the LoRA's config: not a LoRA")
    written = _written(llm)
    for key, wanted in written.items():
        given = values.get(key)
        if key == "target_modules" and _are_names(given):
            given = sorted(given)
        if not _same(given, wanted):
            raise UserError(f"{file}: {key}: {shortened(str(given))} is not what config.json says, {wanted}")
    for key in sorted(values.keys() - written.keys()):
        if not _is_default(key, values[key]):
            raise UserError(f"{file}: {key}: {shortened(str(values[key]))} has no place in an adapter of ours")


def _written(llm: LLMConfig) -> dict[str, Any]:
    """Give the options of PEFT that an adapter sets."""
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
    variant = {name: getattr(llm, name) for name in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")}
    written |= {name: value for name, value in variant.items() if value}
    return written if llm.lora_targets == ["all-linear"] else written | {"target_modules": sorted(llm.lora_targets)}


def _same(given: Any, wanted: Any) -> bool:
    """Compare JSON values; true is not 1."""
    if isinstance(given, dict) and isinstance(wanted, dict):
        return given.keys() == wanted.keys() and all(_same(given[key], wanted[key]) for key in wanted)
    return bool(given == wanted) and isinstance(given, bool) == isinstance(wanted, bool)


def _are_names(values: Any) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(v, str) and re.fullmatch(r"[\w.-]{1,100}", v) for v in values)


DEFAULTS = {
    "init_lora_weights": True,
    "inference_mode": True,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}
"""Non-empty values that PEFT writes for options that we do not set."""


def _is_default(key: str, value: Any) -> bool:
    """Check whether an option has PEFT's default value."""
    if key == "target_modules":  # for all-linear PEFT writes the names
        return _are_names(value)
    if key == "fan_in_fan_out":  # true for GPT-2's layers, whose weights are transposed
        return isinstance(value, bool)
    if key == "peft_version":
        return isinstance(value, str) and len(value) < 40
    if not value or DEFAULTS.get(key) == value:
        return True
    from peft import LoraConfig  # a later version may have further options; the import takes a second

    return getattr(LoraConfig(), key, None) == value
