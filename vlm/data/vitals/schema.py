"""Schema of a model's vitals: names, units, allowed values, and statistics of the training split."""

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from vlm.config import VitalConfig
from vlm.data.vitals.series import (
    STUDY_TIME,
    Point,
    check_series,
    feature_places,
    read_points,
    split_points,
    split_pressures,
    summarize,
)
from vlm.data.vitals.units import conversion
from vlm.data.vitals.values import is_plausible, read_value, split_pressure
from vlm.errors import UserError, nearest
from vlm.faults import Faults
from vlm.plain import is_clean, shortened

PRESSURE_NAMES = ("bp", "blood_pressure")
"""Column names read as `125/80` if a schema has both `systolic` and `diastolic`."""
MOST_VITALS, MOST_NAMES, LONGEST_NAME = 256, 1024, 200


def check_names(names: Iterable[str], where: str, most: int = MOST_NAMES) -> None:
    """Raise `UserError` for names that are ambiguous or cannot be displayed in terminals and on pages."""
    names = tuple(names)
    if len(names) > most:
        raise UserError(f"{where}: {len(names):,} of them, more than {most:,}")
    for name in names:
        if not name.strip() or len(name) > LONGEST_NAME or not is_clean(name) or re.search("<[a-zA-Z/!?]", name):
            way_out = f"write 1 to {LONGEST_NAME} plain characters and no markup"
            raise UserError(f"{where}: {shortened(name)} cannot be shown as a name; {way_out}")


