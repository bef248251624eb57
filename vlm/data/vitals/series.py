"""Read a vital's values over time, and derive what the model is told of them: change, slope, time since, count.

A series is written as pairs of time and value, `[["-48 h", 9.1], [0, 11.2]]`, or as text, `9.1@-48h;11.2@0h`.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

from vlm.config import VitalConfig
from vlm.data.vitals.values import LARGEST, clean, is_missing, is_plausible, quoted, read_value, split_pressure
from vlm.errors import UserError
from vlm.untrusted import parse_json

STUDY_TIME = "study_time"
"""Name beside the vitals under which a case gives the time of its study."""
MOST_POINTS = 4096
"""Most values of one series."""
HOURS = {"s": 1 / 3600, "min": 1 / 60, "h": 1.0, "d": 24.0, "w": 168.0}
_SPELLED = {"sec": "s", "mins": "min", "minute": "min", "minutes": "min", "hr": "h", "hrs": "h", "hour": "h",
            "hours": "h", "day": "d", "days": "d", "wk": "w", "week": "w", "weeks": "w"}  # fmt: skip
_OFFSET = re.compile(r"([+-]?) ?(\d{1,12}(?:[.,]\d{1,9})?|[.,]\d{1,9}) ?([a-z]*)", re.ASCII)
_DAY = re.compile(r"((?:1[89]|2[0-2])\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))(?:\.0)?", re.ASCII)
"""A date without hyphens, as DICOM writes it."""
_HOW = "write -48 h, -2 d, 0, or a date with its time and zone"
_FORM = '[["-48 h", 9.1], [0, 11.2]] or 9.1@-48h;11.2@0h'
_EPOCH = datetime(1970, 1, 1)
_EXACT = 6
"""Decimals of an hour to which times are compared; 4 ms."""


class When(NamedTuple):
    """A time, in hours of a clock: from the study, an origin of the table's own, or 1970 with or without a zone."""

    hours: float
    clock: str = "study"


NOW = When(0.0)
"""The study's own time."""
CLOCK_WORDS = {"study": "counted from the study", "origin": "counted from an origin", "zoned": "with a zone",
               "naive": "without a zone"}  # fmt: skip
"""Clock of a time → its words for messages."""


class Point(NamedTuple):
    """One value of a series, in the vital's unit, NaN where missing."""

    when: When
    value: float


class Series(list[Point]):
    """A cell whose points were read already."""


def expand(vital: VitalConfig) -> tuple[VitalConfig, ...]:
    """Derive the vitals that a series becomes: itself, which is its last value, and what is computed from all."""
    if not vital.over_time:
        return (vital,)
    steady = [-vital.steady, vital.steady] if vital.steady > 0 else []
    factors = {unit: [pair[0], 0.0] for unit, pair in vital.accepts.items()}  # a difference has no offset
    a_day = {f"{unit}/d": pair for unit, pair in factors.items()}
    name = vital.name
    return (
        vital,
        VitalConfig(f"{name}_change", vital.unit, reference=steady, accepts=factors, of=name, feature="change"),
        VitalConfig(f"{name}_slope", f"{vital.unit}/d", accepts=a_day, of=name, feature="slope"),
        VitalConfig(f"{name}_hours_since", "h", of=name, feature="hours_since"),
        VitalConfig(f"{name}_count", of=name, feature="count"),
    )


def check_series(vitals: Sequence[VitalConfig]) -> None:
    """Raise `UserError` unless series are numbers, and each computed vital names a series and one feature of it."""
    series = {vital.name for vital in vitals if vital.over_time}
    made = [(vital.of, vital.feature) for vital in vitals if vital.of or vital.feature]
    for vital in vitals:
        where = f"vitals: {vital.name}"
        if vital.over_time and (vital.categories or vital.of):
            raise UserError(f"{where}: over_time is for measured numbers, not for categories")
        if not 0 <= vital.steady < math.inf or (vital.steady and not vital.over_time):
            raise UserError(f"{where}: steady is a change of 0 or more, of a vital over_time, not {vital.steady:g}")
        key = (vital.of, vital.feature)
        if any(key) and (vital.of not in series or not vital.feature or made.count(key) > 1):
            raise UserError(f"{where}: of and feature name a vital over_time and what is computed of it, once")


def feature_places(vitals: Sequence[VitalConfig]) -> dict[str, dict[str, int]]:
    """Map each series to its features and their indices; `last` is the series itself."""
    places: dict[str, dict[str, int]] = {}
    for position, vital in enumerate(vitals):
        if vital.over_time or vital.of:
            places.setdefault(vital.of or vital.name, {})[vital.feature or "last"] = position
    return places


