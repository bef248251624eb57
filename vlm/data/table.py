"""A user's own CSV or Parquet table with a folder of images, described by the config alone."""

import math
import re
from pathlib import Path

import pandas as pd

from vlm.config import DataConfig, TableConfig
from vlm.data.catalog import resolve_vitals
from vlm.data.cohort import Cohort, build_dataset, image_cells, rows_to_columns, splits_for
from vlm.data.reading import read_table, reading_notes, some_of
from vlm.data.schema import VitalsSchema
from vlm.data.units import units_of
from vlm.errors import UserError


def load_table(data: DataConfig, table: TableConfig | None = None) -> Cohort:
    """Read the cases that `data.table` describes.

    Raises `UserError` for a missing column, an unreadable value or a missing image, with row and column.
    """
    table = table or data.table
    root = Path(data.root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set data.root to the folder of the table {table.file}")
    path = root / table.file
    frame = read_table(path)
    if frame.empty:
        raise UserError(f"{path}: the table has no rows")
    schema = VitalsSchema(resolve_vitals(table.vitals))
    sections = tuple(table.report)
    _check_needs(table, schema)
    vitals_columns = _vitals_columns(frame, schema, path)
    single = [table.image, table.id, table.patient, table.split, table.context, table.probability]
    named = [*[name for name in single if name], *table.labels, *[section.column for section in sections]]
    for name in named:
        if name not in frame.columns:
            raise UserError(f"{path}: no column {name}; the table has {some_of(frame.columns)}")
    rows = [int(position) + 2 for position in frame.index]  # as a spreadsheet counts them
    vitals, labels, warnings = rows_to_columns(frame, str(path), schema, vitals_columns, table.labels)

    def cells(name: str | None, default: list[str]) -> list[str]:
        return [_text(value) for value in frame[name]] if name else default

    ids = cells(table.id, [f"row-{row}" for row in rows])
    patients = cells(table.patient, ids)
    if "" in patients:
        raise UserError(f"{path}: row {rows[patients.index('')]}: {table.patient} is empty; the split is by patient")
    columns: dict[str, list] = {
        "id": ids,
        "patient": patients,
        "split": splits_for(patients, data, frame[table.split] if table.split else None, str(path)),
        "image": image_cells(frame[table.image], root / table.images, str(path))
        if table.image
        else [None] * len(frame),
        "vitals": vitals,
        "labels": labels,
        "sections": [list(texts) for texts in zip(*[cells(s.column, []) for s in sections], strict=True)]
        if sections
        else [[] for _ in ids],
        "context": cells(table.context, [""] * len(frame)),
        "probability": _probabilities(cells(table.probability, [""] * len(frame)), rows, str(path), table.probability),
    }
    dataset = build_dataset(columns, schema, len(table.labels), len(sections))
    if table.patient is None:
        warnings.append(f"{path}: no patient column is named, so every row counts as a patient of its own in the split")
    return Cohort(
        dataset, schema, tuple(table.labels), sections, None, table.label_findings, (*reading_notes(path), *warnings)
    )


def _probabilities(cells: list[str], rows: list[int], path: str, column: str | None) -> list[float | None]:
    """Numbers from 0 to 1, or nothing."""
    values: list[float | None] = []
    for number, text in zip(rows, cells, strict=True):
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
