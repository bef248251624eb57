"""Store rows in memory-mapped Arrow files: a million cases take no more memory than a thousand.

Rows are written in parts to an Arrow file of this process and read through the page cache. The file holds patient
data, so it lies in a private temporary folder that is removed when the process ends.
"""

import atexit
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa

from vlm.atomic import CHUNK, open_private, private
from vlm.errors import UserError

_numbers = count()


@cache
def _folder() -> Path:
    """Create a temporary folder that only this user may read."""
    folder = tempfile.TemporaryDirectory(prefix="clinical-vlm-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def new_path(suffix: str) -> Path:
    """Return a new path for a temporary file of this process, removed when the process ends."""
    return _folder() / f"{next(_numbers)}{suffix}"


def write_rows(parts: Iterable[Mapping[str, Any]], declared: datasets.Features) -> datasets.Dataset:
    """Write columns in parts and memory-map them; each part maps the declared names to equal-length lists.

    Raises `UserError` if the disk is full.
    """
    path, schema = new_path(".arrow"), declared.arrow_schema
    try:
        with private(), pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for part in parts:
                writer.write_batch(pa.RecordBatch.from_pydict({n: part[n] for n in schema.names}, schema=schema))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError(f"{path.parent}: cannot keep the rows there: {error.strerror or error}; set TMPDIR") from None
    return datasets.Dataset.from_file(str(path))


def new_array(shape: tuple[int, ...]) -> np.ndarray:
    """Create a memory-mapped float32 array of this shape, to be filled; raises `UserError` if the disk is full."""
    path = new_path(".f32")
    size = 4 * math.prod(shape)
    try:
        with open_private(path, "wb") as file:
            reserve(file, max(size, 4))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise UserError(f"{path.parent}: no room for {size >> 20} MiB: {error.strerror}; set TMPDIR") from None
    return np.memmap(path, np.float32, "r+", shape=shape) if size else np.empty(shape, np.float32)


def reserve(file: BinaryIO, size: int) -> None:
    """Allocate a file's size on disk: a sparse file would fail only later, when the disk is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, CHUNK):  # macOS and Windows: write zeros
        file.write(bytes(min(CHUNK, size - start)))


def column(dataset: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """Get one column of N values as Arrow data, without a Python object for each."""
    parts = dataset.select_columns([name]).with_format("arrow").iter(10_000)
    # A selection has one chunk a row, which would take far more memory than the values.
    chunks = [part[name].combine_chunks() for part in parts]
    return pa.chunked_array(chunks, type=dataset.features.arrow_schema.field(name).type)


def matrix(dataset: datasets.Dataset, name: str, width: int) -> np.ndarray:
    """Get a column of lists as N × width float32."""
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column(dataset, name).chunks]
    return np.concatenate([np.empty(0, np.float32), *flat]).astype(np.float32).reshape(len(dataset), width)


def hashes(dataset: datasets.Dataset, name: str) -> np.ndarray:
    """Hash each text of a column to 64 bits; N, uint64."""
    parts = (chunk.to_numpy(zero_copy_only=False) for chunk in column(dataset, name).chunks)
    hashed = [pd.util.hash_array(part.astype(object), categorize=False) for part in parts]
    return np.concatenate([np.empty(0, np.uint64), *hashed])
