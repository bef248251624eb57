"""A user's own CSV or Parquet table with a folder of images, described by the config alone."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import starmap
from pathlib import Path

import pandas as pd

from vlm.config import DataConfig, TableConfig
from vlm.data.catalog import resolve_vitals
from vlm.data.cohort import (
    Cohort,
    Columns,
    Doubts,
    build_dataset,
    doubt_warnings,
    image_cells,
    rows_to_columns,
    splits_for,
)
from vlm.data.image_names import ImageFolder
from vlm.data.reading import read_chunks, reading_notes, some_of
from vlm.data.schema import VitalsSchema
from vlm.data.units import units_of
from vlm.errors import UserError

CHUNK = 10_000
"""Rows parsed at a time: few enough that their Python objects do not add up."""
Part = tuple[Path, pd.DataFrame]
"""The file of a table and some of its rows; the frame's index counts the rows of the whole file."""


def load_table(data: DataConfig, table: TableConfig | None = None) -> Cohort:
    """Read the cases that `data.table` describes.

    Raises `UserError` for a missing column, an unreadable value or a missing image, with row and column.
    """
    table = table or data.table
    root = Path(data.root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set data.root to the folder of the table {table.file}")
    path = root / table.file
    cohort = load_frames(((path, frame) for frame in read_chunks(path, CHUNK)), table, data, path)
    return replace(cohort, warnings=(*reading_notes(path), *cohort.warnings))


def load_frames(parts: Iterable[Part], table: TableConfig, data: DataConfig, path: Path) -> Cohort:
    """The cohort of a table in parts, described by `table`; the whole of it is called `path`."""
    schema = VitalsSchema(resolve_vitals(table.vitals))
    _check_needs(table, schema)
    reader = _Reader(data, table, schema)
    dataset = build_dataset(starmap(reader.columns, parts), schema, len(table.labels), len(table.report))
    if not len(dataset):
        raise UserError(f"{path}: the table has no rows")
    warnings = [*reader.images.notes(), *doubt_warnings(str(path), schema, reader.doubts, dataset)]
    if table.patient is None:
        warnings.append(f"{path}: no patient column is named, so every row counts as a patient of its own in the split")
    labels, sections = tuple(table.labels), tuple(table.report)
    return Cohort(dataset, schema, labels, sections, None, table.label_findings, tuple(warnings))


@dataclass
class _Reader:
    """Part of a table → the columns of a cohort; what it doubts on the way, it gathers."""

    data: DataConfig
    table: TableConfig
    schema: VitalsSchema
    doubts: Doubts = field(default_factory=dict)

    @cached_property
    def images(self) -> ImageFolder:
        """Where the names of images are looked up."""
        return ImageFolder(Path(self.data.root) / self.table.images)

    def columns(self, path: Path, frame: pd.DataFrame) -> Columns:
        """The columns of some rows of the file `path`."""
        table, where = self.table, str(path)
        self._check_columns(path, frame)
        vitals_columns = _vitals_columns(frame, self.schema, path)
        vitals, labels, doubts = rows_to_columns(frame, where, self.schema, vitals_columns, table.labels)
        for name, rows in doubts.items():
            self.doubts.setdefault(name, []).extend(rows)
        ids = _cells(frame, table.id) or [f"row-{number}" for number in frame.index + 2]
        patients = _cells(frame, table.patient) or ids
        if "" in patients:
            number = frame.index[patients.index("")] + 2
            raise UserError(f"{where}: row {number}: {table.patient} is empty; the split is by patient")
        nothing = [""] * len(frame)
        probabilities = pd.Series(_cells(frame, table.probability) or nothing, index=frame.index)
        return {
            "id": ids,
            "patient": patients,
            "split": splits_for(patients, self.data, frame[table.split] if table.split else None, where),
            "image": image_cells(frame[table.image], self.images, where) if table.image else [None] * len(frame),
            "vitals": vitals,
            "labels": labels,
            "sections": [list(texts) for texts in zip(*(_cells(frame, s.column) for s in table.report), strict=True)]
            or [[] for _ in ids],
            "context": _cells(frame, table.context) or nothing,
            "probability": _probabilities(probabilities, where, table.probability),
        }

    def _check_columns(self, path: Path, frame: pd.DataFrame) -> None:
        table = self.table
        single = [table.image, table.id, table.patient, table.split, table.context, table.probability]
        for name in [*filter(None, single), *table.labels, *(section.column for section in table.report)]:
            if name not in frame.columns:
                raise UserError(f"{path}: no column {name}; the table has {some_of(frame.columns)}")


def _cells(frame: pd.DataFrame, name: str | None) -> list[str]:
    """The texts of a column, or nothing where none is named."""
    return [_text(value) for value in frame[name]] if name else []


def _probabilities(cells: pd.Series, path: str, column: str | None) -> list[float | None]:
    """Numbers from 0 to 1, or nothing."""
    values: list[float | None] = []
    for number, text in zip(cells.index + 2, cells, strict=True):
        try:
            value = float(text) if text else None
        except ValueError:
            value = math.inf
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{path}: row {number}: {column}: {text!r} is no probability; write 0 to 1 or nothing")
        values.append(value)
    return values


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value).strip()


def _vitals_columns(frame: pd.DataFrame, schema: VitalsSchema, path: Path) -> list[str]:
    """Columns that hold declared vitals under any of their names; every declared vital must have one."""
    columns = [str(column) for column in frame.columns if schema.names_in(str(column))]
    covered = {name for column in columns for name in schema.names_in(column)}
    for vital in schema.names:
        if vital not in covered:
            _refuse_unit(frame, schema, vital, path)
            raise UserError(f"{path}: no column for the vital {vital}; the table has {some_of(frame.columns)}")
    return columns


def _refuse_unit(frame: pd.DataFrame, schema: VitalsSchema, vital: str, path: Path) -> None:
    """Say so where a header names the vital with a unit that it does not take."""
    for column in map(str, frame.columns):
        stem = re.split(r"[\[(]", column)[0]
        if stem != column and schema.names_in(stem) == (vital,):
            units = units_of(schema.vitals[schema.position(vital)])
            raise UserError(f"{path}: row 1: column {column}: its unit is none of those that {vital} takes: {units}")


def _check_needs(table: TableConfig, schema: VitalsSchema) -> None:
    for section in table.report:
        for need in section.needs:
            if need not in ("image", "vitals"):
                schema.position(need, f"data.table.report: {section.column}: needs")
