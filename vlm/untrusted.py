"""Text and JSON that strangers wrote: judged before they are believed or shown."""

import json
import math
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm.errors import UserError

LARGEST_TEXT = 2 << 20
"""Bytes of a JSON file."""
LONGEST_LIST = 1024
"""Items of a list or an object in it."""
DEEPEST = 16
"""Levels of nesting in it."""


def read_json(file: Path, what: str, longest: int = LONGEST_LIST) -> Any:
    """The content of a JSON file; `what` names it in the `UserError` for one that is not as we would write it."""
    try:
        with file.open("rb") as read:
            data = read.read(LARGEST_TEXT + 1)
        if len(data) > LARGEST_TEXT:
            raise ValueError(f"larger than {LARGEST_TEXT >> 20} MiB")
        return parse_json(data, longest)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot read {what}: {error}") from None


def parse_json(data: bytes, longest: int = LONGEST_LIST) -> Any:
    """Strict JSON of little depth, no list or object of more than `longest` items.

    Raises `ValueError` in one line for anything else.
    """
    try:
        values = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_small,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST} levels") from None
    for path, text in _strings(values, longest):
        if not is_clean(text, line_breaks=True):
            raise ValueError(f"{path}: {shortened(text)} holds a character that cannot be shown")
    return values


def is_clean(text: str, line_breaks: bool = False) -> bool:
    """Whether a text can be shown in a terminal and on a page: nothing controls, hides or reverses it."""
    allowed = "\n\t" if line_breaks else ""
    return not any(
        unicodedata.category(letter) in ("Cc", "Cs", "Co", "Zl", "Zp")
        or unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        for letter in text
        if letter not in allowed
    )


def printable(text: str) -> str:
    """A text without the characters that `is_clean` refuses, line breaks kept."""
    return "".join(letter for letter in text if is_clean(letter, line_breaks=True))


def shortened(text: str) -> str:
    """A stranger's text in a message: escaped and cut."""
    return ascii(text if len(text) <= 60 else f"{text[:60]}…")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {shortened(key)} stands there twice")
        if not is_clean(key):
            raise ValueError(f"the key {shortened(key)} holds a character that cannot be shown")
        values[key] = value
    return values


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{shortened(text)} is no finite number")
    return number


def _small(text: str) -> int:
    if len(text) > 19:  # more than 64 bits hold
        raise ValueError(f"{shortened(text)} is too large a number")
    return int(text)


def _strings(values: Any, longest: int) -> Iterator[tuple[str, str]]:
    """(path, text) of every string; raises `ValueError` for what is too deep or too long."""
    rest: list[tuple[str, Any, int]] = [("", values, 0)]
    while rest:
        path, value, depth = rest.pop()
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        if isinstance(value, dict | list) and len(value) > longest:
            raise ValueError(f"{shortened(path)}: holds {len(value):,} items, more than {longest:,}")
        if isinstance(value, str):
            yield path, value
        elif isinstance(value, dict):
            rest += [(f"{path}.{key}".lstrip("."), item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list):
            rest += [(f"{path}[{number}]", item, depth + 1) for number, item in enumerate(value)]
