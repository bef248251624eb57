"""Check an adapter before it is shared: complete, loadable, and without secrets or paths of this machine."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from vlm.adapter.layout import FILES, AdapterConfig, read_config
from vlm.adapter.metadata import is_hub_id
from vlm.adapter.validate import check_files, check_manifest, read_folder
from vlm.atomic import MANIFEST
from vlm.errors import UserError
from vlm.weights import is_wheel

TOKEN = re.compile(r"\b(?:hf_|api_org_|gh[pousr]_|sk-|AKIA)[A-Za-z0-9_-]{16,}")
PATH = re.compile(r"(?<![\w/:.)\]])(?:/[\w.@-]+(?:/[\w.@-]+)+|~/[\w.@-]+|[A-Za-z]:\\+\w+)")
"""Pattern of an absolute path: two or more names after a root, not part of a URL or a fraction."""


def check_shareable(folder: Path) -> None:
    """Raise `UserError` for anything that must not or need not be shared, and for a folder that cannot be loaded.

    Reads the headers of the tensors, not their values.
    """
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if others := names - set(FILES):
        raise UserError(f"{folder}: holds {min(others)}, which is no file of an adapter; move it away")
    if names >= set(FILES) - {MANIFEST} and MANIFEST not in names:
        raise UserError(f"{folder}: no {MANIFEST}; `clinical-vlm seal {folder}` writes it")
    for name in FILES:
        if name not in names:
            raise UserError(f"{folder}: no {name}; not a complete adapter folder")
    check_files(folder)
    config = read_config(folder)
    _check_sources(folder, config)
    read_folder(folder, config)
    for name in FILES:
        for text in _texts(folder / name):
            _check_text(text, folder / name)
    check_manifest(folder)


def _check_sources(folder: Path, config: AdapterConfig) -> None:
    """Raise `UserError` for a base or a CNN in a local folder, which nobody else has."""
    base, cnn = config.model.llm.base, config.model.vision.weights
    file = folder / "config.json"
    seal = f"and `clinical-vlm seal {folder}`"
    if not is_wheel(base) and not is_hub_id(base):
        raise UserError(
            f"{file}: the base, {base}, is a folder of this machine; if it is public, write its Hub id as "
            f"model.llm.base there and as base_model_name_or_path in adapter_config.json, {seal}; other weights than "
            "those trained on are refused when it is loaded"
        )
    if cnn not in ("pretrained", "random") and not is_wheel(cnn) and not cnn.startswith("hf-hub:"):
        raise UserError(
            f"{file}: model.vision.weights, {cnn}, is a file of this machine; write random in its place, {seal}: "
            "the CNN that was trained is in vlm.safetensors"
        )


def _texts(file: Path) -> Iterator[str]:
    """Yield the text of a file, or the metadata of a safetensors file."""
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
