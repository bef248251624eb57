"""Read the images of a study from a table's columns: their names, views, and the days of earlier ones."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from vlm.config import StudyImageConfig, TableConfig
from vlm.data.study import MOST_IMAGES, Cell, check_days, image_cell, view_name
from vlm.data.vitals.values import clean, is_missing, quoted
from vlm.errors import UserError
from vlm.faults import Faults

Paths = Callable[[pd.Series, str], list[str]]
"""Finds the files of names, whose index counts rows, in the table of this path; empty for no image."""
Names = Mapping[str | None, str]
"""Column in the config → column of the table."""
_NUMBER = re.compile(r"[+-]?\d{1,7}(?:[.,]\d{1,9})?", re.ASCII)


def image_columns(table: TableConfig) -> list[StudyImageConfig]:
    """List the columns of images: `image` first, then those of `study_images`."""
    first = [StudyImageConfig(table.image, view_column=table.view)] if table.image else []
    return [*first, *table.study_images]


def study_table_columns(table: TableConfig) -> list[str]:
    """List the columns that describe studies, besides `image`."""
    own = [table.view, table.study, table.order, table.prior_report]
    further = chain.from_iterable((item.column, item.view_column, item.days) for item in table.study_images)
    return [*filter(None, (*own, *further))]


def has_views(table: TableConfig) -> bool:
    """Check whether the table tells the view of any image."""
    return any(item.view or item.view_column for item in image_columns(table))


def check_study_options(table: TableConfig) -> None:
    """Raise `UserError` for options of studies that contradict each other."""
    where = "data.table"
    for item in table.study_images:
        if item.view and item.view_column:
            raise UserError(f"{where}.study_images: {item.column}: give view, one for all, or view_column, not both")
        if item.days and not item.prior:
            raise UserError(f"{where}.study_images: {item.column}: days are those of an earlier study; set prior: true")
        view_name(item.view, f"{where}.study_images: {item.column}: view")
    if table.view and not table.image:
        raise UserError(f"{where}.view: is the view of data.table.image, which is not set")
    if table.image_separator is not None and not re.fullmatch(r"\s*[;,|+]+\s*|\s+", table.image_separator):
        raise UserError(
            f"{where}.image_separator: {table.image_separator!r:.20} may be part of a name; take ; , | or +"
        )
    if table.study and table.id:
        raise UserError(f"{where}.id: the id of the study, {table.study}, is that of the case; leave id away")
    if not 0 <= table.priors < MOST_IMAGES:
        raise UserError(f"{where}.priors: 0 to {MOST_IMAGES - 1}, not {table.priors}")
    if table.order and (table.time or table.origin):
        raise UserError(f"{where}.order: is for studies without time or origin; give one of them")
    if table.priors and not (table.patient and (table.time or table.origin or table.order)):
        way_out = "set patient, and time, origin or order"
        raise UserError(f"{where}.priors: earlier studies are found by the columns of patient and time; {way_out}")


def several_names(cell: Any, separator: str | None) -> list[Any]:
    """Split a cell into names: a list, or a text with the separator, which then no name holds."""
    if isinstance(cell, list):
        return cell
    return list(cell.split(separator)) if separator and isinstance(cell, str) else [cell]


class StudyColumns:
    """Read the images of each row with their roles; what cannot be read goes to the faults."""

    def __init__(self, table: TableConfig, paths: Paths, faults: Faults) -> None:
        self.table, self.paths, self.faults = table, paths, faults
        self._views: dict[str, str] = {}

    def read(self, frame: pd.DataFrame, names: Names, where: str) -> list[list[Cell]]:
        """Read the images of N rows, in the order of the columns."""
        rows: list[list[Cell]] = [[] for _ in range(len(frame))]
        for item in image_columns(self.table):
            for place, cell in self._column(item, frame, names, where):
                rows[place].append(cell)
        return rows

    def _column(
        self, item: StudyImageConfig, frame: pd.DataFrame, names: Names, where: str
    ) -> Iterator[tuple[int, Cell]]:
        given = frame[names[item.column]]
        several = [several_names(cell, self.table.image_separator) for cell in given]
        counts = [len(some) for some in several]
        places = np.repeat(np.arange(len(given)), counts)
        flat = pd.Series(list(chain.from_iterable(several)), given.index[places], object, str(given.name))
        views = chain.from_iterable(self._views_of(item, frame, names, where, counts))
        days = self._days(item, frame, names, where)
        for place, path, view in zip(places.tolist(), self.paths(flat, where), views, strict=True):
            if path:
                yield place, image_cell(path, view, item.prior, days[place])

    def _views_of(
        self, item: StudyImageConfig, frame: pd.DataFrame, names: Names, where: str, counts: Sequence[int]
    ) -> Iterator[list[str]]:
        """Yield the views of each row's images; one alone is that of all of them."""
        if not item.view_column:
            yield from ([view_name(item.view)] * count for count in counts)
            return
        cells = frame[names[item.view_column]]
        for number, cell, count in zip(cells.index + 2, cells, counts, strict=True):
            place, views = f"{where}: row {number}: {item.view_column}", [""] * count
            with self.faults.gather():
                words = (
                    [self._view(word, place) for word in several_names(cell, self.table.image_separator)]
                    if count
                    else []
                )
                if len(words) not in (1, count):
                    raise UserError(f"{place}: {len(words)} views of {count} images; write one each, or one for all")
                views = words * count if len(words) == 1 else words
            yield views

    def _view(self, word: Any, place: str) -> str:
        if is_missing(word):
            return ""
        if isinstance(word, list | dict | bytes):
            raise UserError(f"{place}: {quoted(word)} is no view")
        text = str(word)
        if text not in self._views:
            self._views[text] = view_name(text, place)
        return self._views[text]

    def _days(self, item: StudyImageConfig, frame: pd.DataFrame, names: Names, where: str) -> list[float]:
        """Read the days before the study, 0 for current images, NaN where they are not known."""
        if not item.days:
            return [math.nan if item.prior else 0.0] * len(frame)
        cells, days = frame[names[item.days]], [math.nan] * len(frame)
        for place, (number, cell) in enumerate(zip(cells.index + 2, cells, strict=True)):
            with self.faults.gather():
                days[place] = read_days(cell, f"{where}: row {number}: {item.days}")
        return days


def read_days(cell: Any, where: str) -> float:
    """Read the days from an earlier study to this one, NaN for a missing cell; raises `UserError` for a prior after."""
    if is_missing(cell):
        return math.nan
    days = _number(cell)
    if days is None:
        raise UserError(f"{where}: {quoted(cell)} is no number of days")
    return check_days(days, where)


def read_order(cell: Any, where: str) -> float:
    """Read the number of a study, NaN for a missing cell; raises `UserError` for anything else."""
    number = math.nan if is_missing(cell) else _number(cell)
    if number is None:
        raise UserError(f"{where}: {quoted(cell)} is no number of a study")
    return number


def _number(cell: Any) -> float | None:
    """Read a number of up to 7 digits before the point; None for anything else."""
    if isinstance(cell, bool | bytes | list | dict):
        return None
    text = clean(str(cell)[:60])
    return float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else None
