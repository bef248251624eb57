"""Assign roles to columns: as the user names them, else recognised by header; record every choice."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from vlm.config import VitalConfig
from vlm.data.ingest.column_names import find_column
from vlm.data.labels import LabelReader, are_labels, parse_labels
from vlm.data.vitals.catalog import CATALOG
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.values import is_missing
from vlm.faults import Faults

HEADERS = {
    "patient": ("patient", "patientid", "subjectid", "subject", "pid", "mrn"),
    "image": ("filename", "image", "imagefile", "imagepath", "path", "file", "imageindex", "imageid"),
    "split": ("split", "subset", "partition", "fold"),
    "view": ("view", "viewposition", "projection", "appa"),
    "source": ("source", "site", "hospital", "institution", "location", "dataset", "manufacturer", "scanner"),
    "license": ("license", "licence"),
}
"""Role → headers, reduced to lower-case letters and digits."""
CLASSES = ("finding", "findings", "findinglabels", "label", "labels", "diagnosis", "class", "target")
FEWEST_PATIENTS = 10


@dataclass(frozen=True)
class Roles:
    """Roles of a table's columns."""

    patient: str | None = None
    image: str | None = None
    split: str | None = None
    view: str | None = None
    source: str | None = None
    license: str | None = None
    texts: tuple[str, ...] = ()
    """Columns of free text."""
    vitals: dict[str, VitalConfig] = field(default_factory=dict)
    """Column → its vital."""
    units: dict[str, str] = field(default_factory=dict)
    """Column → the unit in its header, if any."""
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    """Label → N of 1, 0 or NaN."""
    sources_of_labels: tuple[str, ...] = ()
    """Columns from which the labels were read."""
    reports: tuple[str, ...] = ()
    """Columns of the reference report, as the user named them."""
    reasons: tuple[str, ...] = ()
    """How each column was recognised."""
    faults: tuple[str, ...] = ()
    """Faults in the labels that the user named, worded as in training."""
    warnings: tuple[str, ...] = ()
    """Warnings on how labels were read, worded as in training."""


def find_roles(
    frame: pd.DataFrame,
    given: dict[str, str | None],
    labels: Sequence[str] = (),
    vitals: Sequence[VitalConfig] = (),
    reports: Sequence[str] = (),
    uncertain: str | None = None,
    where: str = "table",
) -> Roles:
    """Find the column of each role: as given, else recognised by its header.

    `given` maps a role to a column, or to None; `where` begins the messages. Raises `UserError` for a column that the
    table does not have.
    """
    reasons: list[str] = []
    given = {role: find_column(frame.columns, column, where) for role, column in given.items() if column}
    reports = [find_column(frame.columns, column, where) for column in reports]
    roles = {role: given.get(role) or _recognised(frame, role, reasons) for role in HEADERS}
    found = _vitals(frame, vitals, reasons)
    patients = frame[roles["patient"]].to_numpy(str) if roles["patient"] else np.arange(len(frame)).astype(str)
    taken = {*filter(None, roles.values()), *found}
    faults, warnings = Faults(), list[str]()
    if labels:
        named, read_from, warnings = _named_labels(frame, patients, labels, uncertain, where, faults, reasons)
    else:
        candidates = [column for column in frame.columns if column not in taken and column not in reports]
        named, read_from = _labels(frame, patients, candidates, reasons)
    texts = tuple(dict.fromkeys((*reports, *(
        c for c in frame.columns if c not in taken and c not in read_from and is_text(frame[c])))))  # fmt: skip
    if texts:
        reasons.append(f"free text: {', '.join(texts)} (long and seldom twice the same)")
    units = {column: VitalsSchema((vital,)).column(column)[1] for column, vital in found.items()}
    return Roles(**roles, texts=texts, vitals=found, units=units, labels=named, sources_of_labels=tuple(read_from),
                 reports=tuple(reports), reasons=tuple(reasons), faults=tuple(faults.lines()),
                 warnings=tuple(warnings))  # fmt: skip


def missing(column: pd.Series) -> np.ndarray:
    """Return a mask, N, True where a cell is missing by the rule of training."""
    words = column.fillna("").astype(str)
    return words.map({word: is_missing(word) for word in words.unique()}).to_numpy(bool)


