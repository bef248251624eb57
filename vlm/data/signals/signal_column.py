"""Read the signals of a table's rows, from one file of all cases, a file a case or lists in the cells."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlm.config import SignalColumnConfig
from vlm.data.signals.signal_file import ENDINGS, open_signals, read_signal_file, signal_values
from vlm.data.signals.signal_spec import SignalFormat, shows_no_signal, to_bytes
from vlm.data.vitals.synonyms import is_missing_word
from vlm.errors import UserError
from vlm.faults import Faults


class SignalColumn:
    """Reader of a table's signals, which collects doubts for the warnings."""

    def __init__(self, config: SignalColumnConfig, root: Path, faults: Faults) -> None:
        self.config, self.root, self.faults = config, root, faults
        self.lengths: dict[int, int] = {}
        """Number of samples → signals."""
        self.doubts: dict[str, tuple[str, int]] = {}
        """Doubt → location of the first, and number."""
        self.none = 0

    @cached_property
    def format(self) -> SignalFormat | None:
        """What the samples are; None for a table without signals."""
        config = self.config
        if not config.column:
            return None
        try:
            channels = config.channels or [config.column]
            return SignalFormat(channels, config.rate, config.scale, config.average)
        except UserError as error:
            raise UserError(f"data.table.{error}") from None

    @cached_property
    def store(self) -> tuple[np.ndarray, dict[str, int]]:
        """Signals of all cases and the place of each key."""
        return open_signals(self.root / self.config.file, self.config.array, self.config.key)

    def of(self, frame: pd.DataFrame, column: str | None, where: str) -> dict[str, list[bytes]]:
        """Return the column `signal` of some rows, as `to_bytes` stores samples; unreadable ones go to the faults.

        It is empty for a table without signals, whose `column` is None.
        """
        stored = []
        for number, cell in zip(frame.index + 2, frame[column] if column else (), strict=False):
            at, samples = f"{where}: row {number}: {self.config.column}", None
            with self.faults.gather():
                samples = self._samples(cell, at)
            stored.append(to_bytes(samples))
        return {"signal": stored} if column else {}

    def _samples(self, cell: Any, at: str) -> np.ndarray | None:
        assert self.format is not None
        recorded = self._recorded(cell, at)
        if recorded is None:
            self.none += 1
            return None
        samples = self.format.samples(recorded, at)
        if shows_no_signal(samples):
            self._doubt("flat in every channel, so counts as none", at)
            return None
        for doubt in self.format.doubts(samples):
            self._doubt(doubt, at)
        self.lengths[samples.shape[1]] = self.lengths.get(samples.shape[1], 0) + 1
        return samples

    def _recorded(self, cell: Any, at: str) -> np.ndarray | None:
        """Find the recorded signal that a cell names or holds; None for an empty cell."""
        if isinstance(cell, list):
            if not cell:
                raise UserError(f"{at}: an empty list; lists of a Parquet table are not read, name files")
            return signal_values(cell, at)
        if cell is None or cell != cell or is_missing_word(text := str(cell).strip()):
            return None
        if self.config.file:
            samples, places = self.store
            if text not in places:
                raise UserError(f"{at}: {self.config.file} has no signal {text!r:.60}")
            return np.array(samples[places[text]])
        return signal_values(text, at) if text.startswith("[") else read_signal_file(self._file(text, at))

    def _file(self, name: str, at: str) -> Path:
        """Find the file of a signal below `data.root`."""
        path = self.root / name
        if not name.lower().endswith(ENDINGS):
            raise UserError(f"{at}: {name!r:.60} is no list and no {' or '.join(ENDINGS)}; set data.table.signal.file")
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
        except (OSError, ValueError, RuntimeError):
            inside = False
        if not inside:
            raise UserError(f"{at}: {name!r:.60} leads outside {self.root}")
        return path

    def _doubt(self, doubt: str, at: str) -> None:
        first, count = self.doubts.get(doubt, (at, 0))
        self.doubts[doubt] = first, count + 1

    def notes(self) -> list[str]:
        """Return warnings on doubtful signals, and on signals of unequal lengths."""
        notes = [f"{first}: {doubt} ({count:,} signals)" for doubt, (first, count) in self.doubts.items()]
        if len(self.lengths) > 1:
            counts = ", ".join(f"{count:,} of {length:,}" for length, count in sorted(self.lengths.items()))
            notes.append(
                f"column {self.config.column}: signals of unequal length ({counts} samples); a shorter one has a gap "
                "at its end, one longer than those for training is cut"
            )
        if self.format is not None and self.none:
            notes.append(f"column {self.config.column}: {self.none:,} cases have no signal")
        return notes
