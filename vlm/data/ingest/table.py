"""Read a user's own CSV or Parquet table with a folder of images, described by the config alone."""

import math
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import starmap
from pathlib import Path

import pandas as pd

from vlm.config import DataConfig, TableConfig
from vlm.data.cohort import (
    Cohort,
    Columns,
    Implausible,
    Notes,
    build_dataset,
    check_needs,
    features,
    image_paths,
    range_warnings,
    read_label_columns,
    read_vitals_columns,
    splits_for,
)
from vlm.data.embedded import EmbeddedImage
from vlm.data.images.find import ImageFolder
from vlm.data.images.store import ImageStore
from vlm.data.ingest.column_names import find_column, listed
from vlm.data.ingest.measurements import Measurements, cell_text
from vlm.data.ingest.read import TableOptions, read_chunks, reading_notes
from vlm.data.ingest.studies import Studies, StudyKeys
from vlm.data.ingest.study_columns import StudyColumns, check_study_options, has_views, study_table_columns
from vlm.data.labels import LabelReader
from vlm.data.sections import check_distinct
from vlm.data.signals.signal_column import SignalColumn
from vlm.data.study import flat_images
from vlm.data.vitals.catalog import resolve_vitals
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.synonyms import is_missing_word
from vlm.data.vitals.units import units_of
from vlm.data.vitals.values import quoted
from vlm.errors import UserError
from vlm.faults import Faults

CHUNK = 10_000
"""Rows parsed at a time: few, to bound the memory of their Python objects."""
SIGNAL_CHUNK = 500
"""Rows with a signal parsed at a time."""
_ROUNDED = re.compile(r"\d([.,]\d+)?[eE]\+\d+")
"""A long number in spreadsheet notation: its last digits are lost, so different patients get one id."""
Part = tuple[Path, pd.DataFrame]
"""Path of a table and a chunk of its rows; the frame's index counts the rows of the whole file."""


def load_table(data: DataConfig, table: TableConfig | None = None) -> Cohort:
    """Read the cases that `data.table` describes.

    Raises `UserError` for a missing column, an unreadable value or a missing image, with row and column.
    """
    table = table or data.table
    root = data.folder
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set data.root to the folder of the table {table.file}")
    path, options = root / table.file, TableOptions(table.encoding, table.sheet)
    measured = Measurements.read(
        table, root, path, lambda file: read_chunks(file, CHUNK, options if file == path else TableOptions())
    )
    frames = read_chunks(path, SIGNAL_CHUNK if table.signal.column else CHUNK, options)
    cohort = load_frames(((path, frame) for frame in frames), table, data, path, measured)
    return replace(cohort, warnings=(*reading_notes(path, options), *cohort.warnings))


def load_frames(
    parts: Iterable[Part], table: TableConfig, data: DataConfig, path: Path, measured: Measurements | None = None
) -> Cohort:
    """Build the cohort of a table in parts, described by `table`; messages call the whole table `path`.

    `measured` are the values over time of the whole table, read before.
    """
    schema = VitalsSchema(resolve_vitals(table.vitals))
    check_study_options(table)
    _check_needs(table, schema, None if has_views(table) else ())
    if measured is None and (table.series or table.measurements.file):
        raise UserError("data.table: series and measurements are read by the source table alone")
    if data.section_headings:
        check_distinct(table.report)
    reader = _Reader(data, table, schema, measured or Measurements(table, schema, Faults()))
    signal, sizes = reader.signals.format, (len(table.labels), len(table.report))
    studies = Studies(table, data.max_images, schema.names, reader.faults)
    cases = studies.cases(reader.all_columns(parts), features(len(schema), *sizes, signal is not None))
    dataset = build_dataset(cases, schema, *sizes, signal is not None)
    if not len(dataset):
        raise UserError(f"{path}: the table has no rows")
    if has_views(table):
        images = flat_images(dataset)
        _check_needs(table, schema, set(images.views[~images.prior]) - {""})
    warnings = [*reader.notes(path), *studies.notes(path), *reader.images.notes(), *reader.signals.notes()]
    warnings += range_warnings(str(path), schema, reader.doubtful, dataset)
    if table.patient is None:
        warnings.append(f"{path}: no patient column is named, so every row counts as a patient of its own in the split")
    labels, sections = tuple(table.labels), tuple(table.report)
    return Cohort(dataset, schema, labels, sections, None, table.label_findings, tuple(warnings), signal)


