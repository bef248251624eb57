"""A user's own CSV or Parquet table with a folder of images, described by the config alone."""

import math
from pathlib import Path

import pandas as pd

from vlm.config import DataConfig, TableConfig
from vlm.data.catalog import resolve_vitals
from vlm.data.cohort import Cohort, build_dataset, image_cells, rows_to_columns, splits_for
from vlm.data.schema import VitalsSchema
from vlm.errors import UserError


def read_table(path: Path) -> pd.DataFrame:
    """Read `.csv`, `.tsv` or `.parquet` with every cell as it is written; raises `UserError` naming the file."""
    if not path.is_file():
        raise UserError(f"{path}: no such table; set data.root and data.table.file")
    try:
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path).reset_index(drop=True).astype(object)
            return frame.where(frame.notna(), None)  # one kind of nothing, whatever the column's type
        if path.suffix in (".csv", ".tsv"):
            # Text as written: pandas would turn the id 007 into 7 and the word NA into nothing.
            separator = "\t" if path.suffix == ".tsv" else ","
            return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: cannot read the table: {str(error).splitlines()[0]}") from None
    raise UserError(f"{path}: a table is .csv, .tsv or .parquet")


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
            raise UserError(f"{path}: no column {name}; the table has {', '.join(map(str, frame.columns))}")
    vitals, labels, warnings = rows_to_columns(frame, str(path), schema, vitals_columns, table.labels)

    def cells(name: str | None, default: list[str]) -> list[str]:
        return [_text(value) for value in frame[name]] if name else default

    ids = cells(table.id, [f"row-{number}" for number in range(2, len(frame) + 2)])
    patients = cells(table.patient, ids)
    if "" in patients:
        raise UserError(f"{path}: row {patients.index('') + 2}: {table.patient} is empty; the split is by patient")
    columns: dict[str, list] = {
        "id": ids,
        "patient": patients,
        "split": splits_for(patients, data, list(frame[table.split]) if table.split else None, str(path)),
        "image": image_cells(frame[table.image], root / table.images, str(path))
        if table.image
        else [None] * len(frame),
        "vitals": vitals,
        "labels": labels,
        "sections": [list(texts) for texts in zip(*[cells(s.column, []) for s in sections], strict=True)]
        if sections
        else [[] for _ in ids],
        "context": cells(table.context, [""] * len(frame)),
        "probability": _probabilities(cells(table.probability, [""] * len(frame)), f"{path}: {table.probability}"),
    }
    dataset = build_dataset(columns, schema, len(table.labels), len(sections))
    if table.patient is None:
        warnings.append(f"{path}: no patient column is named, so every row counts as a patient of its own in the split")
    return Cohort(dataset, schema, tuple(table.labels), sections, None, table.label_findings, tuple(warnings))


def _probabilities(cells: list[str], where: str) -> list[float | None]:
    """Numbers from 0 to 1, or nothing."""
    values: list[float | None] = []
    for number, text in enumerate(cells, start=2):
        try:
            value = float(text) if text else None
        except ValueError:
            value = math.inf
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{where}: row {number}: {text!r} is no probability; write 0 to 1 or nothing")
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
            raise UserError(
                f"{path}: no column for the vital {vital}; the table has {', '.join(map(str, frame.columns))}"
            )
    return columns


def _check_needs(table: TableConfig, schema: VitalsSchema) -> None:
    for section in table.report:
        for need in section.needs:
            if need not in ("image", "vitals"):
                schema.position(need, f"data.table.report: {section.column}: needs")
