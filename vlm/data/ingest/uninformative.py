"""Report what a cohort cannot teach: empty splits, constant labels and vitals, empty or identical reports."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vlm.data.cohort import Cohort
from vlm.data.images.store import EMBEDDED_REFERENCE
from vlm.data.splits import SPLITS
from vlm.data.storage import column, hashes, matrix
from vlm.data.study import flat_images

FEWEST = 2
"""Fewest rows for a check of equality."""


def cohort_notes(cohort: Cohort) -> list[str]:
    """Return the `constant_notes` of a cohort and a note on duplicate rows."""
    rows, schema = cohort.dataset, cohort.schema
    if not len(rows):
        return []
    vitals, labels = matrix(rows, "vitals", len(schema)), matrix(rows, "labels", len(cohort.labels))
    reports = _hashed_reports(cohort)
    notes = constant_notes(
        column(rows, "split").to_numpy(zero_copy_only=False),
        {name: labels[:, place] for place, name in enumerate(cohort.labels)},
        {vital.name: vitals[:, place] for place, vital in enumerate(schema.vitals)},
        reports,
    )
    flat = flat_images(rows)
    paths = pc.replace_substring_regex(pa.array(flat.paths, pa.string()), EMBEDDED_REFERENCE, r"\1")
    hashed = pd.util.hash_array(paths.to_numpy(zero_copy_only=False).astype(object), categorize=False)  # equal if alike
    images = np.zeros(len(rows), np.uint64)
    np.add.at(images, flat.row, hashed)
    if cohort.signal is not None:
        images += hashes(rows, "signal") * np.uint64(3)
    shown = (flat.counts > 0) | (reports != 0 if reports is not None else False)
    values = np.nan_to_num(np.concatenate([vitals, labels], axis=1), nan=-1e30)
    same = pd.DataFrame({"image": images, "report": 0 if reports is None else reports}).join(pd.DataFrame(values))
    return [*notes, *duplicate_note(same[np.asarray(shown, dtype=bool)].duplicated().to_numpy())]


def duplicate_note(repeated: np.ndarray) -> list[str]:
    """Return a note on the number of duplicate rows, if any."""
    count = int(repeated.sum())
    rows = "row repeats" if count == 1 else "rows repeat"
    what = "an earlier one in all but its id: the same image, values, labels and report"
    return [f"{count:,} {rows} {what}"] if count else []


def constant_notes(
    splits: np.ndarray,
    labels: Mapping[str, np.ndarray],
    vitals: Mapping[str, np.ndarray],
    reports: np.ndarray | None,
) -> list[str]:
    """Return a sentence for each empty split and each empty or constant label, vital or report.

    `splits` is the split of each of N rows, `labels` and `vitals` their numbers with NaN for unknown, `reports` a hash
    of each report with 0 for an empty one, or None without reports.
    """
    counts = {name: int((splits == name).sum()) for name in SPLITS}
    empty = [name for name, count in counts.items() if not count]
    notes = []
    if len(empty) == len(SPLITS) - 1:
        only = next(name for name in SPLITS if name not in empty)
        notes.append(f"every case is in the split {only}, none in {' or '.join(empty)}")
    else:
        notes += [f"no case is in the split {name}" for name in empty]
    training = splits == "train"
    if not training.any():
        return notes
    notes += [note for name, values in labels.items() if (note := _constant(f"label {name}", values[training]))]
    notes += [note for name, values in vitals.items() if (note := _constant(f"vital {name}", values[training]))]
    return notes if reports is None else [*notes, *_report_notes(reports[training])]


def _constant(name: str, values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    if not len(known):
        return f"{name} is unknown in all {len(values):,} training cases, so nothing can be learned of it"
    if len(known) >= FEWEST and np.ptp(known) == 0:
        return f"{name} is the same in all {len(known):,} training cases that have it, so nothing can be learned of it"
    return ""


def _report_notes(reports: np.ndarray) -> list[str]:
    written = reports[reports != 0]
    if not len(written):
        return [f"no report in {len(reports):,} training cases: the text cannot be learned"]
    if len(written) >= FEWEST and len(np.unique(written)) == 1:
        return [f"one and the same report in all {len(written):,} training cases that have one"]
    return []


def _hashed_reports(cohort: Cohort) -> np.ndarray | None:
    """Hash each report, N, 0 if empty; None if the cohort has no reports."""
    if not cohort.sections:
        return None
    chunks = [chunk.flatten() for chunk in column(cohort.dataset, "sections").chunks]
    parts = [hash_texts(pc.fill_null(chunk, "").to_numpy(zero_copy_only=False)) for chunk in chunks]
    sections = np.concatenate([np.empty(0, np.uint64), *parts]).reshape(len(cohort.dataset), len(cohort.sections))
    weights = np.arange(1, 2 * len(cohort.sections), 2, dtype=np.uint64)  # odd: moving a text changes the hash
    return (sections * weights).sum(axis=1)


def hash_texts(texts: np.ndarray) -> np.ndarray:
    """Hash each text to 64 bits, ignoring outer spaces; 0 if empty."""
    bare = np.array([str(text).strip() for text in texts], dtype=object)
    hashed = pd.util.hash_array(bare, categorize=False) if len(bare) else np.empty(0, np.uint64)
    return np.where(bare == "", np.uint64(0), hashed)
