"""Check a report's statements about vitals against the given values: every number and every threshold word."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vlm.data.vitals.schema import PRESSURE_NAMES, VitalsSchema
from vlm.findings.labeller import sentences

_NUMBER = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?:\s*/\s*(\d+(?:\.\d+)?))?(?![\w])")
_LEVELS = {
    "elevated": re.compile(r"\b(?:elevated|high|raised|increased|hyper\w+)\b"),
    "low": re.compile(r"\b(?:low|decreased|reduced|hypo\w+)\b"),
    "normal": re.compile(r"\b(?:normal|unremarkable|within (?:normal )?limits|in range)\b"),
    "not measured": re.compile(r"\bnot (?:measured|given|available|known)\b"),
}
_TRENDS = {
    "rising": re.compile(r"\b(?:rising|rises|rose|risen|climbing|climbed)\b"),
    "falling": re.compile(r"\b(?:falling|falls|fell|fallen|dropping|dropped)\b"),
    "stable": re.compile(r"\b(?:stable|steady|unchanged)\b"),
}
_NEGATED = re.compile(r"\bnot\b|\bno\b")


@dataclass(frozen=True)
class Claim:
    """One statement of a report about one vital."""

    vital: str
    stated: str
    """The number or word in the report."""
    given: str
    """The patient's value, or its level."""
    consistent: bool


def given_values(vitals: Sequence[float], schema: VitalsSchema) -> dict[str, float]:
    """Name the vitals that were given, of m with NaN where missing, as `check_numbers` takes them.

    Rounded, since a float32 value must not lie just above a limit that it equals.
    """
    return {name: round(float(x), 4) for name, x in zip(schema.names, vitals, strict=True) if x == x}


def check_numbers(report: str, values: Mapping[str, float], schema: VitalsSchema) -> list[Claim]:
    """Compare every number and threshold word of a report with the given vitals.

    `values` maps schema names to the measured vitals. A number must equal the given one
    at the precision it is written with; a word (elevated, low, normal) must be that of the vital's reference
    range, and a word of change (rising, stable, falling) that of the change of a series; anything but "not measured"
    said of a missing vital is inconsistent. Sentences that name no vital are not looked at.
    """
    claims: list[Claim] = []
    names = _patterns(schema)
    for sentence in sentences(report):
        found = sorted((m.start(), m.end(), vitals) for pattern, vitals in names for m in pattern.finditer(sentence))
        for place, (_, end, vitals) in enumerate(found):
            stop = found[place + 1][0] if place + 1 < len(found) else len(sentence)
            claims.extend(_claims(sentence[end:stop], vitals, values, schema))
    return claims


def _patterns(schema: VitalsSchema) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
    """Compile patterns of the vitals' names and aliases; blood pressure maps to its two parts."""
    patterns: list[tuple[re.Pattern[str], tuple[str, ...]]] = []
    for vital in schema.vitals:
        spoken = "|".join(re.escape(name.replace("_", " ").lower()) for name in (vital.name, *vital.aliases))
        patterns.append((re.compile(rf"\b(?:{spoken})\b"), (vital.name,)))
    if schema.names_in(PRESSURE_NAMES[0]) == ("systolic", "diastolic"):
        patterns.append((re.compile(r"\bblood pressure\b|\bbp\b"), ("systolic", "diastolic")))
    return patterns


def _claims(text: str, vitals: tuple[str, ...], values: Mapping[str, float], schema: VitalsSchema) -> Iterator[Claim]:
    name = " and ".join(vitals)
    measured = [values[vital] for vital in vitals if vital in values]
    for number in _NUMBER.finditer(text):
        stated = [part for part in number.groups() if part is not None]
        if len(stated) == len(vitals):
            since = _first(vitals[0], values) if re.search(r"\bfrom $", text[: number.start()]) else None
            right = len(measured) == len(stated) and all(map(_equal, stated, measured if since is None else [since]))
            yield Claim(name, number.group(), "/".join(f"{value:g}" for value in measured) or "not measured", right)
    if (level := _level(vitals, values, schema)) is not None:
        yield from _word_claims(text, name, level, _LEVELS)
    change = schema.features.get(vitals[0], {}).get("change") if len(vitals) == 1 else None
    trend = _level((schema.names[change],), values, schema) if change is not None else None
    if change is not None and trend is not None:
        trend = {"elevated": "rising", "low": "falling", "normal": "stable"}.get(trend, trend)
        yield from _word_claims(text, schema.names[change], trend, _TRENDS)


def _word_claims(text: str, name: str, level: str, patterns: Mapping[str, re.Pattern[str]]) -> Iterator[Claim]:
    """Yield the claim of the first word of the patterns that a text has."""
    for word, pattern in patterns.items():
        match = pattern.search(text)
        if match:
            denied = word != "not measured" and _NEGATED.search(text[: match.start()]) is not None
            yield Claim(name, f"{'not ' * denied}{match.group()}", level, (word == level) != denied)
            return


def _first(vital: str, values: Mapping[str, float]) -> float | None:
    """Return the first value of a vital's series, which a report may name as in `from 9.1 to 11.2`."""
    return values[vital] - values[f"{vital}_change"] if {vital, f"{vital}_change"} <= values.keys() else None


def _equal(stated: str, value: float) -> bool:
    """Check whether a number equals the value at its written precision: `8.7` is right for 8.72."""
    digits = len(stated.partition(".")[2])
    return abs(float(stated) - value) <= 0.5 * 10**-digits + 1e-6


def _level(vitals: tuple[str, ...], values: Mapping[str, float], schema: VitalsSchema) -> str | None:
    """Return `elevated` if any part is, else `low` if any is; None without a reference range."""
    ranges = [schema.vitals[schema.position(vital)].reference for vital in vitals]
    if any(vital not in values for vital in vitals):
        return "not measured"
    if not all(ranges):
        return None
    numbers = [values[vital] for vital in vitals]
    if any(number > limits[1] for number, limits in zip(numbers, ranges, strict=True)):
        return "elevated"
    return "low" if any(number < limits[0] for number, limits in zip(numbers, ranges, strict=True)) else "normal"
