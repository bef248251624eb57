"""Join the rows of one study into a case, and show each study the earlier ones of its patient.

Rows are kept in a memory-mapped file; in memory are numbers alone, a study's row, patient and day.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vlm.config import TableConfig
from vlm.data.cohort import Columns
from vlm.data.images.store import digest_of
from vlm.data.ingest.study_columns import Names, read_order
from vlm.data.storage import column, hashes, write_rows
from vlm.data.study import MOST_IMAGES, Cell, StudySpec, check_days, chosen_cells
from vlm.data.vitals.series import CLOCK_WORDS, STUDY_TIME, When
from vlm.faults import Faults

PART = 5_000
"""Cases joined at a time."""
LONGEST_STUDY = 1.0
"""Most days between two images of one study."""
KEYS = {"day": datasets.Value("float64"), "place": datasets.Value("string")}
"""Columns that rows have until they are joined: the study's day, and the row for messages."""
_TEXTS = ("patient", "split", "context", "prior_report")
Row = dict[str, Any]


def is_joined(table: TableConfig) -> bool:
    """Check whether cases are made of several rows: those of a study, or those of earlier studies."""
    return bool(table.study or table.priors)


@dataclass
class StudyKeys:
    """Read by what rows are joined: the day of each row's study, and its place in the table."""

    table: TableConfig
    faults: Faults
    clocks: dict[str, str] = field(default_factory=dict)
    """Clock of the studies' times → location of the first."""

    def of(self, frame: pd.DataFrame, names: Names, where: str) -> Columns:
        """Return the columns `KEYS` of some rows; none for a table whose rows are not joined."""
        if not is_joined(self.table):
            return {}
        places = [f"{where}: row {number}" for number in frame.index + 2]
        times = frame[names[self.table.order]] if self.table.order else frame.get(STUDY_TIME, [None] * len(frame))
        read = self._number if self.table.order else self._day
        return {
            "day": [read(when, place) for when, place in zip(times, places, strict=True)],
            "place": places,
            "weight": [1.0] * len(frame),
            "source": [""] * len(frame),
        }

    def _number(self, cell: Any, place: str) -> float:
        with self.faults.gather():
            return read_order(cell, f"{place}: {self.table.order}")
        return math.nan

    def _day(self, when: When | None, place: str) -> float:
        if when is None:
            return math.nan
        self.clocks.setdefault(when.clock, place)
        if len(self.clocks) > 1:
            (kind, first), *_ = self.clocks.items()
            if when.clock != kind:
                what = f"{self.table.time}: a time {CLOCK_WORDS[when.clock]}, but {first} one {CLOCK_WORDS[kind]}"
                self.faults.add(f"{place}: {what}; write all in one way")
        return when.hours / 24


