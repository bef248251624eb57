"""Build the form of the vitals from an adapter's schema."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm.config import VitalConfig
from vlm.data.vitals.schema import PRESSURE_NAMES, VitalsSchema

_UNMARKED = str.maketrans(
    {"*": "\N{ASTERISK OPERATOR}", "_": "\N{FULLWIDTH LOW LINE}", "`": "\N{MODIFIER LETTER GRAVE ACCENT}"}
)


LONGEST_SERIES = 4000
"""Most characters to type of a series."""


@dataclass(frozen=True)
class Field:
    """One input of the form; its text goes to `VitalsSchema.parse` under its name."""

    name: str
    label: str
    help: str
    choices: tuple[str, ...] = ()
    """Choices of a category; empty for a number."""
    longest: int = 100
    """Most characters to type."""


def fields(schema: VitalsSchema) -> list[Field]:
    """Make one field a vital, in the schema's order; systolic and diastolic pressure share one, as they are written."""
    found = {vital.name: _field(vital) for vital in schema.given}
    pressure = schema.names_in(PRESSURE_NAMES[1])
    if len(pressure) == 2:
        upper, lower = (schema.vitals[schema.position(name)] for name in pressure)
        both = Field(PRESSURE_NAMES[1], _label("blood_pressure", upper.unit), _pressure_help(upper, lower),
                     longest=found[upper.name].longest)  # fmt: skip
        found = {name: both if name == pressure[0] else field for name, field in found.items() if name != pressure[1]}
    return list(found.values())


def given(form: Sequence[Field], values: Sequence[Any]) -> dict[str, str]:
    """Return the values that were typed or chosen, by field name; empty ones are left out."""
    typed = {field.name: str(value or "").strip() for field, value in zip(form, values, strict=True)}
    return {name: value for name, value in typed.items() if value}


def _field(vital: VitalConfig) -> Field:
    field = Field(vital.name, _label(vital.name, vital.unit), "")
    if vital.categories:
        return replace(field, choices=tuple(vital.categories))
    others = (
        [f"or in {', '.join(map(_plain, vital.accepts))}, the unit written beside the number"] if vital.accepts else []
    )
    if vital.over_time:
        others.append("or a series with times before the study: 9.1@-48h; 11.2@0h")
        field = replace(field, longest=LONGEST_SERIES)
    return replace(field, help="; ".join([*_ranges(vital), *others]))


def _plain(text: str) -> str:
    """Neutralize the markup of an untrusted help text, which Gradio renders and for which it knows no escape."""
    return text.replace("](", "]\N{WORD JOINER}(").translate(_UNMARKED)


def _label(name: str, unit: str) -> str:
    return name.replace("_", " ") + (f" ({unit})" if unit else "")


def _ranges(vital: VitalConfig) -> list[str]:
    reference = [f"normal {_range(vital.reference)}"] if vital.reference else []
    return reference + ([f"possible {_range(vital.plausible)}"] if vital.plausible else [])


def _pressure_help(upper: VitalConfig, lower: VitalConfig) -> str:
    limits = [f"{word} {_range(a)} over {_range(b)}" for word, a, b in
              (("normal", upper.reference, lower.reference), ("possible", upper.plausible, lower.plausible))
              if a and b]  # fmt: skip
    return "; ".join(["such as 125/80", *limits])


def _range(limits: Sequence[float]) -> str:
    return f"{limits[0]:g}–{limits[1]:g}"
