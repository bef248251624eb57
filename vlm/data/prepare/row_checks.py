"""Check the table alone: counts, numbers, ids, licences, words that give the label away."""

import re
import unicodedata
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from vlm.config import VitalConfig
from vlm.data.ingest.uninformative import constant_notes, duplicate_note, hash_texts
from vlm.data.labels import factorized
from vlm.data.prepare.columns import Roles, missing
from vlm.data.prepare.notice import Level, Notice, counted, first_rows
from vlm.data.vitals.series import last_value
from vlm.data.vitals.values import LARGEST, is_plausible, read_value, suspected_unit
from vlm.errors import UserError

FORBIDS = re.compile(r"no[ -]?deriv|\bnd\b|-nd\b|credentialed|physionet|all rights reserved|no redistribution", re.I)


def count_labels(frame: pd.DataFrame, roles: Roles, patients: np.ndarray) -> list[Notice]:
    """Count rows and patients, in all and of each label."""
    who = counted(len(set(patients)), "patient") if roles.patient else "no patient column: each row counts as one"
    notices = [Notice("note" if roles.patient else "warning", "rows", f"{counted(len(frame), 'row')}, {who}")]
    for name, values in roles.labels.items():
        positive, negative = (len(set(patients[values == side])) for side in (1, 0))
        few = min(positive, negative) < 10
        rows = [int((values == 1).sum()), int((values == 0).sum()), int(np.isnan(values).sum())]
        text = (f"{name}: {rows[0]:,} rows of {counted(positive, 'patient')} positive, {rows[1]:,} of {negative:,} "
                f"negative, {rows[2]:,} unknown")  # fmt: skip
        notices.append(Notice("warning" if few else "note", "labels", text + ("; too few to test on" if few else "")))
    if not roles.labels:
        notices.append(Notice("warning", "labels", "no label column was recognised; name one with --label"))
    return notices


def count_missing(frame: pd.DataFrame, roles: Roles) -> list[Notice]:
    """Report the share of empty cells of the columns in use."""
    used = [*roles.vitals, *roles.texts, *filter(None, (roles.image, roles.patient))]
    shares = {column: float(missing(frame[column]).mean()) for column in used}
    some = {column: share for column, share in shares.items() if share > 0}
    notices = []
    if some:
        words = ", ".join(f"{column} {share:.0%}" for column, share in sorted(some.items(), key=lambda x: -x[1]))
        notices.append(Notice("note", "missing", f"empty cells: {words}"))
    if roles.patient and shares[roles.patient]:
        empty = missing(frame[roles.patient])
        message = f"{counted(int(empty.sum()), 'row')} without a patient; the split is by patient"
        notices.append(Notice("error", "missing_patient", message, first_rows(empty)))
    return notices


def read_numbers(column: pd.Series, vital: VitalConfig, unit: str = "") -> tuple[np.ndarray, dict[int, str]]:
    """Read a column as N numbers, NaN if missing, without range checks; also return row → error of each bad cell."""
    places, different = factorized(column)
    values, faults = np.full(len(different), np.nan), dict[int, str]()
    for place, cell in enumerate(different):
        try:
            values[place] = (last_value if vital.over_time else read_value)(vital, cell, "", unit)
        except UserError as error:
            faults[place] = str(error).removeprefix(": ")
    broken = {row: faults[places[row]] for row in np.flatnonzero(np.isin(places, list(faults))).tolist()}
    return values[places], broken


def check_numbers(roles: Roles, numbers: dict[str, np.ndarray], broken: dict[str, dict[int, str]]) -> list[Notice]:
    """Report unreadable cells, implausible values, and units that would explain them."""
    notices = []
    for column, vital in roles.vitals.items():
        for rows in [broken[column]] if broken[column] else []:
            first = min(rows)
            message = f"{column}: {counted(len(rows), 'cell')} cannot be read, the first: {rows[first]}"
            notices.append(Notice("error", "unreadable_value", message, tuple(row + 2 for row in sorted(rows)[:5])))
        if vital.categories:
            continue
        x = numbers[column]
        wild = np.array([not is_plausible(vital, value) for value in x], dtype=bool) & np.isfinite(x)
        if wild.any():
            low, high = vital.plausible or (-LARGEST, LARGEST)
            few = sorted({f"{value:g}" for value in x[wild]}, key=float)
            seen = ", ".join(few if len(few) <= 6 else [*few[:3], "…", *few[-3:]])
            message = (f"{column}: {counted(int(wild.sum()), 'value')} outside {low:g} to {high:g} {vital.unit} "
                       f"({seen}); such a value counts as missing")  # fmt: skip
            notices.append(Notice("warning", "out_of_range", message, first_rows(wild)))
            notices += _unit_suspicion(column, vital, x[wild], int(np.isfinite(x).sum()))
    return notices


def _unit_suspicion(column: str, vital: VitalConfig, wild: np.ndarray, known: int) -> list[Notice]:
    unit = suspected_unit(vital, wild.tolist())
    if not unit:
        return []
    mixed = "the column seems to mix units" if len(wild) < known else "the whole column seems to be in it"
    message = (f"{column}: {len(wild):,} of {known:,} values are no {vital.unit} but would be {unit}: {mixed}; write "
               f"the unit in the header ({vital.name} [{unit}]) or in each cell")  # fmt: skip
    return [Notice("warning", "unit", message)]


