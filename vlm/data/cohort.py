"""A cohort: cases in one form, whatever their source, as a `datasets.Dataset` with declared features."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from vlm.config import DataConfig, SectionConfig
from vlm.data.schema import VitalsSchema
from vlm.data.splits import SPLITS, assign_splits
from vlm.data.values import suspected_unit
from vlm.errors import UserError

datasets.disable_progress_bars()

Facts = dict[str, str | None]
"""What a report states, by name of the fact; None where it states nothing."""


@dataclass(frozen=True)
class FactReader:
    """How a source's reports can be checked: the facts a report states, and the evidence of each fact."""

    read: Callable[[str], Facts]
    evidence: dict[str, str]
    """Name of the fact → `image` or `vitals`."""


@dataclass(frozen=True)
class Cohort:
    """Cases of all splits, and what their columns mean."""

    dataset: datasets.Dataset
    """Rows: id, patient, split, image {path, bytes}, vitals (m), labels (K), sections (S), context, probability."""
    schema: VitalsSchema
    """Names and units of the m vitals."""
    labels: tuple[str, ...]
    """Names of the K labels."""
    sections: tuple[SectionConfig, ...]
    """The S parts of a report, and the evidence each needs."""
    facts: FactReader | None = None
    """How to check reports, where the source knows."""
    label_findings: dict[str, str] = field(default_factory=dict)
    """Label → the finding it stands for in a report, where it has one."""
    warnings: tuple[str, ...] = field(default=())
    """What a careful colleague would mention."""

    def split(self, name: str) -> datasets.Dataset:
        """Rows of one split, in table order."""
        chosen = np.flatnonzero(np.array(self.dataset["split"]) == name)
        return self.dataset.select(chosen)

    @property
    def fingerprint(self) -> str:
        """Hash of who is in which split, to notice that it changed."""
        rows = zip(self.dataset["id"], self.dataset["patient"], self.dataset["split"], strict=True)
        return hashlib.sha256("\n".join("\t".join(row) for row in sorted(rows)).encode()).hexdigest()

    def describe(self) -> str:
        """One line: rows and patients of each split."""
        split, patient = np.array(self.dataset["split"]), np.array(self.dataset["patient"])
        parts = [f"{name} {(split == name).sum()} ({len(set(patient[split == name]))} patients)" for name in SPLITS]
        return "cases: " + ", ".join(parts)


def features(vitals: int, labels: int, sections: int) -> datasets.Features:
    """The declared columns; an image is a path or bytes, decoded when a batch is made."""
    text, number = datasets.Value("string"), datasets.Value("float32")

    def many(value: datasets.Value, length: int) -> datasets.List:
        return datasets.List(value, length=length or -1)  # Arrow has no fixed lists of length 0

    return datasets.Features(
        {
            "id": text,
            "patient": text,
            "split": text,
            "image": datasets.Image(decode=False),
            "vitals": many(number, vitals),
            "labels": many(number, labels),
            "sections": many(text, sections),
            "context": text,
            "probability": number,
        }
    )


def build_dataset(columns: dict[str, list], schema: VitalsSchema, labels: int, sections: int) -> datasets.Dataset:
    """Check the columns that every source fills and make the `Dataset`.

    Raises `UserError` if two rows have one id, or a patient is in two splits.
    """
    ids = pd.Series(columns["id"])
    if ids.duplicated().any():
        raise UserError(f"two rows have the id {ids[ids.duplicated()].iloc[0]!r}; ids name cases and must differ")
    placed = pd.DataFrame({"patient": columns["patient"], "split": columns["split"]}).drop_duplicates()
    shared = placed["patient"][placed["patient"].duplicated()]
    if len(shared):
        raise UserError(f"{len(shared)} patients are in two splits; the split must be by patient")
    return datasets.Dataset.from_dict(columns, features=features(len(schema), labels, sections))


