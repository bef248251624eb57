"""Read the signal of one case: a file, or numbers as they are given."""

from pathlib import Path
from typing import Any

import numpy as np

from vlm.data.case import CaseSpec
from vlm.data.signals.signal_file import read_signal_file, signal_values
from vlm.errors import UserError

Signal = str | Path | np.ndarray | list[Any] | None
"""File of a signal (`.npy`, `.csv`), its samples (l × C or C × l), or None."""


def read_signal(given: Signal, spec: CaseSpec) -> tuple[np.ndarray | None, list[str]]:
    """Read a signal as recorded at the rate and in the unit of the training signals; returns C × l, and warnings.

    Raises `UserError` for a signal that the adapter does not read, and for a file or numbers that are none.
    """
    if spec.signal is None:
        if given is not None:
            raise UserError("signal: the adapter was trained without signals; leave it away")
        return None, []
    if given is None:
        return None, ["no signal given"]
    recorded = read_signal_file(Path(given)) if isinstance(given, str | Path) else signal_values(given, "signal")
    return spec.signal.read(recorded, "signal")
