"""Build config dataclasses from untrusted JSON: every value must have the type of its field."""

import dataclasses
import typing
from collections.abc import Iterable, Iterator
from types import NoneType
from typing import Any, Literal

from vlm.errors import UserError, nearest
from vlm.plain import shortened

NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null",
         list: "a list", dict: "a mapping of keys"}  # fmt: skip
"""Type → its name in messages."""
LONGEST_SCALAR = 200
"""Most characters of a string for a field of another type, such as `1e-3`, a string in YAML 1.1."""


class UnknownKey(UserError):
    """Report an unknown key; the message names the nearest known one."""

    def __init__(self, where: str, key: str, known: Iterable[str]) -> None:
        self.key = key if len(key) <= 100 and key.isprintable() else shortened(key)
        super().__init__(f"{where}: unknown key {self.key}{way_out(key, known)}")


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a config dataclass to JSON values without the options at their default; `from_dict` reads it back."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, make = getattr(config, field.name), field.default_factory
        if dataclasses.is_dataclass(value):
            values[field.name] = to_dict(value)
        elif value != (field.default if make is dataclasses.MISSING else make()):
            values[field.name] = value
    return values


def with_defaults(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Fill in the options that the plain values of an earlier version lack, in the items of lists too."""
    kinds, filled = typing.get_type_hints(cls), dict(values)
    for field in dataclasses.fields(cls):
        make = field.default_factory
        if field.name not in values and (field.default, make) != (dataclasses.MISSING,) * 2:
            default = field.default if make is dataclasses.MISSING else make()
            filled[field.name] = dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default  # type: ignore[arg-type]
        elif field.name in values:
            filled[field.name] = _with_defaults(kinds[field.name], values[field.name])
    return filled


def _with_defaults(kind: Any, value: Any) -> Any:
    for choice in _choices(kind):
        if dataclasses.is_dataclass(choice) and isinstance(value, dict):
            return with_defaults(choice, value)  # type: ignore[arg-type]
        if isinstance(value, list) and typing.get_origin(choice) is list:
            return [_with_defaults(typing.get_args(choice)[0], item) for item in value]
    return value


def from_dict(cls: type, values: Any, where: str) -> Any:
    """Build the (nested) dataclass `cls` from JSON values; only whole numbers are converted, to floats.

    Raises `UserError` that names `where` and the key if a key is unknown or missing, or a value has the wrong type.
    """
    check_keys(values, cls, where)
    return _build(cls, values, where, "")


def _build(kind: Any, value: Any, where: str, key: str) -> Any:
    kind = next((choice for choice in _choices(kind) if _fits(choice, value)), None) or _refuse(kind, value, where, key)
    if dataclasses.is_dataclass(kind):
        return _build_fields(kind, value, where, key)
    if isinstance(value, list):
        item, whole = typing.get_args(kind)[0], typing.get_origin(kind)
        return whole(_build(item, element, where, f"{key}[{number}]") for number, element in enumerate(value))
    if isinstance(value, dict):
        item = typing.get_args(kind)[1]
        return {name: _build(item, element, where, f"{key}.{name}") for name, element in value.items()}
    return float(value) if kind is float else value


def _build_fields(cls: Any, values: dict[str, Any], where: str, key: str) -> Any:
    kinds, prefix = typing.get_type_hints(cls), f"{key}." if key else ""
    for name in values.keys() - kinds.keys():  # of the items of a mapping, which `check_keys` does not enter
        raise UnknownKey(where, f"{prefix}{name}", [f"{prefix}{known}" for known in kinds])
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in values:
            raise UserError(f"{where}: {prefix}{field.name} is missing")
    return cls(**{name: _build(kinds[name], value, where, f"{prefix}{name}") for name, value in values.items()})


def _choices(kind: Any) -> tuple[Any, ...]:
    """List the members of a union, or any other type alone."""
    origin = typing.get_origin(kind)
    return (kind,) if origin in (None, list, tuple, dict, Literal) else typing.get_args(kind)


def _outer(kind: Any) -> type:
    """Get the JSON type of a field's type."""
    if dataclasses.is_dataclass(kind):
        return dict
    origin = typing.get_origin(kind)
    return {Literal: str, tuple: list}.get(origin) or origin or kind


def _fits(kind: Any, value: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return type(value) is str and value in typing.get_args(kind)
    outer = _outer(kind)
    return type(value) is outer or (outer is float and type(value) is int)


def _refuse(kind: Any, value: Any, where: str, key: str) -> typing.NoReturn:
    words: list[str] = []
    for choice in _choices(kind):
        words += typing.get_args(choice) if typing.get_origin(choice) is Literal else [NAMES[_outer(choice)]]
    found = NAMES[type(value)] if isinstance(value, list | dict) else shortened(str(value))
    raise UserError(f"{where}: {key}: must be {' or '.join(words)}, not {found}")


def check_texts(values: Any, kind: Any, where: str, key: str = "") -> None:
    """Raise `UserError` for a long string, or one with aliases, where the field takes no string.

    jsonargparse would parse such a string as YAML again. The keys of the values must be checked before.
    """
    choices = _choices(kind)
    suspect = isinstance(values, str) and (len(values) > LONGEST_SCALAR or not {"&", "*"}.isdisjoint(values))
    if suspect and str not in map(_outer, choices):
        _refuse(kind, values, where, key)
    for choice in (choice for choice in choices if type(values) is _outer(choice)):
        if isinstance(values, list):
            for number, item in enumerate(values):
                check_texts(item, typing.get_args(choice)[0], where, f"{key}[{number}]")
        elif isinstance(values, dict):
            kinds = typing.get_type_hints(choice) if dataclasses.is_dataclass(choice) else {}
            for name, item in values.items():
                check_texts(item, kinds.get(name) or typing.get_args(choice)[1], where, f"{key}.{name}".lstrip("."))


def check_keys(values: Any, cls: Any, where: str, prefix: str = "") -> None:
    """Walk the values beside the dataclass, `list[SomeDataclass]` item by item; raise `UserError` for unknown keys."""
    if not isinstance(values, dict):
        raise UserError(
            f"{where}: {prefix.rstrip('.') or 'the config'} is a mapping of keys, not {shortened(str(values))}"
        )
    kinds = typing.get_type_hints(cls)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in kinds:
            known = [f"{prefix}{k}" for k in kinds]
            everywhere = known if prefix else [*known, *dotted_names(cls)]
            raise UnknownKey(where, name, everywhere)
        kind = kinds[key]
        if dataclasses.is_dataclass(kind) and value is not None:
            check_keys(value, kind, where, f"{name}.")
        item = next(iter(typing.get_args(kind)), None)
        choices = (item, *typing.get_args(item))  # an item may be a dataclass, or a union of dataclass and str
        described = next((choice for choice in choices if dataclasses.is_dataclass(choice)), None)
        if isinstance(value, list) and described:
            for index, element in enumerate(value):
                if not (isinstance(element, str) and str in choices):
                    check_keys(element, described, where, f"{name}[{index}].")


def dotted_names(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every option of a dataclass."""
    for name, kind in typing.get_type_hints(cls).items():
        yield prefix + name
        if dataclasses.is_dataclass(kind):
            yield from dotted_names(kind, f"{prefix}{name}.")  # type: ignore[arg-type]


def way_out(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that is closest to an unknown one, as the end of a message."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else "; --help lists them all"
