"""Parse labels of tables: yes and no in several languages, 0 and 1, empty for unknown."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from vlm.data.vitals.synonyms import NO, UNCERTAIN, YES, is_missing_word, plain_word
from vlm.data.vitals.values import clean, quoted
from vlm.faults import Faults

WAY_OUT = "write 1, 0 or nothing for unknown"
_SAME = str.maketrans({**dict.fromkeys("−‐‑‒–—―﹣－", "-"), **dict.fromkeys("＋✓✔☑", "+"), **dict.fromkeys("✗✘☐", "-")})
_WORDS = YES | NO | UNCERTAIN
_VALUE = {"ignore": math.nan, "positive": 1.0, "negative": 0.0, None: math.nan}


@dataclass
class LabelReader:
    """Read one label column in parts, tracking the notation across them."""

    name: str
    uncertain: str | None = None
    """Meaning of -1: `ignore`, `positive` or `negative`; None: unknown, with a warning."""
    uncertain_rows: int = 0
    signs: set[str] = field(default_factory=set)
    """Signs seen so far, of `+`, `-`, `0` and `-1`."""
    first_minus: dict[str, str] = field(default_factory=dict)
    """`-` and `-1` → location of the first."""

    def read(self, cells: pd.Series, where: str, faults: Faults) -> np.ndarray:
        """Read N labels: 1, 0 or NaN for unknown; any other cell goes to `faults` with its row."""
        places, different = factorized(cells)  # each distinct cell is parsed once
        words = [_key(cell) for cell in different]
        meanings = [self._meaning(word) for word in words]
        for place in np.flatnonzero(np.array([meaning is None for meaning in meanings], dtype=bool)[places]).tolist():
            cell = quoted(different[places[place]])
            faults.add(f"{where}: row {cells.index[place] + 2}: {self.name}: {cell} is no label; {WAY_OUT}")
        for number, word in enumerate(words):
            if word in ("-", "-1") or word in UNCERTAIN:
                rows = np.flatnonzero(places == number).tolist()
                self.uncertain_rows += len(rows) if word != "-" else 0
                self.first_minus.setdefault(word, f"{where}: row {cells.index[rows[0]] + 2}")
        return np.array([math.nan if meaning is None else meaning for meaning in meanings], dtype=float)[places]

    def _meaning(self, word: str) -> float | None:
        """Convert a word to 1, 0 or NaN; None if it is no label."""
        if word in ("+", "-", "-1", "0"):
            self.signs.add(word)
        if word == "-1" or word in UNCERTAIN:
            return _VALUE[self.uncertain]
        if word in YES or word == "1":
            return 1.0
        if word in NO or word == "0":
            return 0.0
        return math.nan if is_missing_word(word) else None

    def finish(self, faults: Faults) -> list[str]:
        """Return warnings on guesses; ambiguous notation goes to `faults`."""
        if "-" in self.signs and "+" not in self.signs:
            faults.add(f"{self.first_minus['-']}: {self.name}: '-' can mean negative or nothing; write 0 or nothing")
        if "-1" in self.signs and "0" not in self.signs and self.uncertain is None:
            why = "-1 stands in a column without 0, so it can mean negative or uncertain"
            way_out = "write 0, or set data.table.uncertain to ignore, positive or negative"
            faults.add(f"{self.first_minus['-1']}: {self.name}: {why}; {way_out}")
        if self.uncertain_rows and self.uncertain is None:
            return [f"{self.name}: -1, or a word for uncertain, in {self.uncertain_rows:,} rows is taken as unknown; "
                    "data.table.uncertain says otherwise: ignore, positive or negative"]  # fmt: skip
        return []


def parse_labels(column: pd.Series, where: str, uncertain: str | None = None) -> np.ndarray:
    """Parse N labels: 0, 1 or NaN (unknown); raises `UserError` that names the rows of anything else."""
    faults, reader = Faults(), LabelReader(str(column.name), uncertain)
    values = reader.read(column, where, faults)
    reader.finish(faults)
    faults.raise_any()
    return values


def are_labels(cells: Iterable[Any]) -> bool:
    """Check whether a column holds only labels, with at least one positive and one negative."""
    reader = LabelReader("")
    found = {reader._meaning(_key(cell)) for cell in factorized(pd.Series(cells, dtype=object))[1]}
    return None not in found and {0.0, 1.0} <= found and not ("-" in reader.signs and "+" not in reader.signs)


def factorized(cells: pd.Series) -> tuple[np.ndarray, list[Any]]:
    """Factorize N cells: the index of each among the distinct cells, and the distinct cells."""
    plain = cells.astype(object).map(lambda cell: "(nested)" if isinstance(cell, list | dict) else cell)
    places, different = pd.factorize(plain.to_numpy(object), use_na_sentinel=False)
    return places, list(different)


def _key(cell: Any) -> str:
    """Normalize a cell: `1`, `0` or `-1` for these numbers in any notation, else the word."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType") or cell != cell:
        return ""
    word = plain_word(clean(str(cell)[:100].translate(_SAME)))
    try:
        number = float(word.replace(",", "."))
    except ValueError:
        bare = word.rstrip(".")
        return bare if bare in _WORDS else word
    return str(int(number)) if number in (0, 1, -1) else word