def state_words(vital: VitalConfig) -> list[str]:
    """List the words of a vital's states, but for a missing value."""
    if vital.categories or not vital.reference:
        return vital.categories or ["given"]
    return ["falling", "stable", "rising"] if vital.feature == "change" else ["low", "normal", "elevated"]


# ------------------------------------------------------------------------------------------- reading


def split_points(cell: Any, where: str) -> Sequence[tuple[Any, Any]]:
    """Split a cell into pairs of time and value, neither read yet; a plain value is one pair, at the study's time.

    Raises `UserError` for a list of anything else, and for more than 4,096 pairs.
    """
    if isinstance(cell, Series):
        return cell
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        try:
            cell = parse_json(cell, MOST_POINTS + 1)
        except ValueError as error:
            raise UserError(f"{where}: no series of values: {error!s:.200}; write {_FORM}") from None
    elif isinstance(cell, str) and "@" in cell:
        pieces = re.split(r"[;\n]", cell, maxsplit=MOST_POINTS + 1)
        cell = [piece.rpartition("@")[::-2] for piece in pieces if piece.strip()]  # time, value
    if not isinstance(cell, list | tuple):
        return [(0, cell)]
    if not 0 < len(cell) <= MOST_POINTS:
        what = f"a series of more than {MOST_POINTS:,} values" if cell else "an empty series"
        raise UserError(f"{where}: {what}; give its newest values, or nothing where none was measured")
    pairs = [tuple(map(point.get, ("time", "value"))) if isinstance(point, dict) and len(point) == 2 else point
             for point in cell]  # fmt: skip
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise UserError(f"{where}: point {number} is no pair of time and value; write {_FORM}")
    return [(time, value) for time, value in pairs]


def split_pressures(pairs: Sequence[tuple[Any, Any]], where: str) -> list[list[tuple[Any, Any]]]:
    """Split a series of values such as `125/80` into that of the systolic and that of the diastolic pressure."""
    halves = [split_pressure(value, where) for _, value in pairs]
    return [[(time, half[side]) for (time, _), half in zip(pairs, halves, strict=True)] for side in (0, 1)]


def read_points(vital: VitalConfig, pairs: Iterable[tuple[Any, Any]], where: str, unit: str = "") -> list[Point]:
    """Read pairs of `split_points`; raises `UserError` as `read_value` and `read_time` do."""
    if isinstance(pairs, Series):
        return pairs
    return [Point(read_time(time, where), read_value(vital, value, where, unit)) for time, value in pairs]


def read_time(cell: Any, where: str, unit: str = "") -> When:
    """Read a time: `-48 h` before the study, a date with its time in ISO 8601, or a bare number in `unit`.

    A bare number counts from the origin of the table's own; without a `unit`, 0 alone is one, and `20240301` a date.
    Raises `UserError` for anything else.
    """
    if isinstance(cell, When):
        return cell
    if isinstance(cell, date):
        return _moment(cell, where)
    is_number = isinstance(cell, int | float | Decimal | np.number) and not isinstance(cell, bool)
    if is_number and unit and -1e12 < cell < 1e12:
        return When(float(cell) * HOURS[unit], "origin")
    if is_number and -1e12 < cell < 1e12:
        cell = f"{float(cell):.12g}"
    text = clean(cell[:60]) if isinstance(cell, str) else ""
    day = None if unit else _DAY.fullmatch(text)
    if not day and (offset := _OFFSET.fullmatch(text.lower())):
        sign, digits, word = offset.groups()
        hours = float(sign + digits.replace(",", "."))
        word = _SPELLED.get(word, word)
        if word in HOURS:
            return When(hours * HOURS[word])
        if not word and unit:
            return When(hours * HOURS[unit], "origin")
        if not word and not hours:
            return NOW
        what = f"has a unit other than {', '.join(HOURS)}" if word else "has no unit"
        raise UserError(f"{where}: the time {quoted(cell)} {what}; {_HOW}")
    try:
        return _moment(datetime.fromisoformat(day[1] if day else text), where)
    except ValueError:
        what = "there is no time" if is_missing(cell) else f"{quoted(cell)} is no time"
        raise UserError(f"{where}: {what}; {_HOW}") from None


def _moment(day: date, where: str) -> When:
    time = day if isinstance(day, datetime) else datetime(day.year, day.month, day.day)
    if time.tzinfo is None:
        return When((time - _EPOCH).total_seconds() / 3600, "naive")
    try:
        return When((time.astimezone(UTC).replace(tzinfo=None) - _EPOCH).total_seconds() / 3600, "zoned")
    except OverflowError:
        raise UserError(f"{where}: {quoted(str(day))} is no time; {_HOW}") from None