def check_ids(frame: pd.DataFrame, roles: Roles) -> list[Notice]:
    """Report patient ids that may be one person: `012`, `12 `, `P12`; they are never merged."""
    if not roles.patient:
        return []
    spelled: dict[str, set[str]] = defaultdict(set)
    for name in frame[roles.patient].dropna().astype(str).unique():
        spelled[_bare(name)].add(name)
    groups = [sorted(names) for bare, names in spelled.items() if bare and len(names) > 1]
    if not groups:
        return []
    example = ", ".join(repr(name) for name in groups[0])
    message = (f"{counted(len(groups), 'group')} of patient ids differ only in spelling, such as {example}: if they "
               "are one person, write one id, else a split by patient may put a person on both sides")  # fmt: skip
    return [Notice("warning", "aliased_ids", message)]


def _bare(name: str) -> str:
    """Normalise an id: strip case, spaces, a patient prefix, leading zeros and a spreadsheet's `.0`."""
    text = re.sub(r"[\s_\-]", "", unicodedata.normalize("NFKC", name).casefold())
    text = re.sub(r"\.0$", "", text)
    match = re.fullmatch(r"(?:p|pt|pat|patient|id|subj|subject|s)?0*([0-9]+)", text)
    return match[1] if match else text


def check_licences(frame: pd.DataFrame, roles: Roles, table: Path) -> list[Notice]:
    """Report licences that forbid sharing derivatives, and rows without a licence."""
    notices = []
    if roles.license:
        words = frame[roles.license].fillna("").astype(str)
        forbidden, unknown = words.str.contains(FORBIDS).to_numpy(), missing(frame[roles.license])
        if forbidden.any():
            message = (f"{counted(int(forbidden.sum()), 'row')} under a licence that forbids derivatives or "
                       "redistribution; an adapter trained on them may not be shared")  # fmt: skip
            notices.append(Notice("warning", "licence", message, first_rows(forbidden)))
        if unknown.any():
            message = f"{counted(int(unknown.sum()), 'row')} without a stated licence"
            notices.append(Notice("warning", "licence", message, first_rows(unknown)))
    for file in sorted(table.parent.glob("LICEN[SC]E*")):
        if file.is_file() and FORBIDS.search(file.read_text(encoding="utf-8", errors="replace")[:100_000]):
            notices.append(Notice("warning", "licence", f"{file.name} forbids derivatives or redistribution"))
    return notices


def check_words(frame: pd.DataFrame, roles: Roles) -> list[Notice]:
    """Report label names inside file names or sources, which leak the label, or inside texts."""
    notices = []
    for label, values in roles.labels.items():
        word = re.sub(r"[^a-z0-9]", "", label.lower())
        positive, negative = values == 1, values == 0
        if len(word) < 4 or not positive.any() or not negative.any():
            continue
        for column in [*filter(None, (roles.image, roles.source)), *roles.texts]:
            cells = frame[column].fillna("").astype(str).str.lower().str.replace(r"[^a-z0-9]", "", regex=True)
            said = cells.str.contains(word[:5] if word.startswith("covid") else word, regex=False).to_numpy()
            shares = said[positive].mean(), said[negative].mean()
            auroc = 0.5 + (shares[0] - shares[1]) / 2
            if abs(auroc - 0.5) > 0.03:
                level: Level = "note" if column in roles.texts else "warning"
                message = (f"{column} names {label} in {shares[0]:.0%} of its positive rows and {shares[1]:.0%} of its "
                           f"negative ones (AUROC {auroc:.2f})")  # fmt: skip
                why = "; as a target that is fine, as an input it is the answer" if level == "note" else ""
                notices.append(Notice(level, "label_words", message + why))
    return notices


def check_constants(
    frame: pd.DataFrame, roles: Roles, numbers: dict[str, np.ndarray], splits: np.ndarray
) -> list[Notice]:
    """Report empty splits, constant labels and vitals, and empty reports as training does, and duplicate rows."""
    vitals = {vital.name: numbers[column] for column, vital in roles.vitals.items()}
    columns = roles.reports or roles.texts
    texts = [" ".join(row).strip() for row in zip(*(frame[c].fillna("").astype(str) for c in columns), strict=True)]
    reports = hash_texts(np.array(texts, dtype=object)) if columns else None
    used = {roles.image, roles.split, *roles.vitals, *roles.sources_of_labels, *columns}
    told = [c for c in frame.columns if c != roles.patient and (c in used or not _is_id(frame[c]))]
    shown = ~missing(frame[roles.image]) if roles.image else np.zeros(len(frame), dtype=bool)
    shown |= reports != 0 if reports is not None else False
    same = frame.loc[shown, told].astype(str).duplicated().to_numpy() if told else np.zeros(0, dtype=bool)
    notes = [*constant_notes(splits, roles.labels, vitals, reports), *duplicate_note(same)]
    return [Notice("warning", "substance", note) for note in notes]


def _is_id(column: pd.Series) -> bool:
    """Check whether a column identifies the rows: unique values, none of them a sentence or a file."""
    words = column.fillna("").astype(str)
    return bool(words.is_unique and words.str.fullmatch(r"[\w\-]{1,40}").all() and not words.str.contains(r"\.").any())
