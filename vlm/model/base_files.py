"""The files of a base model: one digest of all its weights, however they are spread over files."""

import hashlib
import json
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from vlm.cache import remembered
from vlm.untrusted import parse_json

MOST_TENSORS = 1_000_000
LARGEST_HEADER = 100 << 20
"""Bytes, as safetensors has it."""


def base_digest(base: str, revision: str | None) -> str:
    """SHA-256 of the names, types, shapes and values of all tensors of a folder or of a commit on the Hub.

    Computed once: see `remembered`. Raises `ValueError` for a file that is cut off or broken.
    """
    files = weight_files(base, revision)
    return remembered(files, "tensors", lambda: _digest(files))


def weight_files(base: str, revision: str | None) -> list[Path]:
    """The safetensors files that Transformers has loaded; raises `ValueError` where these are others."""
    if _file(base, "adapter_config.json", revision):  # its base and its LoRA would be loaded in place of the weights
        raise ValueError("it holds an adapter_config.json, so it is an adapter and no base")
    if single := _file(base, "model.safetensors", revision):
        return [single]
    index = _file(base, "model.safetensors.index.json", revision)
    if index is None:
        raise ValueError("it has no model.safetensors")
    names = sorted(set(parse_json(index.read_bytes(), MOST_TENSORS)["weight_map"].values()))
    files = [_file(base, name, revision) for name in names]
    if None in files:
        raise ValueError(f"{names[files.index(None)]} is missing, which its index names")
    return [file for file in files if file]


def _file(base: str, name: str, revision: str | None) -> Path | None:
    found = cached_file(
        base,
        name,
        revision=revision,
        local_files_only=True,  # it was loaded before
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None


def _digest(files: Sequence[Path]) -> str:
    tensors = sorted(entry for file in files for entry in _tensors(file))
    return hashlib.sha256(json.dumps(tensors).encode()).hexdigest()


def _tensors(file: Path) -> list[tuple[str, str, list[int], str]]:
    """Name, type, shape and SHA-256 of the values of each tensor of a file."""
    with file.open("rb") as read, mmap.mmap(read.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            header, start = _header(view, file.name)

            def entry(name: str) -> tuple[str, str, list[int], str]:
                begin, end = header[name]["data_offsets"]
                values = view[start + begin : start + end]
                with values:
                    return name, header[name]["dtype"], header[name]["shape"], hashlib.sha256(values).hexdigest()

            with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
                return list(pool.map(entry, header))
        finally:
            view.release()


def _header(view: memoryview, name: str) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its values begin; raises `ValueError` unless it fits the file."""
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or not 2 <= length <= min(LARGEST_HEADER, len(view) - 8):
        raise ValueError(f"{name} is no whole safetensors file; fetch it again")
    header = json.loads(bytes(view[8 : 8 + length]))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if 8 + length + end != len(view):
        way_out = "it was cut off, fetch it again" if 8 + length + end > len(view) else "fetch it again"
        raise ValueError(f"{name} has {len(view):,} bytes, its header says {8 + length + end:,}; {way_out}")
    return header, 8 + length
