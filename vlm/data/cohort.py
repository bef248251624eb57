"""Cohort: cases of any source as one `datasets.Dataset` with declared features."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow.compute as pc

from vlm.config import DataConfig, SectionConfig
from vlm.data.embedded import EmbeddedImage
from vlm.data.images.find import ImageFolder, image_cell
from vlm.data.images.store import ImageStore
from vlm.data.labels import LabelReader
from vlm.data.signals.signal_spec import SignalFormat
from vlm.data.splits import SPLITS, assign_splits, draw_cases
from vlm.data.storage import column, hashes, matrix, write_rows
from vlm.data.study import view_name
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.synonyms import plain_word
from vlm.data.vitals.values import LARGEST, suspected_unit
from vlm.errors import UserError
from vlm.faults import Faults
from vlm.findings.vocabulary import DEFAULT

Columns = dict[str, list[Any]]
"""Name → one value for each row."""
Facts = dict[str, str | None]
"""Fact name → statement of a report; None if it states nothing."""


@dataclass(frozen=True)
class FactReader:
    """Reader of the facts in a source's reports, with the evidence of each fact."""

    name: str
    """Name of the source; a packed copy of its cases finds the reader by it."""
    read: Callable[[str], Facts]
    evidence: dict[str, str]
    """Name of the fact → its evidence: `image`, `vitals`, `prior`, `trend`, `context` or a view such as `lateral`."""
    unsaid: dict[str, str] = field(default_factory=dict)
    """Name of the fact → what a report states of it where its evidence is missing."""
    mix: Callable[[Mapping[str, Facts]], Facts] | None = None
    """Facts of a case whose evidence is of several cases, from the facts of each by kind of evidence."""

    def combine(self, stated: Mapping[str, Facts]) -> Facts:
        """Combine the facts of the cases that give each kind of evidence; without `mix`, each has its kind's."""
        if self.mix is not None:
            return self.mix(stated)
        return {name: stated[kind][name] for name, kind in self.evidence.items()}


@dataclass(frozen=True)
class Cohort:
    """Cases of all splits, with the meaning of their columns."""

    dataset: datasets.Dataset
    """Rows: id, patient, split, images [{path, view, prior, days}], vitals (m), labels (K), sections (S), context,
    prior_report, probability, weight (how often a training case is drawn), source (the name of one of several); with
    signals also signal, the samples (see `vlm.data.signals`)."""
    schema: VitalsSchema
    """Names and units of the m vitals."""
    labels: tuple[str, ...]
    """Names of the K labels."""
    sections: tuple[SectionConfig, ...]
    """The S sections of a report, with the evidence each needs."""
    facts: FactReader | None = None
    """Reader of the facts in reports, if the source has one."""
    label_findings: dict[str, str] = field(default_factory=dict)
    """Label → matching finding in reports, if there is one."""
    warnings: tuple[str, ...] = field(default=())
    """Warnings for the user."""
    signal: SignalFormat | None = None
    """What the samples of the signals are; None without signals."""
    findings: str = DEFAULT
    """Vocabulary by which the findings of its reports are read."""

    def split(self, name: str, most: int = 0) -> datasets.Dataset:
        """Select the rows of one split, in table order; with `most` those of patients drawn until there are so many."""
        rows = self.dataset.select(np.flatnonzero(pc.equal(column(self.dataset, "split"), name).to_numpy()))
        return rows.select(draw_cases(rows, most))

    @property
    def fingerprint(self) -> str:
        """Hash the split assignment, to detect changes."""
        ids, patients, splits = (hashes(self.dataset, name) for name in ("id", "patient", "split"))
        rows = np.stack([ids, patients, splits], axis=1)  # N × 3
        return hashlib.sha256(rows[np.lexsort(rows.T)].tobytes()).hexdigest()

    def describe(self) -> str:
        """Summarize rows and patients by split, with a line for each source if there are several."""
        sources = column(self.dataset, "source")
        groups = {"cases": self.dataset} | {
            f"  {name}": self.dataset.select(np.flatnonzero(pc.equal(sources, name).to_numpy()))
            for name in pc.unique(sources).to_pylist()
            if name
        }
        return "\n".join(f"{name}: {_counts(rows)}" for name, rows in groups.items())


def _counts(rows: datasets.Dataset) -> str:
    splits, patients = column(rows, "split"), hashes(rows, "patient")
    inside = {name: pc.equal(splits, name).to_numpy() for name in SPLITS}
    return ", ".join(f"{n} {rows.sum()} ({len(np.unique(patients[rows]))} patients)" for n, rows in inside.items())


