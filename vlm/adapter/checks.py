"""What is looked at before an adapter leaves the machine: that it is whole, can be loaded, and gives nothing away."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm.adapter.layout import FILES, AdapterConfig, read_config
from vlm.adapter.metadata import is_hub_id
from vlm.errors import UserError
from vlm.weights import is_wheel

PARTS = ("vision.", "vitals.", "joint.", "evidence.")
"""Beginnings of the names in vlm.safetensors."""
TOKEN = re.compile(r"\b(?:hf_|api_org_|gh[pousr]_|sk-|AKIA)[A-Za-z0-9_-]{16,}")
PATH = re.compile(r"(?<![\w/:.)\]])(?:/[\w.@-]+(?:/[\w.@-]+)+|~/[\w.@-]+|[A-Za-z]:\\+\w+)")
"""An absolute path: two names or more after a root, and no part of a URL or of a fraction."""


def check_shareable(folder: Path) -> None:
    """Raise `UserError` for anything that must not or need not be shared, and for a folder that nobody could load.

    Reads the headers of the tensors and not their values.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if others := names - set(FILES):
        raise UserError(f"{folder}: holds {min(others)}, which is no file of an adapter; move it away")
    for name in FILES:
        if name not in names:
            raise UserError(f"{folder}: no {name}; not a complete adapter folder")
    config = read_config(folder)
    _check_tensors(folder)
    _check_sources(folder, config)
    for name in FILES:
        for text in _texts(folder / name):
            _check_text(text, folder / name)


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a safetensors file; raises `UserError` for a broken one."""
    from safetensors import safe_open

    try:
        with safe_open(file, "numpy") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own bare exception type
        raise UserError(f"{file}: broken safetensors file: {error}") from None


def read_lora_config(folder: Path) -> Mapping[str, Any]:
    """adapter_config.json; raises `UserError` if it is not that of a LoRA."""
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if config["peft_type"] != "LORA" or not isinstance(config["r"], int):
            raise ValueError("not a LoRA")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: cannot read the LoRA's config: {error}") from None
    return config  # type: ignore[no-any-return]


def _check_tensors(folder: Path) -> None:
    file, rank = folder / "adapter_model.safetensors", read_lora_config(folder)["r"]
    shapes = read_shapes(file)
    for name, shape in shapes.items():
        layer, _, side = name.removesuffix(".weight").rpartition(".")
        other = f"{layer}.lora_{'B' if side == 'lora_A' else 'A'}.weight"
        if not layer.startswith("base_model.model.") or side not in ("lora_A", "lora_B") or other not in shapes:
            raise UserError(f"{file}: {name} is no part of a LoRA, or its other half is missing")
        if len(shape) != 2 or shape[0 if side == "lora_A" else 1] != rank:
            raise UserError(f"{file}: {name} is {' × '.join(map(str, shape))}, not of the rank {rank} of the config")
    rest = read_shapes(folder / "vlm.safetensors")
    strangers = [name for name in rest if not name.startswith(PARTS)]
    if not shapes or not rest or strangers:
        missing = "adapter_model.safetensors" if not shapes else "vlm.safetensors"
        what = f"{strangers[0]} is no part of an adapter" if strangers else "holds no tensor"
        raise UserError(f"{folder / missing}: {what}")


def _check_sources(folder: Path, config: AdapterConfig) -> None:
    """Nobody else has a base or a CNN that lies in a folder of this machine."""
    base, cnn = config.model.llm.base, config.model.vision.weights
    file = folder / "config.json"
    if not is_wheel(base) and not is_hub_id(base):
        raise UserError(
            f"{file}: the base, {base}, is a folder of this machine; if it is public, write its Hub id as "
            "model.llm.base there and as base_model_name_or_path in adapter_config.json; other weights than those "
            "trained on are refused when it is loaded"
        )
    if cnn not in ("pretrained", "random") and not is_wheel(cnn):
        raise UserError(
            f"{file}: model.vision.weights, {cnn}, is a file of this machine; write random in its place: "
            "the CNN that was trained is in vlm.safetensors"
        )


def _texts(file: Path) -> Iterator[str]:
    """All words of a file: its text, or what the header of a safetensors file says beside names and shapes."""
    if file.suffix != ".safetensors":
        yield file.read_text(encoding="utf-8", errors="replace")
        return
    from safetensors import safe_open

    with safe_open(file, "numpy") as tensors:
        yield json.dumps(tensors.metadata() or {})


def _check_text(text: str, file: Path) -> None:
    if token := TOKEN.search(text):
        raise UserError(f"{file}: holds what looks like a token, {token[0][:6]}…; take it out, and revoke it")
    if path := PATH.search(text):
        raise UserError(f"{file}: names {path[0]}, a path of this machine; take it out")