def is_text(column: pd.Series) -> bool:
    """Check whether a column holds sentences."""
    words = column[~missing(column)].astype(str)
    return bool(len(words) and words.str.len().mean() > 40 and words.str.contains(" ").mean() > 0.8
                and words.nunique() > len(words) / 20)  # fmt: skip


def plain(header: object) -> str:
    """Reduce a header to lower-case letters and digits."""
    return re.sub(r"[^a-z0-9]", "", str(header).lower())


def _recognised(frame: pd.DataFrame, role: str, reasons: list[str]) -> str | None:
    by_name = {plain(column): str(column) for column in reversed(frame.columns)}
    for name in HEADERS[role]:
        if name in by_name:
            reasons.append(f"{role}: column {by_name[name]} (by its name)")
            return by_name[name]
    return None


def _vitals(frame: pd.DataFrame, declared: Sequence[VitalConfig], reasons: list[str]) -> dict[str, VitalConfig]:
    schema = VitalsSchema(tuple(vital for vital in declared if not vital.of) or tuple(CATALOG.values()))
    found: dict[str, VitalConfig] = {}
    for column in map(str, frame.columns):
        names = schema.names_in(column)
        if len(names) == 1 and names[0] not in [vital.name for vital in found.values()]:
            found[column] = schema.vitals[schema.position(names[0])]
    if found and not declared:
        pairs = (f"{column} ({vital.name})" if column != vital.name else column for column, vital in found.items())
        reasons.append(f"vitals: {', '.join(pairs)} (by their names)")
    return found


def _named_labels(
    frame: pd.DataFrame,
    patients: np.ndarray,
    names: Sequence[str],
    uncertain: str | None,
    where: str,
    faults: Faults,
    reasons: list[str],
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Read the labels that the user names as training does; return values, columns and warnings."""
    labels: dict[str, np.ndarray] = {}
    read_from, warnings = [], []
    for name in names:
        column = find_column(frame.columns, name, where)
        read_from.append(column)
        if plain(column) in CLASSES and not are_labels(frame[column]):
            labels |= _classes_of(frame, column, patients, reasons)
            continue
        reader = LabelReader(name, uncertain)
        labels[name] = reader.read(frame[column], where, faults)
        warnings += reader.finish(faults)
        reasons.append(f"label: {column} (1, 0 or nothing, or words for them)")
    return labels, read_from, warnings


def _labels(
    frame: pd.DataFrame, patients: np.ndarray, columns: Sequence[str], reasons: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Recognise label columns, and split a class column into one label for each class with enough patients."""
    labels: dict[str, np.ndarray] = {}
    read_from: list[str] = []
    for column in map(str, columns):
        if are_labels(frame[column]):
            labels[column] = parse_labels(frame[column], column, "ignore")
            read_from.append(column)
            reasons.append(f"label: {column} (1, 0 or nothing, or words for them)")
        elif plain(column) in CLASSES and not is_text(frame[column]):
            labels |= _classes_of(frame, column, patients, reasons)
            read_from.append(column)
    return labels, read_from


def _classes_of(frame: pd.DataFrame, column: str, patients: np.ndarray, reasons: list[str]) -> dict[str, np.ndarray]:
    """Split a class column into labels; `A|B` and `a/b/c` name several classes each."""
    cells = frame[column].fillna("").astype(str)
    parts = cells.str.split(r"[|/;]", regex=True).map(lambda names: {name.strip() for name in names})
    unknown = missing(cells) | (cells.str.strip().str.lower() == "todo").to_numpy()
    one_hot = pd.Series(["|".join(sorted(names)) for names in parts]).str.get_dummies("|")
    labels = {}
    for name in one_hot.columns:
        values = np.where(unknown, np.nan, one_hot[name].to_numpy(float))
        if all(len(set(patients[values == side])) >= FEWEST_PATIENTS for side in (0, 1)):
            labels[str(name)] = values
    reasons.append(f"labels: the classes of {column} with at least {FEWEST_PATIENTS} patients, each against "
                   f"the rest: {', '.join(labels) or 'none'}")  # fmt: skip
    return labels
