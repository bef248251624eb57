"""Replace old names of options in configs, overrides, adapters and runs, with a note of the new names."""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from vlm.distributed import log_rank0
from vlm.errors import UserError

RENAMED = {
    "data.lanes": "data.interleave_shards",
    "model.llm.unpack": "model.llm.dequantize",
    "model.vitals.shown": "model.vitals.injection",
}
"""Old dotted name → new name, in the same section."""


def rename_keys(values: Any, where: str) -> bool:
    """Rename the old keys in nested values, in place, and return whether there were any.

    Raises `UserError` where an old and a new name are both given.
    """
    found = []
    for old, new in RENAMED.items():
        section, key, new_key = _section(values, old), old.rpartition(".")[2], new.rpartition(".")[2]
        if key not in section:
            continue
        if new_key in section:
            raise UserError(f"{where}: {old} is the old name of {new}; leave it out")
        section[new_key] = section.pop(key)
        found.append(old)
    if found:
        _tell(where, tuple(found))
    return bool(found)


def rename_options(arguments: Sequence[str]) -> Iterator[str]:
    """Yield command-line arguments with the old names of options replaced."""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        old = name.removeprefix("--")
        if name.startswith("--") and old in RENAMED:
            _tell(name, (old,))
            name = f"--{RENAMED[old]}"
        yield f"{name}{equals}{value}"


def _section(values: Any, name: str) -> dict[str, Any]:
    """Get the mapping that would hold a dotted key, or an empty one."""
    for part in name.split(".")[:-1]:
        values = values.get(part) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


@cache  # once per file, however often it is read
def _tell(where: str, names: tuple[str, ...]) -> None:
    log_rank0(f"{where}: {', '.join(f'{old} is now called {RENAMED[old]}' for old in names)}")