@dataclass(frozen=True)
class VitalsSchema:
    """The clinical vector x = [x1 ... xm], equation (3), before any scaling.

    A value is a float: the number in the declared unit, or the index of the category; NaN is missing.
    """

    vitals: tuple[VitalConfig, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)
    _columns: dict[str, tuple[tuple[str, ...], str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        index: dict[str, int] = {}
        check_names(self.names, "vitals", MOST_VITALS)
        for position, vital in enumerate(self.vitals):
            check_names((vital.unit, *vital.accepts) if vital.unit else vital.accepts, f"vitals: {vital.name}: unit")
            for key, names in (("aliases", vital.aliases), ("categories", vital.categories)):
                check_names(names, f"vitals: {vital.name}: {key}")
            for unit, pair in vital.accepts.items():
                if not (len(pair) == 2 and all(map(math.isfinite, pair)) and pair[0] != 0):
                    raise UserError(f"vitals: {vital.name}: accepts: {unit} is [factor, offset], not {pair}")
            for name in (vital.name, *vital.aliases):
                if index.setdefault(_normal(name), position) != position:
                    raise UserError(f"vitals: the name {name} is declared twice")
            for key, limits in (("plausible", vital.plausible), ("reference", vital.reference)):
                if limits and not (len(limits) == 2 and -math.inf < limits[0] < limits[1] < math.inf):
                    raise UserError(f"vitals: {vital.name}: {key} is [lowest, highest], not {limits}")
        object.__setattr__(self, "_index", index)
        check_series(self.vitals)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(vital.name for vital in self.vitals)

    def __len__(self) -> int:
        return len(self.vitals)

    def position(self, name: str, where: str = "vitals") -> int:
        """Find the index of a vital by name or alias; raises `UserError` with the nearest name."""
        if _normal(name) not in self._index:
            near = nearest(_normal(name), self._index)
            meant = f"did you mean {self.vitals[self._index[near]].name}?" if near else ""
            hint = meant or f"known: {', '.join(self.names)}"
            raise UserError(f"{where}: unknown vital {name}; {hint}")
        return self._index[_normal(name)]

    def names_in(self, column: str) -> tuple[str, ...]:
        """Find the vitals that a column of this name holds: one, two (`blood_pressure`), or none."""
        return self.column(column)[0]

    def column(self, header: str) -> tuple[tuple[str, ...], str]:
        """Parse a header into its vitals and its unit: `Temp [°F]`, `glucose_mg_dl`, `SpO2 (%)`."""
        if header not in self._columns:
            self._columns[header] = self._read_header(header)
        return self._columns[header]

    def _read_header(self, header: str) -> tuple[tuple[str, ...], str]:
        name = _normal(header)
        if self._named(name):
            return self._named(name), ""
        words = name.split("_")
        splits = [("_".join(words[:place]), "_".join(words[place:])) for place in range(len(words) - 1, 0, -1)]
        for stem, rest in (_bracketed(name), *splits):
            vitals = self._named(stem.rstrip("_,:"))
            unit = rest.strip("_()[]")
            if vitals and unit and conversion(self.vitals[self._index[vitals[0]]], unit):
                return vitals, unit
        return (), ""

    @cached_property
    def features(self) -> dict[str, dict[str, int]]:
        """Name of each series → feature → its index; `last` is the series itself."""
        return feature_places(self.vitals)

    def without_orphans(self, x: np.ndarray) -> np.ndarray:
        """Return m values with what is computed from a series missing where the series is, as it is for a user."""
        if not self.features:
            return x
        series = [self.features[vital.of]["last"] if vital.of else place for place, vital in enumerate(self.vitals)]
        return np.where(np.isnan(x[series]), np.float32("nan"), x)

    @cached_property
    def given(self) -> tuple[VitalConfig, ...]:
        """The vitals that a user gives: all but those computed from a series."""
        return tuple(vital for vital in self.vitals if not vital.of)

    def _named(self, name: str) -> tuple[str, ...]:
        if name in self._index:
            return (self.vitals[self._index[name]].name,)
        if name in PRESSURE_NAMES and {"systolic", "diastolic"} <= set(self._index):
            return ("systolic", "diastolic")
        return ()

    def parse(
        self,
        values: Mapping[str, Any],
        where: str = "vitals",
        faults: Faults | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> tuple[np.ndarray, dict[str, float]]:
        """Read one patient's values, by name; a series may stand beside the `study_time`.

        Returns x as float32 of shape `m` with NaN where a value is missing, and the values that are not
        physically plausible and were therefore taken as missing, by name. `note` is told what was done to a series.
        Raises `UserError` for an unknown name, two values for one vital, text that is no number, and the name of a
        vital computed from a series; where there are `faults`, a cell that cannot be read goes there, and its value
        is missing.
        """
        gather = faults.gather if faults is not None else nullcontext
        x = np.full(len(self.vitals), np.nan, dtype=np.float32)
        given: dict[int, str] = {}
        implausible: dict[str, float] = {}
        series: list[tuple[VitalConfig, list[Point]]] = []
        for column, cell in values.items():
            if self.is_study_time(column):
                continue
            names, unit = self.column(column)
            names = names or (column,)
            positions = [self.position(name, where) for name in names]
            parts: Sequence[Any] = ("",) * len(names)
            with gather():
                parts = self._parts(positions, cell, f"{where}: {column}")
            for position, part in zip(positions, parts, strict=True):
                vital = self.vitals[position]
                if vital.of:
                    raise UserError(
                        f"{where}: {column} is computed from the series of {vital.of}; give {vital.of} alone"
                    )
                if position in given:
                    raise UserError(f"{where}: {given[position]} and {column} both give {vital.name}")
                given[position] = column
                with gather():
                    if vital.over_time:
                        series.append((vital, read_points(vital, part, f"{where}: {column}", unit)))
                        continue
                    value = read_value(vital, part, f"{where}: {column}", unit)
                    if is_plausible(vital, value):
                        x[position] = value
                    else:
                        implausible[vital.name] = value
        study = next((cell for name, cell in values.items() if self.is_study_time(name)), None)
        with gather():
            found, doubtful = summarize(series, study, where, note)
            implausible |= doubtful
            for name, numbers in found.items():
                for feature, place in self.features[name].items():
                    x[place] = numbers.get(feature, np.nan)
        return x, implausible

    def is_study_time(self, name: str) -> bool:
        """Check whether a name beside the vitals gives the time of the study, against which series are read."""
        return bool(self.features) and name.lower().replace(" ", "_") == STUDY_TIME and STUDY_TIME not in self._index

    def _parts(self, positions: Sequence[int], cell: Any, where: str) -> Sequence[Any]:
        """Split a cell into one for each vital it holds; that of a series becomes pairs of time and value."""
        over_time = {self.vitals[position].over_time for position in positions}
        if len(over_time) > 1:
            raise UserError(f"{where}: one of systolic and diastolic is over_time; declare both so, or give each alone")
        if not over_time.pop():
            return split_pressure(cell, where) if len(positions) == 2 else (cell,)
        pairs = split_points(cell, where)
        return split_pressures(pairs, where) if len(positions) == 2 else (pairs,)


def _normal(name: str) -> str:
    """Normalize a name: case, spaces and hyphens do not distinguish names."""
    return re.sub(r"[\s\-]+", "_", unicodedata.normalize("NFKC", str(name)).strip().lower())


def _bracketed(name: str) -> tuple[str, str]:
    """Split at a bracket: `glucose_(mg/dl)` → (`glucose_`, `mg/dl)`)."""
    place = min((name.find(bracket) for bracket in "([" if bracket in name), default=len(name))
    return name[:place], name[place + 1 :]


@dataclass(frozen=True)
class VitalsStatistics:
    """Scaling statistics of each numeric vital, fitted on the training split alone.

    `centre` is the median, `scale` half the interquartile range over 0.6745 (a standard deviation, for a
    normal distribution), `edges` the quantile edges of the piecewise-linear code.
    """

    centre: tuple[float, ...]
    scale: tuple[float, ...]
    edges: tuple[tuple[float, ...], ...]

    def check(self, schema: VitalsSchema) -> None:
        """Raise `UserError` unless each number has a finite centre, a scale above 0 and increasing edges."""
        if not len(self.centre) == len(self.scale) == len(self.edges) == len(schema):
            raise UserError(f"statistics: not one centre, scale and list of edges for each of {len(schema)} vitals")
        for vital, centre, scale, edges in zip(schema.vitals, self.centre, self.scale, self.edges, strict=True):
            where = f"statistics: {vital.name}"
            if not math.isfinite(centre):
                raise UserError(f"{where}: centre must be a finite number, not {centre}")
            if not 0 < scale < math.inf:
                raise UserError(f"{where}: scale must be a number above 0, not {scale}")
            rising = all(low < high for low, high in pairwise(edges))
            if not all(map(math.isfinite, edges)) or not rising or len(edges) > 257:
                raise UserError(f"{where}: edges must be finite numbers that rise, 257 at most")
            if (len(edges) < 2) != bool(vital.categories):
                raise UserError(f"{where}: edges must be two or more for a number, and none for a category")

    @classmethod
    def fit(cls, schema: VitalsSchema, x: np.ndarray, bins: int) -> "VitalsStatistics":
        """Fit to `x`, N × m with NaN where missing; a vital without values gets centre 0 and scale 1."""
        centre, scale, edges = [], [], []
        for position, vital in enumerate(schema.vitals):
            column = x[:, position].astype(np.float64) if len(x) else np.empty(0)
            column = column[np.isfinite(column)]
            if vital.categories or len(column) == 0:
                column = np.array([0.0])
            low, middle, high = np.quantile(column, [0.25, 0.5, 0.75])
            # A nearly constant value has an interquartile range of 0: fall back to its spread, then to 1.
            spread = (high - low) / 2 / 0.6745 or float(column.std()) or 1.0
            centre.append(float(middle))
            scale.append(float(spread))
            edges.append(_bin_edges(column, bins) if not vital.categories else ())
        return cls(tuple(centre), tuple(scale), tuple(edges))


def _bin_edges(column: np.ndarray, bins: int) -> tuple[float, ...]:
    """Compute `bins + 1` increasing edges at the quantiles; ties are spread so that no bin is empty."""
    edges = np.quantile(column, np.linspace(0, 1, bins + 1))
    span = max(float(edges[-1] - edges[0]), 1e-3)
    for i in range(1, len(edges)):
        edges[i] = max(edges[i], edges[i - 1] + 1e-3 * span)
    return tuple(float(edge) for edge in edges)


def format_vitals(schema: VitalsSchema, x: Sequence[float]) -> str:
    """Format x for a prompt: `glucose 8.7 mmol/L, systolic 145 mmHg, sex not measured`."""
    shown = describe(schema, x)
    said = (f"{shown[v.name]} {v.unit}".strip() if v.name in shown else "not measured" for v in schema.vitals)
    return ", ".join(f"{name} {words}" for name, words in zip(schema.names, said, strict=True))


def describe(schema: VitalsSchema, x: Sequence[float]) -> dict[str, Any]:
    """Convert x to a mapping for users: name → number or category, without missing values."""
    shown: dict[str, Any] = {}
    for vital, value in zip(schema.vitals, x, strict=True):
        if not math.isnan(value):
            shown[vital.name] = vital.categories[int(value)] if vital.categories else round(float(value), 4)
    return shown
