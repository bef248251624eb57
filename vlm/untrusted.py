"""Validate untrusted text, JSON and YAML before use or display."""

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml

from vlm.errors import UserError
from vlm.plain import is_clean, shortened

LARGEST_TEXT = 2 << 20
"""Most bytes of a JSON file."""
LONGEST_LIST = 1024
"""Most items of a list or an object in it."""
DEEPEST = 16
"""Most levels of nesting in it."""
LONGEST_KEY, LONGEST_PATH = 1000, 200
"""Most characters of an object's key, and of a value's path in a message."""
LARGEST_YAML = 512 << 10
"""Most bytes of a YAML file; its parser is slow."""
LARGEST_EXPANDED_YAML = 4 << 20
"""Most characters of it with every alias expanded."""


def read_json(file: Path, what: str, longest: int = LONGEST_LIST) -> Any:
    """Read a JSON file; `what` names it in the `UserError` for one that `parse_json` refuses."""
    try:
        return parse_json(_read(file, what, LARGEST_TEXT), longest)
    except ValueError as error:
        raise UserError(f"{file}: cannot read {what}: {error}") from None


def _read(file: Path, what: str, most: int) -> bytes:
    """Read a file of at most `most` bytes."""
    try:
        with file.open("rb") as read:
            data = read.read(most + 1)
    except OSError as error:
        raise UserError(f"{file}: cannot read {what}: {error.strerror}") from None
    if len(data) > most:
        limit = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
        raise UserError(f"{file}: cannot read {what}: larger than {limit}")
    return data


class JsonFault(ValueError):
    """Report a fault of a JSON text in one line that may quote it; `unquoted` does not quote."""

    def __init__(self, quoted: str, unquoted: str = "") -> None:
        super().__init__(quoted)
        self.unquoted = unquoted or quoted


def parse_json(
    data: bytes | str,
    longest: float = LONGEST_LIST,
    deepest: int = DEEPEST,
    digits: int = 19,  # what 64 bits hold
    accepts: Callable[[str], bool] | None = None,
) -> Any:
    """Parse strict JSON: no duplicate key, NaN, Infinity or number beyond a double; bounded depth, lists and integers.

    `accepts` checks each string value; by default `is_clean` does. Raises `JsonFault` for anything else.
    """
    try:
        values = json.loads(
            data.decode("utf-8") if isinstance(data, bytes) else data,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=partial(_whole, digits),
        )
    except RecursionError:
        raise JsonFault(f"nested deeper than {deepest} levels") from None
    except json.JSONDecodeError as error:
        where = f"at line {error.lineno}, column {error.colno}"
        raise JsonFault(str(error), f"Invalid JSON: {error.msg} {where}") from None
    except UnicodeDecodeError as error:
        raise JsonFault(str(error), "Invalid JSON: not UTF-8") from None
    for path, text in _strings(values, longest, deepest):
        if not (accepts(text) if accepts else is_clean(text, line_breaks=True)):
            fault = "holds a character that cannot be shown"
            raise JsonFault(f"{path}: {shortened(text)} {fault}", f"Invalid JSON: a text {fault}")
    return values


def read_yaml(file: Path, what: str) -> Any:
    """Read plain values from a YAML file; raises `UserError` before its aliases take memory or time."""
    return parse_yaml(_read(file, what, LARGEST_YAML), str(file))


def parse_yaml(data: str | bytes, where: str) -> Any:
    """Parse plain values from a YAML text; raises `UserError` as `read_yaml` does."""
    try:
        loader = yaml.SafeLoader(data)
        node = loader.get_single_node()
        if node is not None and _expanded_size(node, {}) > LARGEST_EXPANDED_YAML:
            raise ValueError(f"its aliases stand for more than {LARGEST_EXPANDED_YAML:,} characters")
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"{where}: not valid YAML: {said}") from None


def _expanded_size(node: yaml.Node, known: dict[int, float]) -> float:
    """Count the characters below a node with aliases expanded; infinite where an alias is in its own anchor."""
    if id(node) not in known:
        known[id(node)] = math.inf
        if isinstance(node, yaml.ScalarNode):
            if len(node.value) > 1000 and node.tag != "tag:yaml.org,2002:str":
                raise ValueError(f"{shortened(node.value)} is too long a number")
            known[id(node)] = len(node.value) + 1
        else:
            parts = (
                node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
            )
            known[id(node)] = sum((_expanded_size(part, known) for part in parts), 1)
    return known[id(node)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise JsonFault(f"the key {shortened(key)} stands there twice")
        if len(key) > LONGEST_KEY:
            raise JsonFault(f"the key {shortened(key)} is longer than {LONGEST_KEY:,} characters")
        if not is_clean(key):
            raise JsonFault(f"the key {shortened(key)} holds a character that cannot be shown")
        values[key] = value
    return values


def _refuse_constant(word: str) -> NoReturn:
    raise JsonFault(f"{word} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JsonFault(f"{shortened(text)} is no finite number", "a number is too large")
    return number


def _whole(digits: int, text: str) -> int:
    if len(text) > digits:
        raise JsonFault(f"{shortened(text)} is too large a number", "a number is too large")
    return int(text)


def _strings(values: Any, longest: float, deepest: int) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of every string; raises `JsonFault` for values too deep or too long."""
    rest: list[tuple[str, Any, int]] = [("", values, 0)]
    while rest:
        path, value, depth = rest.pop()
        if depth > deepest:
            raise JsonFault(f"nested deeper than {deepest} levels")
        if isinstance(value, dict | list) and len(value) > longest:
            raise JsonFault(f"{path!r}: holds {len(value):,} items, more than {longest:,}")
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, dict):
            rest += [(_below(path, f".{key[:60]}").lstrip("."), item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            rest += [(_below(path, f"[{number}]"), item, depth + 1) for number, item in enumerate(value)]


def _below(path: str, part: str) -> str:
    """Append a part to a path; a long path stays as it is, since each of a hundred thousand items has one."""
    return path if len(path) > LONGEST_PATH else path + part