def features(vitals: int, labels: int, sections: int, signal: bool = False) -> datasets.Features:
    """Declare the columns; the images of a case are paths, decoded when a batch is made."""
    text, number = datasets.Value("string"), datasets.Value("float32")

    def many(value: datasets.Value, length: int) -> datasets.List:
        return datasets.List(value, length=length or -1)  # Arrow has no fixed lists of length 0

    return datasets.Features(
        {
            "id": text,
            "patient": text,
            "split": text,
            "images": datasets.List({"path": text, "view": text, "prior": datasets.Value("bool"), "days": number}),
            "vitals": many(number, vitals),
            "labels": many(number, labels),
            "sections": many(text, sections),
            "context": text,
            "prior_report": text,
            "probability": number,
            "weight": number,
            "source": text,
            **({"signal": datasets.Value("binary")} if signal else {}),
        }
    )


def build_dataset(
    columns: Columns | Iterable[Columns], schema: VitalsSchema, labels: int, sections: int, signal: bool = False
) -> datasets.Dataset:
    """Build and check the `Dataset` from the common columns, given at once or in parts.

    Raises `UserError` if two rows have one id, or a patient is in two splits.
    """
    parts = [columns] if isinstance(columns, dict) else columns
    parts = ({**_unsaid(len(part["id"])), **part} for part in parts)
    dataset = write_rows(parts, features(len(schema), labels, sections, signal))
    ids = hashes(dataset, "id")
    order = np.argsort(ids)
    twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if len(twice):
        names = list(dict.fromkeys(dataset[int(order[place])]["id"] for place in twice[:10]))
        others = ", ".join(map(repr, names[1:]))
        more = f"; so have {len(twice) - 1:,} further rows ({others})" if len(twice) > 1 else ""
        raise UserError(f"two rows have the id {names[0]!r}{more}; ids name cases and must differ")
    placed = np.unique(np.stack([hashes(dataset, "patient"), hashes(dataset, "split")], axis=1), axis=0)
    shared = len(placed) - len(np.unique(placed[:, 0]))
    if shared:
        raise UserError(f"{shared} patients are in two splits; the split must be by patient")
    return dataset


def _unsaid(rows: int) -> Columns:
    """Return the columns that most sources do not say."""
    return {"weight": [1.0] * rows, "source": [""] * rows, "prior_report": [""] * rows, "signal": [b""] * rows}


NEEDS = ("image", "vitals", "prior", "context", "signal")
"""Kinds of evidence that a section of a report may need, beside vitals and views by name."""


def check_needs(needs: Iterable[str], schema: VitalsSchema, where: str, views: Collection[str] | None) -> None:
    """Raise `UserError` for a need that is no kind of evidence, vital or view; with None any word may be a view."""
    for need in needs:
        if need not in NEEDS and need not in (views if views is not None else (view_name(need, where),)):
            if views and need not in schema.names:
                known = ", ".join((*NEEDS, *sorted(views)))
                raise UserError(f"{where}: {need} is no vital, and none of {known}, of which the last are the views")
            schema.position(need, where)


def selected_labels(data: DataConfig, known: Sequence[str]) -> tuple[str, ...]:
    """Return `data.table.labels` if set, else all known labels; raises `UserError` for an unknown one."""
    for name in data.table.labels:
        if name not in known:
            raise UserError(f"data.table.labels: {name} is none of {', '.join(known)}")
    return tuple(data.table.labels) or tuple(known)


Implausible = dict[str, list[tuple[str, float]]]
"""Vital name → location (file and row) and number of each implausible value, which counts as missing."""


Notes = dict[str, tuple[int, int]]
"""What was done to a series → first row and number of the cases."""


def read_vitals_columns(
    frame: pd.DataFrame,
    where: str,
    schema: VitalsSchema,
    columns: Sequence[str],
    faults: Faults,
    notes: Notes | None = None,
) -> tuple[list[np.ndarray], Implausible]:
    """Read vitals (N × m) and collect implausible values; unreadable cells go to `faults`, what is noted to `notes`."""
    vitals: list[np.ndarray] = []
    doubtful: Implausible = {}
    told = {} if notes is None else notes
    cells = [frame[name].astype(object) for name in columns]
    for name, values in zip(columns, cells, strict=True):
        _note_two_languages(schema, name, values, where, faults)
    for number, *row in zip(frame.index + 2, *cells, strict=True):
        record = dict(zip(columns, row, strict=True))
        said: list[str] = []
        x, implausible = schema.parse(record, f"{where}: row {number}", faults, said.append)
        for note in said:
            first, count = told.get(note, (number, 0))
            told[note] = first, count + 1
        vitals.append(x)
        for name, value in implausible.items():
            doubtful.setdefault(name, []).append((f"{where}: row {number}", value))
    return vitals, doubtful