@dataclass
class Studies:
    """Make cases of the rows of a table, counting what was left out."""

    table: TableConfig
    max_images: int
    vitals: Sequence[str]
    """Names of the vitals, for messages."""
    faults: Faults
    counts: Counter[str] = field(default_factory=Counter)

    def cases(self, parts: Iterable[Columns], declared: datasets.Features) -> Iterator[Columns]:
        """Yield the cases of a table's rows."""
        if not is_joined(self.table):
            yield from map(self._checked, parts)
            return
        written = write_rows(parts, datasets.Features({**declared, **KEYS}))
        studies, rows = _Order.of(written), _Rows(written)
        earlier = studies.earlier(self.table.priors)  # N × priors, -1 for none
        self.counts["cases"] = len(earlier)
        self.counts["undated"] = int(np.isnan(studies.first_day).sum()) if self.table.priors else 0
        for start in range(0, len(earlier), PART):
            cases = range(start, min(start + PART, len(earlier)))
            yield self._checked(self._joined(rows, studies, earlier, cases))
        self.faults.raise_any()

    def notes(self, path: Path) -> list[str]:
        """Describe what was made of the rows, and what was left out."""
        says = {
            "earlier": f"of {self.counts['cases']:,} cases show an earlier study of their patient",
            "undated": "cases have no time, so they neither have an earlier study nor are one",
            "twice": "images stood twice in their study and are taken once",
            "many": f"cases have more images than data.max_images, {self.max_images}; the first by role are shown",
            "cut": f"cases had more than {MOST_IMAGES} images, of which the first by role are kept",
            "none": "studies have no image",
        }
        return [f"{path}: {self.counts[name]:,} {said}" for name, said in says.items() if self.counts[name]]

    def _checked(self, part: Columns) -> Columns:
        return {**part, "images": [self._images(cells) for cells in part["images"]]}

    def _images(self, cells: Sequence[Cell]) -> list[Cell]:
        """Put current images before earlier ones, each once, and count what a case has too many of."""
        if len(cells) < 2:
            self.counts["none"] += is_joined(self.table) and not cells
            return list(cells)
        once: dict[str, Cell] = {}
        for cell in sorted(cells, key=lambda cell: cell["prior"]):
            once.setdefault(digest_of(cell["path"]) or cell["path"], cell)
        kept = list(once.values())
        self.counts["twice"] += len(cells) - len(kept)
        self.counts["many"] += len(kept) > self.max_images
        self.counts["cut"] += len(kept) > MOST_IMAGES
        return kept if len(kept) <= MOST_IMAGES else chosen_cells(kept, StudySpec(MOST_IMAGES))

    def _joined(self, rows: "_Rows", studies: "_Order", earlier: np.ndarray, cases: range) -> Columns:
        """Join the rows of some cases, with the images and the report of their earlier studies."""
        shown = earlier[cases.start : cases.stop]
        own = [studies.rows_of(case) for case in cases]
        before = {int(case): studies.rows_of(int(case)) for case in np.unique(shown[shown >= 0])}
        needed = np.unique(np.concatenate([*own, *before.values()]))
        read = dict(rows.read(needed))
        priors = {case: _Prior([read[row] for row in some.tolist()]) for case, some in before.items()}
        made = []
        for case, some, others in zip(cases, own, shown, strict=True):
            together = [read[number] for number in some.tolist()]
            row, place = (
                self._one(together),
                f"{together[0]['place']}: {self.table.time or self.table.origin or self.table.order}",
            )
            self._check_span(studies.last_day[case] - studies.first_day[case], place)
            for other in others[others >= 0].tolist():
                days = math.nan
                with self.faults.gather():
                    gap = round(float(studies.first_day[case] - studies.last_day[other]), 6)
                    days = days if self.table.order else check_days(gap, place)
                row["images"] = [*row["images"], *priors[other].images(days)]
                row["prior_report"] = row["prior_report"] or priors[other].report
            self.counts["earlier"] += bool((others >= 0).any())
            made.append(row)
        return {name: [row[name] for row in made] for name in made[0] if name not in KEYS}

    def _one(self, rows: Sequence[Row]) -> Row:
        """Join the rows of one study, which agree or are empty; what differs goes to the faults."""
        first = dict(rows[0])
        if len(rows) == 1:
            return first
        first["images"] = [cell for row in rows for cell in row["images"]]
        for name in (*_TEXTS, "probability", *(("signal",) if "signal" in first else ())):
            first[name] = self._agreed(name, [row[name] for row in rows], rows)
            if name == "patient" and any(row["patient"] != first["patient"] for row in rows):
                return first  # what else differs follows from it
        sections = [section.column for section in self.table.report]
        for name, parts in (("vitals", self.vitals), ("labels", self.table.labels), ("sections", sections)):
            first[name] = [self._agreed(part, [row[name][place] for row in rows], rows)
                           for place, part in enumerate(parts)]  # fmt: skip
        return first

    def _check_span(self, days: float, place: str) -> None:
        if self.table.order and days:
            self.faults.add(f"{place}: one study has several numbers; is the id that of several?")
        elif days > LONGEST_STUDY:
            self.faults.add(f"{place}: the images of its study are {days:,.0f} days apart; is the id that of several?")

    def _agreed(self, name: str, values: Sequence[Any], rows: Sequence[Row]) -> Any:
        known = [(value, row["place"]) for value, row in zip(values, rows, strict=True) if not _is_nothing(value)]
        for value, place in known[1:]:
            if value != known[0][0]:
                other = known[0][1].rpartition(": ")[2]
                way_out = "rows of one study agree or are empty"
                self.faults.add(
                    f"{place}: {name} differs from {other}, of the same study {rows[0]['id']!r:.60}; {way_out}"
                )
                break
        return known[0][0] if known else values[0]


