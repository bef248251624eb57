"""Read the samples of signals from untrusted files: NumPy arrays and text tables, never pickles.

The size that a header states is checked against the file before anything is read, and arrays of all cases are mapped,
not loaded.
"""

import csv
import io
import math
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from vlm.atomic import open_private
from vlm.data.signals.signal_spec import MOST_AVERAGED, MOST_SAMPLES
from vlm.errors import UserError
from vlm.untrusted import parse_json

ONE_FILE = 64 << 20
"""Most bytes of the file of one signal."""
ALL_FILES = 64 << 30
"""Most bytes of an array of all signals."""
ALL_KEYS = 256 << 20
"""Most bytes of their keys."""
MOST_VALUES = 4 << 20
"""Most numbers of one signal."""
LONGEST_HEADER = 4096
"""Most characters of an array's header."""
LONGEST_NUMBER = 40
ENDINGS = (".npy", ".csv", ".tsv", ".txt")
"""Files of one signal."""


class Header(NamedTuple):
    """Shape and type of a stored array, whose values begin at `start`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    column_major: bool

    @property
    def size(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: BinaryIO, size: int, kinds: str = "iuf") -> Header:
    """Read the header of a NumPy array of `size` bytes in all; raises `ValueError` for another kind or size."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"a NumPy array of format {version[0]}.{version[1]}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, column_major, dtype = read(file, max_header_size=LONGEST_HEADER)
    except (MemoryError, RecursionError, TypeError) as error:  # of a header that is nested deep, or not as numpy writes
        raise ValueError("a header that numpy never writes") from error
    found = Header(shape, dtype, file.tell(), column_major)
    if dtype.hasobject or dtype.kind not in kinds or dtype.itemsize > (8 if kinds == "iuf" else 4000):
        raise ValueError(f"an array of {dtype!s:.40}, not of plain {'numbers' if kinds == 'iuf' else 'words'}")
    if min(shape, default=0) < 0 or found.start + found.size != size:
        raise ValueError(f"its header states {found.size:,} bytes, the file has {size - found.start:,}")
    return found


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in a `UserError` for whatever keeps it from being read."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of signals") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, csv.Error) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot read the signals: {said:.200}") from None


def _mapped(path: Path, header: Header) -> np.ndarray:
    order = "F" if header.column_major else "C"
    if not header.size:
        raise ValueError("it holds no sample")
    return np.memmap(path, header.dtype, "r", header.start, header.shape, order)  # type: ignore[call-overload,no-any-return]


# -------------------------------------------------------------------------------------- all cases


def open_signals(path: Path, array: str, key: str) -> tuple[np.ndarray, dict[str, int]]:
    """Open the signals of all cases: N × … samples, mapped from disk, and the place of each key.

    Without `key` the keys are the places from 0. Raises `UserError` for a file that is not two plain arrays of N rows.
    """
    with _naming(path):
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                samples = _unpacked(archive, array)
                keys = _keys(archive, key) if key else [str(place) for place in range(len(samples))]
        elif path.suffix.lower() == ".npy":
            if key:
                raise ValueError("an .npy has no keys; write .npz, or leave data.table.signal.key empty")
            with path.open("rb") as file:
                samples = _mapped(path, _bounded(read_header(file, path.stat().st_size), ALL_FILES))
            keys = [str(place) for place in range(len(samples))]
        else:
            raise ValueError("signals of all cases are .npz or .npy")
        if samples.ndim not in (2, 3):
            raise ValueError(f"{array}: {samples.ndim} dimensions, not case × sample × channel")
        places = {name: place for place, name in enumerate(keys)}
        if len(keys) != len(samples):
            raise ValueError(f"{len(keys):,} keys for {len(samples):,} signals")
        if len(places) < len(keys):
            raise ValueError(f"{key}: two signals have one key")
        return samples, places


def _bounded(header: Header, most: int) -> Header:
    if header.size > most:
        raise ValueError(f"{header.size >> 20:,} MiB are more than {most >> 20:,}")
    return header


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(f"{name}.npy")
    except KeyError:
        known = ", ".join(entry.filename.removesuffix(".npy") for entry in archive.infolist()[:10])
        raise ValueError(f"no array {name!r:.60}; it has {known:.200}") from None


