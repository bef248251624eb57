"""Hash the files of a base model: one digest of the weights, however sharded, one of config and tokenizer."""

import hashlib
import json
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from vlm.cache import cached_by_stat
from vlm.untrusted import parse_json

MOST_TENSORS = 1_000_000
LARGEST_HEADER = 100 << 20
"""Largest header in bytes, as in safetensors."""
NOT_NUMBERS = {
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "pad_token_id", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
"""Keys of config.json that do not change our results: metadata, and options that we set ourselves."""
TOKENS = ("add_bos_token", "add_eos_token", "add_prefix_space", "added_tokens_decoder", "bos_token", "eos_token")
"""Keys of tokenizer_config.json that change the tokens; the adapter keeps what the chat template gave."""
VOCABULARIES = (
    "merges.txt", "sentencepiece.bpe.model", "spiece.model", "tekken.json", "tokenizer.model", "vocab.json",
    "vocab.txt",
)  # fmt: skip
"""Vocabulary files of a tokenizer without tokenizer.json."""


def base_digest(base: str, revision: str | None) -> str:
    """Compute the SHA-256 of the names, types, shapes and values of all tensors of a folder or of a commit on the Hub.

    Cached: see `cached_by_stat`. Raises `ValueError` for a file that is cut off or broken.
    """
    files = weight_files(base, revision)
    return cached_by_stat(files, "tensors", lambda: _digest(files))


def settings_digest(base: str, revision: str | None) -> str:
    """Compute the SHA-256 of the config and tokenizer of a folder or of a commit on the Hub; cached."""
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", *VOCABULARIES)
    files = {name: file for name in names if (file := _file(base, name, revision))}
    return cached_by_stat(list(files.values()), "settings", lambda: _settings_digest(files))


def _settings_digest(files: dict[str, Path]) -> str:
    def read(name: str) -> dict[str, Any]:
        return json.loads(files[name].read_bytes()) if name in files else {}  # Transformers has loaded it before

    tokenizer, told = read("tokenizer.json"), read("tokenizer_config.json")
    vocabularies = [] if tokenizer else [files[name] for name in VOCABULARIES if name in files]
    settings = [
        _without(read("config.json"), NOT_NUMBERS),
        {key: value for key, value in tokenizer.items() if key not in ("padding", "truncation")},
        {key: told[key] for key in TOKENS if key in told},
        [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in vocabularies],
    ]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _without(value: Any, keys: set[str]) -> Any:
    """Remove keys from a nested configuration."""
    if not isinstance(value, dict):
        return value
    return {key: _without(part, keys) for key, part in value.items() if key not in keys}


def weight_files(base: str, revision: str | None) -> list[Path]:
    """Find the safetensors files that Transformers loads; raises `ValueError` where it would load others."""
    if _file(base, "adapter_config.json", revision):  # Transformers would load its base and LoRA instead
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
    """List the name, type, shape and SHA-256 of the values of each tensor of a file."""
    with file.open("rb") as read, mmap.mmap(read.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            header, start = _header(view, file.name)

            def entry(name: str) -> tuple[str, str, list[int], str]:
                begin, end = header[name]["data_offsets"]
                values = view[start + begin : start + end]
                with values:
                    return name, header[name]["dtype"], header[name]["shape"], hashlib.sha256(values).hexdigest()

            with ThreadPoolExecutor() as pool:  # hashing releases the GIL
                return list(pool.map(entry, header))
        finally:
            view.release()


def _header(view: memoryview, name: str) -> tuple[dict[str, Any], int]:
    """Parse the header of a safetensors file and the offset of its values; raises `ValueError` if it does not fit."""
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