@dataclass
class _Reader:
    """Convert parts of a table to cohort columns, collecting doubtful and faults."""

    data: DataConfig
    table: TableConfig
    schema: VitalsSchema
    measured: Measurements
    """Values over time."""
    doubtful: Implausible = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    renamed: dict[str, str] = field(default_factory=dict)
    """Name in the config → the differently spelled column that matched it."""
    labels: list[LabelReader] = field(init=False)
    signals: SignalColumn = field(init=False)
    label_notes: list[str] = field(default_factory=list)
    store: ImageStore = field(default_factory=ImageStore)
    """Store of images embedded in the table."""
    keys: StudyKeys = field(init=False)
    series_notes: Notes = field(default_factory=dict)
    no_reports: dict[str, list[str]] = field(default_factory=dict)
    """Report column → its cells with a word for missing, such as `NA`."""

    def __post_init__(self) -> None:
        self.labels = [LabelReader(name, self.table.uncertain) for name in self.table.labels]
        self.measured.faults = self.faults
        self.keys = StudyKeys(self.table, self.faults)
        self.signals = SignalColumn(self.table.signal, self.data.folder, self.faults)

    def all_columns(self, parts: Iterable[Part]) -> Iterator[Columns]:
        """Yield the columns of each part; raises one `UserError` at the end that names all faults."""
        yield from starmap(self.columns, parts)
        self.label_notes = [note for reader in self.labels for note in reader.finish(self.faults)]
        self.faults.raise_any()

    def notes(self, path: Path) -> list[str]:
        """Return notes on matched columns, missing reports and label readings."""
        taken = [f"{name} is read from column {column}" for name, column in self.renamed.items()]
        nothing = [
            f"column {name}: {len(cells):,} cells such as {cells[0]!r} are read as no report"
            for name, cells in self.no_reports.items()
        ]
        series = [f"{note} ({count:,} cases, first in row {row})" for note, (row, count) in self.series_notes.items()]
        notes = ([", ".join(taken)] if taken else []) + nothing + self.label_notes + series
        return [f"{path}: {note}" for note in notes] + self.measured.notes(str(path))

    @cached_property
    def images(self) -> ImageFolder:
        """Folder in which image names are looked up."""
        return ImageFolder(self.data.folder / self.table.images)

    def columns(self, path: Path, frame: pd.DataFrame) -> Columns:
        """Convert some rows of the file `path` to cohort columns."""
        table, where = self.table, str(path)
        column = self._columns_of(path, frame)
        measured = self.measured.joined_to(frame, where)
        names = _vitals_columns(measured, self.schema, path)
        vitals, doubtful = read_vitals_columns(measured, where, self.schema, names, self.faults, self.series_notes)
        for name, rows in doubtful.items():
            self.doubtful.setdefault(name, []).extend(rows)
        labels = read_label_columns(frame, where, self.labels, [column[name] for name in table.labels], self.faults)
        own = table.study or table.id
        ids = _cells(frame, column.get(own), where) or [f"row-{number}" for number in frame.index + 2]
        patients = _cells(frame, column.get(table.patient), where) or ids
        self._check_names(table.patient or own, patients, frame, where, "names nobody", "the split is by patient")
        if table.study and table.patient:
            self._check_names(table.study, ids, frame, where, "names no study", "each row is of one")
        nothing = [""] * len(frame)
        probabilities = pd.Series(_cells(frame, column.get(table.probability), where) or nothing, index=frame.index)
        sections = [self._reports(column[section.column], frame, where) for section in table.report]
        fixed = frame[column[table.split]] if table.split else None
        return {
            "id": ids,
            "patient": patients,
            "split": splits_for(patients, self.data, fixed, where, self.faults),
            "images": StudyColumns(table, self._paths, self.faults).read(frame, column, where),
            "vitals": vitals,
            "labels": labels,
            "sections": [list(texts) for texts in zip(*sections, strict=True)] or [[] for _ in ids],
            "context": _cells(frame, column.get(table.context), where) or nothing,
            "prior_report": self._reports(column[table.prior_report], frame, where) if table.prior_report else nothing,
            "probability": _probabilities(probabilities, where, table.probability, self.faults),
            **self.signals.of(frame, column.get(table.signal.column), where),
            **self.keys.of(measured, column, where),
        }

    def _check_names(
        self, column: str | None, names: list[str], frame: pd.DataFrame, where: str, nobody: str, why: str
    ) -> None:
        """Note a fault for each id that is missing or rounded."""
        for number, name in zip(frame.index + 2, names, strict=True):
            if _ROUNDED.fullmatch(name):
                way_out = "format the column as text before it is saved"
                self.faults.add(f"{where}: row {number}: {column} {name!r} is rounded; {way_out}")
            if is_missing_word(name):
                what = f"{name!r:.60} {nobody}" if name else "is empty"
                self.faults.add(f"{where}: row {number}: {column} {what}; {why}")

    def _reports(self, name: str, frame: pd.DataFrame, where: str) -> list[str]:
        """Read the texts of a report section; a word for missing, such as `NA`, becomes an empty text."""
        texts = _cells(frame, name, where)
        if nothing := [text for text in texts if text and is_missing_word(text)]:
            self.no_reports.setdefault(name, []).extend(nothing)
        return ["" if is_missing_word(text) else text for text in texts]

    def _paths(self, names: pd.Series, where: str) -> list[str]:
        """Find the file of each cell; on a fault, cell by cell, so that all faults are named."""
        with suppress(UserError):
            return image_paths(names, self.images, where, self.store)
        paths: list[str] = []
        for place in range(len(names)):
            found = [""]
            with self.faults.gather():
                found = image_paths(names.iloc[place : place + 1], self.images, where, self.store)
            paths += found
        return paths

    def _columns_of(self, path: Path, frame: pd.DataFrame) -> dict[str | None, str]:
        """Map names in the config to columns of the frame; raises `UserError` for a missing column."""
        table = self.table
        single = [table.image, table.id, table.patient, table.split, table.context, table.probability]
        single += [table.signal.column]
        wanted = [
            *filter(None, single),
            *study_table_columns(table),
            *table.labels,
            *(section.column for section in table.report),
        ]
        found: dict[str | None, str] = {name: find_column(frame.columns, name, str(path)) for name in wanted}
        self.renamed |= {str(name): column for name, column in found.items() if name != column}
        return found


