"""Gather values over time, from columns and from a table with one measurement a row, into one cell a case and vital."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlm.config import SeriesColumnConfig, TableConfig
from vlm.data.ingest.column_names import find_column
from vlm.data.vitals.catalog import resolve_vitals
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.series import MOST_POINTS, NOW, STUDY_TIME, Point, Series, When, hours_before, read_time
from vlm.data.vitals.values import is_missing, quoted, read_value
from vlm.errors import UserError
from vlm.faults import Faults

CLOCKS = ("study", "origin", "zoned", "naive")
Row = tuple[str, str]
"""Place for messages, and key: the id of the case or of the patient."""


class Measurements:
    """Values over time by the case or patient that they are of; numbers alone, so that millions of them fit."""

    def __init__(self, table: TableConfig, schema: VitalsSchema, faults: Faults) -> None:
        self.table, self.schema, self.faults = table, schema, faults
        self.left_out: Counter[str] = Counter()
        self._codes: dict[str, int] = {}
        """Key → its number."""
        self._known: set[str] = set()
        self._numbers: list[array[Any]] = [array(kind) for kind in "qhbdd"]  # key, vital, clock, hours, value
        self._check()

    @classmethod
    def read(
        cls, table: TableConfig, root: Path, path: Path, read: Callable[[Path], Iterator[pd.DataFrame]]
    ) -> "Measurements":
        """Read what `table` says of values over time; `read` yields the frames of a file, `path` that of the cases.

        Raises `UserError` for a missing column, and for values and times that cannot be read, with their rows.
        """
        measured = cls(table, VitalsSchema(resolve_vitals(table.vitals)), Faults())
        if not (table.series or table.measurements.file):
            return measured
        for frame in read(path):
            measured.read_columns(frame, str(path))
        measured.faults.raise_any()
        if table.measurements.file:
            measured.read_file(root / table.measurements.file, read)
        return measured

    def rows(self, frame: pd.DataFrame, where: str) -> list[Row]:
        """Return the place and the key of each row of the cases."""
        column = self.table.patient if self.table.series_of == "patient" else self.table.study or self.table.id
        numbers = frame.index + 2
        keys = map(cell_text, frame[find_column(frame.columns, column, where)]) if column else (
            f"row-{number}" for number in numbers)  # fmt: skip
        return [(f"{where}: row {number}", key) for number, key in zip(numbers, keys, strict=True)]

    def _check(self) -> None:
        table, where = self.table, "data.table"
        for column in table.series:
            self._position(column.vital, f"{where}.series")
            if bool(column.time) == bool(column.at):
                raise UserError(
                    f"{where}.series: {column.value}: give time, the column of its times, or at, its one time"
                )
        if table.time and table.origin:
            raise UserError(f"{where}: time and origin stand in place of each other; give one of them")
        by_patient = table.series_of == "patient"
        if by_patient and not (table.patient and (table.time or table.origin)):
            raise UserError(f"{where}.series_of: patient needs the columns patient, and time or origin")
        if table.measurements.file and not (by_patient or table.study or table.id):
            raise UserError(f"{where}.measurements: needs the column id of the cases, or series_of: patient")

    def _position(self, name: str, where: str) -> int:
        position = self.schema.position(name, where)
        if not self.schema.vitals[position].over_time:
            raise UserError(f"{where}: {name} is one value; declare it with over_time: true")
        return position

    # ---------------------------------------------------------------------------------------- reading

    def read_columns(self, frame: pd.DataFrame, where: str) -> None:
        """Take the values of the columns in `data.table.series` from a frame of the cases."""
        rows = self.rows(frame, where)
        self._known.update(key for _, key in rows)
        studies = self._studies(frame, where, rows)
        for column in self.table.series:
            position = self._position(column.vital, "data.table.series")
            name = find_column(frame.columns, column.value, where)
            for (place, key), study, cell, time in zip(rows, studies, frame[name], self._times(frame, column, where),
                                                       strict=True):  # fmt: skip
                with self.faults.gather():
                    when = self._when(time, f"{place}: {column.time or name}") if not is_missing(cell) else NOW
                    if when and when.clock == "study" and self.table.series_of == "patient":
                        when = When(when.hours + study.hours, study.clock) if study else None
                    self._add(key, position, when, cell, f"{place}: {name}", column.unit)

    def _times(self, frame: pd.DataFrame, column: SeriesColumnConfig, where: str) -> Iterable[Any]:
        if column.time:
            return frame[find_column(frame.columns, column.time, where)]
        return [read_time(column.at, f"data.table.series: {column.value}")] * len(frame)

    def _when(self, cell: Any, where: str) -> When | None:
        """Read a time; a number alone counts from the study, unless the studies' own times count from an origin."""
        if is_missing(cell):
            return None
        when = read_time(cell, where, self.table.time_unit)
        return When(when.hours) if when.clock == "origin" and not self.table.time else when

    def read_file(self, path: Path, read: Callable[[Path], Iterator[pd.DataFrame]]) -> None:
        """Take the rows of `data.table.measurements`; those of other vitals are counted as left out."""
        own, others = self.table.measurements, Counter[str]()
        for frame in read(path):
            key, name, value, time = (frame[find_column(frame.columns, column, str(path))]
                                      for column in (own.id, own.name, own.value, own.time))  # fmt: skip
            units = frame[find_column(frame.columns, own.unit, str(path))] if own.unit else [""] * len(frame)
            for number, of, word, cell, at, unit in zip(frame.index + 2, key, name, value, time, units, strict=True):
                vitals, written = self.schema.column(str(word).strip())
                if len(vitals) != 1:
                    others[str(word).strip()] += 1
                    continue
                with self.faults.gather():
                    place = f"{path}: row {number}"
                    position = self._position(vitals[0], place)
                    unit = written if is_missing(unit) else str(unit)
                    when = self._measured(at, f"{place}: {own.time}")
                    self._add(cell_text(of), position, when, cell, f"{place}: {own.value}", unit)
        self.faults.raise_any()
        if others:
            words = ", ".join(f"{word:.40}" for word, _ in others.most_common(3))
            self.left_out[f"measurements are none of the vitals ({words})"] += others.total()
        if not self._known & self._codes.keys():
            raise UserError(f"{path}: no {own.id} is that of a {self.table.series_of} of the table of cases")

    def _measured(self, cell: Any, where: str) -> When | None:
        when = None if is_missing(cell) else read_time(cell, where, self.table.time_unit)
        if when and when.clock == "origin" and not (self.table.time or self.table.origin):
            when = When(when.hours)
        if when and when.clock == "study" and self.table.series_of == "patient":
            raise UserError(f"{where}: {quoted(cell)} is before which study? a patient's times are dates, or numbers "
                            "from the origin of data.table.time or data.table.origin")  # fmt: skip
        return when

    def _add(self, key: str, position: int, when: When | None, cell: Any, where: str, unit: str) -> None:
        value = read_value(self.schema.vitals[position], cell, where, unit)
        if value != value:
            return
        if when is None:
            self.left_out["values without a time were left out"] += 1
            return
        code = self._codes.setdefault(key, len(self._codes))
        for numbers, number in zip(self._numbers, (code, position, CLOCKS.index(when.clock), when.hours, value),
                                   strict=True):  # fmt: skip
            numbers.append(number)

    # ---------------------------------------------------------------------------------------- giving

    def joined_to(self, frame: pd.DataFrame, where: str) -> pd.DataFrame:
        """Return a frame of the cases with a cell for each series, and the time of the study, among its vitals.

        Raises `UserError` if a column of the vital itself is there too.
        """
        table = self.table
        if not (table.time or table.origin or table.series or table.measurements.file):
            return frame
        rows = self.rows(frame, where)
        studies = self._studies(frame, where, rows)
        cells: dict[str, list[Any]] = {STUDY_TIME: studies} if table.time or table.origin else {}
        found = [self._series(self._codes.get(key), study) for (_, key), study in zip(rows, studies, strict=True)]
        used = [find_column(frame.columns, column.value, where) for column in table.series]
        own = {name for column in frame.columns if column not in used for name in self.schema.names_in(str(column))}
        told = {self.schema.vitals[position].name for position in {*self._numbers[1]}}
        for name in self.schema.features:
            if name not in own:
                cells[name] = [series.get(name) for series in found]
            elif name in told:
                raise UserError(f"{where}: a column and data.table.series or measurements both give {name}; drop one")
        columns = {name: pd.Series(column, frame.index, object) for name, column in cells.items()}
        return frame.drop(columns=used).assign(**columns)

    def _studies(self, frame: pd.DataFrame, where: str, rows: Sequence[Row]) -> list[When | None]:
        """Read when each case's study was; None where that is not known."""
        table = self.table
        column = table.time or table.origin
        if not column:
            return [None] * len(rows)
        studies: list[When | None] = []
        for (place, _), cell in zip(rows, frame[find_column(frame.columns, column, where)], strict=True):
            study = None
            with self.faults.gather():
                when = None if is_missing(cell) else read_time(cell, f"{place}: {column}", table.time_unit)
                study = self._study(when, f"{place}: {column}") if when else None
            studies.append(study)
        return studies

    def _study(self, when: When, where: str) -> When:
        if self.table.time:
            if when.clock == "study":
                raise UserError(f"{where}: the time of a study is a date, or a number with data.table.time_unit")
            return when
        if when.clock not in ("study", "origin"):
            raise UserError(f"{where}: an origin is given as its time from the study, such as -2 d; a date is a time")
        return When(-when.hours, "origin")

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Where the values of each key begin, and vital, clock, hours and value of each in order of key and time."""
        key, vital, clock, hours, value = (np.array(numbers) for numbers in self._numbers)  # each N
        order = np.lexsort((hours, key))
        starts = np.searchsorted(key[order], np.arange(len(self._codes) + 1))
        return starts, tuple(numbers[order] for numbers in (vital, clock, hours, value))

    def _series(self, code: int | None, study: When | None) -> dict[str, Series]:
        """Collect the values of a key up to the study, by vital."""
        if code is None:
            return {}
        starts, columns = self._sorted
        part = slice(starts[code], starts[code + 1])
        at, found = study or NOW, dict[str, Series]()
        for position, clock, hours, value in zip(*(column[part].tolist() for column in columns), strict=True):
            when, name = When(hours, CLOCKS[clock]), self.schema.vitals[position].name
            if study is None and (self.table.time or self.table.origin):
                self.left_out["values of studies without a time were left out"] += 1
            elif when.clock in ("study", at.clock) and hours_before(when, at) > 0:
                self.left_out["values after their study were left out"] += 1
            else:
                found.setdefault(name, Series()).append(Point(when, value))
        if any(len(series) > MOST_POINTS for series in found.values()):
            self.left_out[f"series had more than {MOST_POINTS:,} values; the newest were taken"] += 1
        return {name: Series(series[-MOST_POINTS:]) for name, series in found.items()}

    def notes(self, where: str) -> list[str]:
        """Return a note for each reason why values were left out, with their number."""
        return [f"{where}: {count:,} {why}" for why, count in self.left_out.items()]


def cell_text(value: object) -> str:
    """Convert a cell to text; a whole number gets no decimal point, even in a float column."""
    if value is None or value != value:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value).strip()