def rows_to_columns(
    frame: pd.DataFrame,
    where: str,
    schema: VitalsSchema,
    vitals_columns: Sequence[str],
    label_columns: Sequence[str],
) -> tuple[list[np.ndarray], list[list[float]], list[str]]:
    """Parse vitals and labels row by row, so that an error can name row and column.

    Rows are counted as a spreadsheet counts them: the header is row 1.
    Returns vitals (N × m), labels (N × K, NaN where unknown) and warnings.
    """
    vitals, labels = [], []
    doubts: dict[str, list[tuple[int, float]]] = {}
    records = frame[[*vitals_columns, *label_columns]].astype(object).to_dict("records")
    for number, record in zip(frame.index + 2, records, strict=True):
        row = f"{where}: row {number}"
        x, implausible = schema.parse({name: record[name] for name in vitals_columns}, row)
        vitals.append(x)
        for name, value in implausible.items():
            doubts.setdefault(name, []).append((number, value))
        labels.append([parse_label(record[name], f"{row}: {name}") for name in label_columns])
    measured = np.isfinite(np.array(vitals).reshape(-1, len(schema))).sum(axis=0)
    said = [_doubt(where, schema, name, rows, int(measured[schema.position(name)])) for name, rows in doubts.items()]
    return vitals, labels, said


def _doubt(where: str, schema: VitalsSchema, name: str, rows: list[tuple[int, float]], others: int) -> str:
    vital = schema.vitals[schema.position(name)]
    low, high = vital.plausible
    values = [value for _, value in rows]
    unit = suspected_unit(vital, values)
    if unit:
        return (
            f"{where}: {len(values)} of {len(values) + others} values of {name} are outside {low:g} to {high:g} "
            f"{vital.unit} but would fit as {unit}; write {name} [{unit}] in the header or declare unit: {unit}. "
            f"They were taken as missing (first in row {rows[0][0]})"
        )
    return (
        f"{where}: {name}: {len(rows)} values from {min(values):g} to {max(values):g} are outside {low:g} to {high:g} "
        f"{vital.unit} and were taken as missing (first in row {rows[0][0]})"
    )


def parse_label(value: object, where: str) -> float:
    """0, 1 or NaN (unknown); raises `UserError` for anything else."""
    word = "" if value is None else str(value).strip().lower()
    if word in {"", "nan", "none", "na", "n/a", "null", "<na>"}:
        return float("nan")
    known = {"0": 0.0, "0.0": 0.0, "false": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0}
    if word not in known:
        raise UserError(f"{where}: {value!r} is no label; write 1, 0 or nothing for unknown")
    return known[word]


def image_cells(names: pd.Series, folder: Path, where: str) -> list[dict | None]:
    """File names → `Image` cells; an empty name is a case without an image.

    Raises `UserError` for a name that leads outside the folder or to no file.
    """
    cells: list[dict | None] = []
    root = folder.resolve()
    for number, name in zip(names.index + 2, names, strict=True):
        text = "" if name is None or name != name else str(name).strip()
        if not text:
            cells.append(None)
            continue
        path = (root / text).resolve()
        if root not in path.parents:
            raise UserError(f"{where}: row {number}: image {text!r} leads outside {folder}")
        if not path.is_file():
            raise UserError(f"{where}: row {number}: no image file {folder / text}")
        cells.append({"path": str(path), "bytes": None})
    return cells


def splits_for(patients: Sequence[str], data: DataConfig, fixed: pd.Series | None, where: str) -> list[str]:
    """The table's own split column where there is one, else a hash of the patient."""
    if fixed is None:
        return assign_splits(patients, data.split)
    names = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
             "validation": "validation", "dev": "validation", "test": "test"}  # fmt: skip
    for number, value in zip(fixed.index + 2, fixed, strict=True):
        if str(value).strip().lower() not in names:
            raise UserError(f"{where}: row {number}: split {value!r} is none of train, validation, test")
    return [names[str(value).strip().lower()] for value in fixed]
