"""Find data leaks between splits, and check how evenly a split divides the labels."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from vlm.config import DataConfig, SplitConfig
from vlm.data.cohort import SPLIT_WORDS, splits_for
from vlm.data.prepare.columns import Roles
from vlm.data.prepare.notice import Level, Notice, counted, row_pairs
from vlm.data.prepare.pictures import Pair
from vlm.data.splits import assign_splits, deviations
from vlm.data.vitals.synonyms import plain_word
from vlm.faults import Faults

SHORTEST_NOTE = 40
"""Characters; shorter texts are often equal for good reason."""
UNEVEN = 0.03
SEEDS = 25


def check_leaks(
    frame: pd.DataFrame, roles: Roles, patients: np.ndarray, splits: np.ndarray, pairs: Sequence[Pair]
) -> list[Notice]:
    """Find patients, notes and images in more than one split: an error if the table fixes its split, else a warning."""
    level: Level = "error" if roles.split else "warning"
    by = f"column {roles.split}" if roles.split else "the planned split by patient"
    notices = []
    if roles.split and roles.patient:
        sides = pd.DataFrame({"patient": patients, "split": splits}).drop_duplicates()["patient"]
        shared = sides[sides.duplicated()].unique()
        if len(shared):
            message = f"{counted(len(shared), 'patient')} on both sides of {by}"
            notices.append(Notice("error", "patient_leak", message))
    for column in roles.texts:
        across = shared_texts(frame[column], splits)
        between = [] if across else shared_texts(frame[column], patients)
        if across:
            message = f"{counted(len(across), 'text')} of {column} on both sides of {by}: rows {row_pairs(across)}"
            notices.append(Notice(level, "note_leak", message))
        if between:
            message = (
                f"{counted(len(between), 'text')} of {column} shared by different patients: rows {row_pairs(between)}"
            )
            notices.append(Notice("note", "shared_notes", message))
    leaking = [pair for pair in pairs if splits[pair.first] != splits[pair.second]]
    if leaking:
        rows = row_pairs((pair.first, pair.second) for pair in leaking)
        message = f"{counted(len(leaking), 'picture')} on both sides of {by}: rows {rows}"
        notices.append(Notice(level, "image_leak", message))
    return notices


def shared_texts(column: pd.Series, sides: np.ndarray) -> list[tuple[int, int]]:
    """Find two rows of each text that is on two sides, ignoring case, spaces and punctuation."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(column.fillna("").astype(str)):
        if len(text) >= SHORTEST_NOTE:
            rows[re.sub(r"\W+", " ", text.lower()).strip()].append(row)
    found = []
    for same in rows.values():
        other = [row for row in same if sides[row] != sides[same[0]]]
        if other:
            found.append((same[0], other[0]))
    return found


def check_shares(roles: Roles, patients: np.ndarray, config: SplitConfig) -> list[Notice]:
    """Check how evenly the hash split by patient divides each label, and suggest a better seed if uneven."""
    if roles.split or not roles.labels:
        return []
    labels = {name: values == 1 for name, values in roles.labels.items()}
    (now,) = deviations(patients, labels, config, [config.seed])
    shares = f"{config.validation:.0%} validation and {config.test:.0%} test"
    if now <= UNEVEN:
        return [Notice("note", "split", f"a split of {shares} by patient divides every label within {UNEVEN:.0%}")]
    others = deviations(patients, labels, config, range(SEEDS))
    seed = int(np.argmin(others))
    message = (f"a split of {shares} by patient is off by up to {now:.0%} of a label's patients; "
               f"data.split.seed {seed} is off by {others[seed]:.0%}, the least of the first {SEEDS}")  # fmt: skip
    return [Notice("note", "split", message)]


def splits_of(frame: pd.DataFrame, roles: Roles, patients: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Return the split of each row, N names: the table's own, else the one that training would make."""
    if roles.split:
        words = [plain_word("" if value is None or value != value else str(value)) for value in frame[roles.split]]
        return np.array([SPLIT_WORDS.get(word, word) for word in words], dtype=object)
    return np.array(assign_splits(patients.tolist(), config), dtype=object)


def check_splits(frame: pd.DataFrame, roles: Roles, table: Path) -> list[Notice]:
    """Report cells of the split column that name no split, worded as in training."""
    if not roles.split:
        return []
    faults = Faults()
    splits_for([], DataConfig(), frame[roles.split], str(table), faults)
    return [Notice("error", "split", line.removeprefix(f"{table}: ")) for line in faults.lines()]