def _unpacked(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Copy an array of an archive to a private file and map it."""
    from vlm.data.storage import new_path, reserve

    entry = _member(archive, name)
    with archive.open(entry) as packed:
        header = _bounded(read_header(packed, entry.file_size), ALL_FILES)  # type: ignore[arg-type]
        path = new_path(".samples")
        with open_private(path, "wb") as out:
            reserve(out, header.size)
            shutil.copyfileobj(packed, out, 1 << 20)  # zipfile stops at the stated size, and checks the CRC
            if out.tell() != header.size:
                raise ValueError(f"{name}: shorter than its header states")
    return _mapped(path, header._replace(start=0))


def _keys(archive: zipfile.ZipFile, name: str) -> list[str]:
    entry = _member(archive, name)
    with archive.open(entry) as packed:
        header = _bounded(read_header(packed, entry.file_size, "iuUS"), ALL_KEYS)  # type: ignore[arg-type]
        if len(header.shape) != 1:
            raise ValueError(f"{name}: the keys are no list")
        values = np.frombuffer(packed.read(header.size), header.dtype)
    return [value.decode("utf-8") if isinstance(value, bytes) else str(value) for value in values.tolist()]


# --------------------------------------------------------------------------------------- one case


def read_signal_file(path: Path) -> np.ndarray:
    """Read the file of one signal, `.npy` or a text table of numbers: l × C or C × l; raises `UserError`."""
    with _naming(path):
        size = path.stat().st_size
        if size > ONE_FILE:
            raise ValueError(f"{size >> 20:,} MiB are more than one signal has ({ONE_FILE >> 20} MiB)")
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                header = read_header(file, size)
            return _few(np.array(_mapped(path, header)))
        if path.suffix.lower() not in ENDINGS:
            raise ValueError(f"a signal is {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
        return _few(_text_table(path.read_bytes().decode("utf-8-sig")))


def _text_table(text: str) -> np.ndarray:
    """Parse rows of numbers, with or without a header; an empty cell or `NaN` is a gap."""
    separator = next((mark for mark in "\t;," if mark in text[:10_000]), ",")
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if any(cell.strip() for cell in row)]
    if rows and not all(_is_number(cell) for cell in rows[0]):
        rows = rows[1:]
    if not rows:
        raise ValueError("it holds no number")
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise ValueError(f"line {number} of its numbers has {len(row)} cells, the first {width}")
        for cell in row:
            if not _is_number(cell):
                raise ValueError(f"line {number} of its numbers: {cell[:40]!r} is no number")
    return np.array([[float(cell) if cell.strip() else math.nan for cell in row] for row in rows], np.float32)


def _is_number(cell: str) -> bool:
    try:
        return not cell.strip() or (len(cell) <= LONGEST_NUMBER and isinstance(float(cell), float))
    except ValueError:
        return False


def _few(values: np.ndarray) -> np.ndarray:
    if values.size > MOST_VALUES:
        raise ValueError(f"{values.size:,} numbers are more than one signal has")
    return values


def signal_values(given: Any, where: str) -> np.ndarray:
    """Read a signal that is given as a list of numbers, or of lists of numbers for each channel or sample.

    `null` is a gap. Raises `UserError` for anything else.
    """
    if isinstance(given, str):
        try:
            given = parse_json(given, MOST_SAMPLES * MOST_AVERAGED, 3)
        except ValueError as error:
            raise UserError(f"{where}: not a list of numbers: {error!s:.200}") from None
    if isinstance(given, np.ndarray) and given.dtype.kind in "iuf":
        return given
    rows = given if isinstance(given, list | tuple) and given and isinstance(given[0], list | tuple) else [given]
    most = MOST_SAMPLES * MOST_AVERAGED
    if not all(isinstance(row, list | tuple) and 0 < len(row) <= most for row in rows) or len({*map(len, rows)}) > 1:
        raise UserError(f"{where}: not a list of numbers for each channel, all of one length")
    if len(rows) * len(rows[0]) > MOST_VALUES:
        raise UserError(f"{where}: more than {MOST_VALUES:,} numbers")
    for row in rows:
        for value in row:
            if value is not None and type(value) not in (int, float):
                raise UserError(f"{where}: {str(value)[:40]!r} is no number")
            if type(value) is int and abs(value) > 1e30:
                raise UserError(f"{where}: a number is too large")
    values = np.array([[math.nan if value is None else value for value in row] for row in rows], np.float64)
    return values[0] if len(rows) == 1 else values