def _note_two_languages(schema: VitalsSchema, name: str, cells: pd.Series, where: str, faults: Faults) -> None:
    """Record a fault if a sex column holds both H and M: hombre and mujer, or homme beside male."""
    vitals = [schema.vitals[schema.position(vital)] for vital in schema.names_in(name)]
    declared = {plain_word(word) for vital in vitals for word in vital.categories}
    if declared and "h" not in declared and {"h", "m"} <= {plain_word(str(cell)[:20]) for cell in cells}:
        faults.add(f"{where}: {name}: H and M stand in one column, so M can be mujer or male; write female and male")


def read_label_columns(
    frame: pd.DataFrame, where: str, readers: Sequence[LabelReader], columns: Sequence[str], faults: Faults
) -> list[list[float]]:
    """Read labels, N × K, NaN where unknown; unreadable cells go to `faults`."""
    known = [reader.read(frame[name], where, faults) for reader, name in zip(readers, columns, strict=True)]
    return np.column_stack(known).tolist() if known else [[] for _ in range(len(frame))]


def range_warnings(where: str, schema: VitalsSchema, doubtful: Implausible, dataset: datasets.Dataset) -> list[str]:
    """Format a warning for each vital with implausible values, beside the plausible ones of the `dataset`."""
    measured = np.isfinite(matrix(dataset, "vitals", len(schema))).sum(axis=0)
    counts = {name: int(measured[schema.position(name)]) for name in doubtful}
    return [_warning(where, schema, name, rows, counts[name]) for name, rows in doubtful.items()]


def _warning(where: str, schema: VitalsSchema, name: str, rows: list[tuple[str, float]], others: int) -> str:
    vital = schema.vitals[schema.position(name)]
    low, high = vital.plausible or (-LARGEST, LARGEST)
    values = [value for _, value in rows]
    first = rows[0][0].removeprefix(f"{where}: ")
    unit = suspected_unit(vital, values)
    if unit:
        return (
            f"{where}: {len(values)} of {len(values) + others} values of {name} are outside {low:g} to {high:g} "
            f"{vital.unit} but would fit as {unit}; write {name} [{unit}] in the header or declare unit: {unit}. "
            f"They were taken as missing (first in {first})"
        )
    return (
        f"{where}: {name}: {len(rows)} values from {min(values):g} to {max(values):g} are outside {low:g} to {high:g} "
        f"{vital.unit} and were taken as missing (first in {first})"
    )


def image_paths(names: pd.Series, images: ImageFolder, where: str, store: ImageStore) -> list[str]:
    """Find the files of names or embedded images; an empty name, no image, gives an empty path.

    Embedded images are copied to the `store`. Raises `UserError` as it and `ImageFolder.find` do, with the row.
    """
    paths: list[str] = []
    for number, name in zip(names.index + 2, names, strict=True):
        text = image_cell(name, f"{where}: row {number}: column {names.name}")
        if isinstance(text, EmbeddedImage):
            paths.append(store.keep(text, f"{where}: row {number}"))
            continue
        try:
            path, _ = images.find_if_named(text)
        except UserError as error:
            raise UserError(f"{where}: row {number}: {error}") from None
        paths.append(path or "")
    return paths


SPLIT_WORDS = {"train": "train", "training": "train", "trn": "train", "val": "validation", "valid": "validation",
               "validation": "validation", "validate": "validation", "dev": "validation", "test": "test",
               "testing": "test", "tst": "test"}  # fmt: skip
"""Accepted spelling → split name."""


def splits_for(
    patients: Sequence[str], data: DataConfig, fixed: pd.Series | None, where: str, faults: Faults
) -> list[str]:
    """Read the split column, or hash the patient if there is none; invalid splits go to `faults`."""
    if fixed is None:
        return assign_splits(patients, data.split)
    words = [plain_word("" if value is None else str(value)) for value in fixed]
    for number, value, word in zip(fixed.index + 2, fixed, words, strict=True):
        if word not in SPLIT_WORDS:
            faults.add(f"{where}: row {number}: split {value!r:.60} is none of train, validation, test")
    return [SPLIT_WORDS.get(word, "train") for word in words]