# ------------------------------------------------------------------------------------------ features


Note = Callable[[str], None]
"""Told what was done to a series, in words that are the same for each case."""
Features = dict[str, float]
"""Feature of a series → number; without those that cannot be computed."""


def summarize(
    series: Sequence[tuple[VitalConfig, list[Point]]], study: Any, where: str, note: Note
) -> tuple[dict[str, Features], dict[str, float]]:
    """Compute the features of one case's series by name, and the last implausible value of each that has one.

    `study` is the cell of the study's time. Raises `UserError` as `features`, `read_time` and `study_time` do.
    """
    given = None if is_missing(study) else read_time(study, f"{where}: {STUDY_TIME}")
    at = study_time([point.when for _, points in series for point in points], given, where, note)
    found, implausible = dict[str, Features](), dict[str, float]()
    for vital, points in series:
        found[vital.name], doubtful = features(vital, points, at, f"{where}: {vital.name}", note)
        if doubtful:
            implausible[vital.name] = doubtful[-1]
    return found, implausible


def last_value(vital: VitalConfig, cell: Any, where: str, unit: str = "") -> float:
    """Read the last value of a cell's series, an implausible one if there is no other; NaN if it has none."""
    points = read_points(vital, split_points(cell, where), where, unit)
    found, implausible = summarize([(vital, points)], None, where, lambda _: None)
    return found[vital.name].get("last", implausible.get(vital.name, math.nan))


def study_time(whens: Iterable[When], study: When | None, where: str, note: Note) -> When:
    """Return the study's time on the clock of a case's measurements; without one given, the newest of them.

    Raises `UserError` for times of two clocks, such as one with a zone and one without.
    """
    whens = [when for when in whens if when.clock != "study"]
    clocks = {when.clock for when in (*whens, *([study] if study else []))} - {"study"}
    if len(clocks) > 1:
        kinds = " and others ".join(CLOCK_WORDS[clock] for clock in sorted(clocks))
        raise UserError(f"{where}: some times are {kinds}; give all of them in one way")
    if "naive" in clocks:
        note("times without a zone are compared as they are")
    if study or not clocks or "origin" in clocks:
        return study or NOW
    note(f"no {STUDY_TIME} is given; the hours since are counted from the newest measurement")
    return max(whens)


def hours_before(when: When, study: When) -> float:
    """Return the hours from the study to a time: negative before it."""
    return round(when.hours - study.hours * (when.clock == study.clock), _EXACT)


def features(
    vital: VitalConfig, points: Sequence[Point], study: When, where: str, note: Note
) -> tuple[Features, list[float]]:
    """Compute the features of a series by their names, `last` among them, and list its implausible values.

    An implausible value and a missing one are left out; without any other there are no features. Raises `UserError`
    for a value after the study.
    """
    known = [(hours_before(when, study), value) for when, value in points if value == value]
    doubtful = [value for _, value in known if not is_plausible(vital, value)]
    known = [(hours, value) for hours, value in known if is_plausible(vital, value)]
    if late := [hours for hours, _ in known if hours > 0]:
        raise UserError(f"{where}: a value {max(late):g} h after the study; the times of a series are 0 or before it")
    if len(points) > 1 and any(value != value for _, value in points):
        note(f"{vital.name}: times without a value were left out")
    if any(first > second for (first, _), (second, _) in pairwise(known)):
        note(f"{vital.name}: values out of order were sorted by their time")
    times, values = _merged(sorted(known), vital.name, note)
    if not times:
        return {}, doubtful
    found = {"last": values[-1], "hours_since": abs(times[-1]), "count": float(len(times))}
    if len(times) > 1:
        found |= {"change": float(f"{values[-1] - values[0]:.7g}"), "slope": _slope(times, values)}
    return {name: value for name, value in found.items() if abs(value) <= LARGEST}, doubtful


def _merged(known: list[tuple[float, float]], name: str, note: Note) -> tuple[list[float], list[float]]:
    """Average the values of one time; a laboratory repeats a doubtful measurement."""
    times, values = [], []
    for time, group in groupby(known, key=lambda point: point[0]):
        same = [value for _, value in group]
        if len(set(same)) > 1:
            note(f"{name}: several values of one time were averaged")
        times.append(time)
        values.append(sum(value / len(same) for value in same) if len(set(same)) > 1 else same[0])
    return times, values


def _slope(hours: Sequence[float], values: Sequence[float]) -> float:
    """Fit a line by least squares; returns its slope a day."""
    middle = sum(hours) / len(hours)
    spread = sum((hour - middle) ** 2 for hour in hours)
    return 24 * sum((hour - middle) * value for hour, value in zip(hours, values, strict=True)) / spread