def _is_nothing(value: Any) -> bool:
    return value is None or value in ("", b"") or value != value


class _Rows:
    """Random access to the rows of a memory-mapped file, batch by batch."""

    def __init__(self, rows: datasets.Dataset) -> None:
        self.batches = rows.data.to_batches()
        self.starts = np.cumsum([0, *(batch.num_rows for batch in self.batches)])

    def read(self, places: np.ndarray) -> Iterator[tuple[int, Row]]:
        """Yield rows with their places, which are given in rising order."""
        bounds = np.searchsorted(places, self.starts)
        for batch, start, first, last in zip(self.batches, self.starts, bounds[:-1], bounds[1:], strict=False):
            if first < last:
                chosen = places[first:last]
                yield from zip(chosen.tolist(), pc.take(batch, pa.array(chosen - start)).to_pylist(), strict=True)


@dataclass
class _Prior:
    """What a later study is shown of one: its current images and its report."""

    rows: Sequence[Mapping[str, Any]]

    def images(self, days: float) -> list[Cell]:
        """Return its images as they are shown so many days after."""
        return [
            {**cell, "prior": True, "days": days} for row in self.rows for cell in row["images"] if not cell["prior"]
        ]

    @property
    def report(self) -> str:
        """Its report, the sections in order."""
        sections = zip(*(row["sections"] for row in self.rows), strict=True)
        return " ".join(filter(None, (next(filter(None, texts), "") for texts in sections)))


@dataclass
class _Order:
    """Rows by study, the studies by their first row; R rows, N studies."""

    rows: np.ndarray
    """R, by study."""
    starts: np.ndarray
    """N + 1: the rows of study i are starts[i] to starts[i + 1]."""
    patients: np.ndarray
    """N, hashes."""
    first_day: np.ndarray
    """N, the day of the first image, NaN if it is not known."""
    last_day: np.ndarray
    """N, of the last."""

    @classmethod
    def of(cls, table: datasets.Dataset) -> "_Order":
        """Group rows by their id."""
        _, first, study = np.unique(hashes(table, "id"), return_index=True, return_inverse=True)
        number = np.empty(len(first), np.int64)
        number[np.argsort(first)] = np.arange(len(first))
        study = number[study]
        rows = np.argsort(study, kind="stable")
        starts = np.searchsorted(study[rows], np.arange(len(first) + 1))
        days = column(table, "day").to_numpy()[rows]
        ends = [reduce(days, starts[:-1]) if len(days) else days for reduce in (np.fmin.reduceat, np.fmax.reduceat)]
        return cls(rows, starts, hashes(table, "patient")[rows[starts[:-1]]], *ends)

    def rows_of(self, study: int) -> np.ndarray:
        """Return the rows of a study, in table order."""
        return self.rows[self.starts[study] : self.starts[study + 1]]

    def earlier(self, most: int) -> np.ndarray:
        """Find the last studies of the same patient that ended before each began; N × most, -1 for none."""
        found = np.full((len(self.patients), most), -1)
        dated = np.flatnonzero(~np.isnan(self.first_day))
        if not len(dated) or not most:
            return found
        _, patient = np.unique(self.patients[dated], return_inverse=True)
        days, ranks = np.unique(np.concatenate([self.first_day[dated], self.last_day[dated]]), return_inverse=True)
        begins, ends = ranks.reshape(2, -1) + patient * len(days)  # one number sorts by patient, then by day
        order = np.argsort(ends, kind="stable")
        before = np.searchsorted(ends[order], begins)  # as many ended before, those of other patients among them
        for place in range(most):
            other = before - 1 - place
            same = (other >= 0) & (patient[order[other]] == patient)
            found[dated[same], place] = dated[order[other[same]]]
        return found
