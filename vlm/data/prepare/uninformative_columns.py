"""What training would find empty or constant, said before it."""

import numpy as np
import pandas as pd

from vlm.data.ingest.uninformative import hash_texts, repeated_note, substance_notes
from vlm.data.prepare.columns import Roles, missing
from vlm.data.prepare.notice import Notice


def check_substance(
    frame: pd.DataFrame, roles: Roles, numbers: dict[str, np.ndarray], splits: np.ndarray
) -> list[Notice]:
    """What training says of splits without rows, of labels and vitals that never vary, and of empty reports."""
    vitals = {vital.name: numbers[column] for column, vital in roles.vitals.items()}
    columns = roles.reports or roles.texts
    texts = [" ".join(row).strip() for row in zip(*(frame[c].fillna("").astype(str) for c in columns), strict=True)]
    reports = hash_texts(np.array(texts, dtype=object)) if columns else None
    used = {roles.image, roles.split, *roles.vitals, *roles.sources_of_labels, *columns}
    told = [c for c in frame.columns if c != roles.patient and (c in used or not _is_id(frame[c]))]
    shown = ~missing(frame[roles.image]) if roles.image else np.zeros(len(frame), dtype=bool)
    shown |= reports != 0 if reports is not None else False
    same = frame.loc[shown, told].astype(str).duplicated().to_numpy() if told else np.zeros(0, dtype=bool)
    notes = [*substance_notes(splits, roles.labels, vitals, reports), *repeated_note(same)]
    return [Notice("warning", "substance", note) for note in notes]


def _is_id(column: pd.Series) -> bool:
    """Whether a column numbers or names the rows: each value once, and none of them a sentence or a file."""
    words = column.fillna("").astype(str)
    return bool(words.is_unique and words.str.fullmatch(r"[\w\-]{1,40}").all() and not words.str.contains(r"\.").any())