def _cells(frame: pd.DataFrame, name: str | None, where: str) -> list[str]:
    """Return the texts of a column, an empty list if `name` is not set; raises `UserError` for lists or bytes."""
    if not name:
        return []
    for number, value in zip(frame.index + 2, frame[name], strict=True):
        if isinstance(value, list | dict | bytes | EmbeddedImage):
            raise UserError(f"{where}: row {number}: {name}: {quoted(value)} is no text")
    return [cell_text(value) for value in frame[name]]


def _probabilities(cells: pd.Series, path: str, column: str | None, faults: Faults) -> list[float | None]:
    """Parse probabilities from 0 to 1, None for missing; percents are divided by 100."""
    values: list[float | None] = []
    for number, text in zip(cells.index + 2, cells, strict=True):
        value = None if is_missing_word(text) else _share(text)
        if value is not None and not 0 <= value <= 1:
            faults.add(f"{path}: row {number}: {column}: {text!r:.60} is no probability; write 0 to 1 or nothing")
        values.append(value)
    return values


def _share(text: str) -> float:
    """Parse `0.7`, `0,7` and `70 %` → 0.7; infinity if not a number."""
    try:
        return float(text.rstrip("% ").replace(",", ".")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return math.inf


def _vitals_columns(frame: pd.DataFrame, schema: VitalsSchema, path: Path) -> list[str]:
    """Find the columns of declared vitals under any of their names; raises `UserError` if a vital has none."""
    columns = [name for name in map(str, frame.columns) if schema.names_in(name) or schema.is_study_time(name)]
    covered = {name for column in columns for name in schema.names_in(column)}
    for vital in (vital.name for vital in schema.given):
        if vital not in covered:
            _refuse_unit(frame, schema, vital, path)
            raise UserError(f"{path}: no column for the vital {vital}; the table has {listed(frame.columns)}")
    return columns


def _refuse_unit(frame: pd.DataFrame, schema: VitalsSchema, vital: str, path: Path) -> None:
    """Raise `UserError` if a header names the vital with an unsupported unit."""
    for column in map(str, frame.columns):
        stem = re.split(r"[\[(]", column)[0]
        if stem != column and schema.names_in(stem) == (vital,):
            units = units_of(schema.vitals[schema.position(vital)])
            raise UserError(f"{path}: row 1: column {column}: its unit is none of those that {vital} takes: {units}")


def _check_needs(table: TableConfig, schema: VitalsSchema, views: Collection[str] | None) -> None:
    for section in table.report:
        check_needs(section.needs, schema, f"data.table.report: {section.column}: needs", views)
