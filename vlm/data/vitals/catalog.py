"""Resolve config entries with the ready-made vitals of `vitals.yaml`."""

from collections.abc import Sequence
from dataclasses import fields, replace

from vlm.config import VitalConfig
from vlm.data.vitals.series import expand
from vlm.data.vitals.units import conversion, normal_unit, units_of
from vlm.errors import UserError, nearest
from vlm.resources import load_yaml

CATALOG = {name: VitalConfig(name, **entry) for name, entry in load_yaml("vlm.data", "vitals.yaml").items()}
"""Name → ready-made entry."""


def ready_made(name: str) -> VitalConfig:
    """Look up a ready-made vital by name or alias; raises `UserError` with the nearest name."""
    names = {spelled.lower(): entry for entry in CATALOG.values() for spelled in (entry.name, *entry.aliases)}
    if name.lower() in names:
        return names[name.lower()]
    near = nearest(name.lower(), names)
    hint = f"did you mean {names[near].name}?" if near else f"known: {', '.join(CATALOG)}"
    raise UserError(f"vitals: no ready-made vital {name!r}; {hint} Any other is described: {{name: …, unit: …}}")


def resolve_vitals(entries: Sequence[VitalConfig | str]) -> tuple[VitalConfig, ...]:
    """Resolve entries, in order: `glucose`, `{ready: glucose, unit: mg/dL}` or a custom description.

    A vital that is a series is followed by the vitals computed from it. Raises `UserError` for an unknown ready-made
    name, an entry without a name, and the name of a computed vital.
    """
    vitals = [ready_made(entry) if isinstance(entry, str) else _resolve(entry) for entry in entries]
    names = {vital.name for vital in vitals}
    for made in (made for vital in vitals for made in expand(vital)[1:]):
        if made.name in names:
            raise UserError(f"vitals: {made.name} is computed from the series of {made.of}; leave it out or rename it")
    return tuple(each for vital in vitals for each in expand(vital))


def _resolve(entry: VitalConfig) -> VitalConfig:
    if entry.of or entry.feature:
        raise UserError(f"vitals: {entry.name}: of and feature are never set by hand; set over_time of its series")
    if not entry.ready:
        if not entry.name:
            raise UserError("vitals: an entry needs a name, or ready: the name of a ready-made one")
        return entry
    base, empty = ready_made(entry.ready), VitalConfig()
    given = {f.name: getattr(entry, f.name) for f in fields(entry) if getattr(entry, f.name) != getattr(empty, f.name)}
    del given["ready"]
    if entry.unit:
        base = in_unit(base, entry.unit, free=bool(entry.plausible))
    return replace(base, **given)


def in_unit(vital: VitalConfig, unit: str, free: bool = False) -> VitalConfig:
    """Convert a vital to one of its accepted units, with its ranges and conversions.

    Raises `UserError` for a unit that has no conversion, unless `free`: then ranges and conversions are dropped.
    """
    pair = conversion(vital, unit)
    if pair is None and free:
        return replace(vital, unit=unit, plausible=[], reference=[], accepts={}, loinc="", also_loinc=[])
    if pair is None:
        raise UserError(f"vitals: {vital.name}: unit {unit} is none of {units_of(vital)}; give plausible as well")
    factor, offset = pair
    if normal_unit(unit) == normal_unit(vital.unit):
        return vital
    others = {vital.unit: [1.0, 0.0]} | {other: pair for other, pair in vital.accepts.items()}
    accepts = {
        other: [own_factor / factor, (own_offset - offset) / factor]
        for other, (own_factor, own_offset) in others.items()
        if normal_unit(other) != normal_unit(unit)
    }

    def turn(limits: list[float]) -> list[float]:
        return [float(f"{(limit - offset) / factor:.6g}") for limit in limits]

    same = pair == (1.0, 0.0)  # else the code differs: mass and amount of substance have different codes
    also = [*vital.also_loinc, vital.loinc] if vital.loinc and not same else vital.also_loinc
    return replace(vital, unit=unit, plausible=turn(vital.plausible), reference=turn(vital.reference), accepts=accepts,
                   steady=vital.steady / factor, loinc=vital.loinc if same else "", also_loinc=also)  # fmt: skip
