"""Read Parquet files as tables of Python objects."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm.data.images.parquet_file import (
    batch_size,
    bytes_cells,
    column_types,
    fixed_width,
    is_bytes,
    is_image_struct,
    is_text,
    open_parquet,
    struct_cells,
)
from vlm.data.ingest.column_names import listed, unique_header
from vlm.data.size_limits import FRAME_TEXT, FREE_UNPACKED, LONGEST_ROW
from vlm.errors import UserError

MOST_REPEATED = 1000
"""Largest ratio of text to file size; dictionary encoding stores a repeated text once."""


def read_parquet(shards: list[Path], rows: int) -> Iterator[pd.DataFrame]:
    """Yield frames of at most `rows` rows of Parquet files that have the same columns.

    Image cells are `EmbeddedImage`; other nested columns are not read. Raises `UserError` as `read_chunks` does.
    """
    start, columns, empty = 0, None, None
    for path in shards:
        try:
            with open_parquet(path) as file:
                kept = [name for name in file.schema_arrow.names if not re.fullmatch(r"__index_level_\d+__", name)]
                names = unique_header(kept, range(len(kept)), str(path))
                if columns is not None and set(names) != set(columns):
                    odd = listed(sorted(map(str, set(names) ^ set(columns))))
                    raise UserError(f"{path}: its columns differ from those of {shards[0].name}: {odd}")
                columns = columns or names
                for cells, count in _batches(path, file, kept, rows):
                    frame = dict(zip(names, cells, strict=True))
                    yield pd.DataFrame(frame, index=range(start, start + count), dtype=object)[columns]
                    start += count
                empty = pd.DataFrame(columns=columns, dtype=object)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            kind = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise UserError(f"{path}: cannot read the table: {kind}") from None
    if start == 0 and empty is not None:
        yield empty


def _batches(path: Path, file: pq.ParquetFile, kept: list[str], rows: int) -> Iterator[tuple[list[list[object]], int]]:
    """Yield batches of cells by column with their row count; the text of a batch is bounded."""
    kinds = column_types(file)
    flat = [name for name in kept if is_image_struct(kinds[name]) or is_names(kinds[name])
            or not pa.types.is_nested(kinds[name])]  # fmt: skip
    # A placeholder for an unread list or structure; only its type matters, for the error if the column is used.
    nested: dict[str, object] = {
        name: {} if pa.types.is_struct(kinds[name]) else [{}] for name in kept if name not in flat
    }
    most = max(FREE_UNPACKED, MOST_REPEATED * path.stat().st_size)
    total = first = 0
    width = sum(fixed_width(kinds[name]) for name in flat)
    size = batch_size(file.metadata, len(kept), rows, width)
    groups = range(file.num_row_groups)  # one at a time: Arrow cannot join the images of two in a batch
    for batch in chain.from_iterable(file.iter_batches(size, row_groups=[group], columns=flat) for group in groups):
        stored = [column.storage if isinstance(column, pa.ExtensionArray) else column for column in batch.columns]
        batch = pa.record_batch(stored, names=flat)
        nothing = np.zeros(batch.num_rows, np.int64)
        lengths = {name: _text_sizes(column, name, path) for name, column in zip(flat, batch.columns, strict=True)}
        texts = [x for name, x in lengths.items() if not (is_bytes(kinds[name]) or is_image_struct(kinds[name]))]
        if sum(texts, nothing).max(initial=0) > LONGEST_ROW:
            raise UserError(f"{path}: a row is longer than 8 million characters")
        sizes = sum(lengths.values(), nothing)
        total += int(sizes.sum())
        if total > most:
            raise UserError(f"{path}: its text is more than {MOST_REPEATED:,} times as long as the file; that is no "
                            "table of cases")  # fmt: skip
        for start, end in _pieces(sizes):
            piece = batch.slice(start, end - start)
            columns = zip(flat, piece.columns, strict=True)
            cells = {name: _cells(column, str(path), name, first + start) for name, column in columns}
            for name, placeholder in nested.items():  # the first row is enough to raise if the column is used
                cells[name] = [placeholder, *[None] * (len(piece) - 1)]
            yield [cells[name] for name in kept], len(piece)
        first += batch.num_rows


def _text_sizes(column: pa.Array, name: str, path: Path) -> np.ndarray:
    """Return the bytes of each text or image, N, 0 for other types; raises `UserError` for a text that is too long."""
    if is_image_struct(column.type):
        files, paths = (_text_sizes(pc.struct_field(column, part), name, path) for part in ("bytes", "path"))
        return files + paths
    if is_names(column.type):
        counts = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        texts = pc.binary_length(column.flatten()).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        ends, totals = np.cumsum(counts), np.concatenate([[0], np.cumsum(texts + 8)])  # 8 bytes for each name
        return totals[ends] - totals[ends - counts]
    if not is_text(column.type):
        return np.zeros(len(column), np.int64)
    folded = pa.types.is_dictionary(column.type)
    texts = column.dictionary if folded else column
    lengths = pc.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    if len(lengths) and lengths.max() > LONGEST_ROW and not is_bytes(column.type):  # an image may be longer
        raise UserError(f"{path}: column {name}: a cell is longer than 8 million characters")
    if not folded:
        return lengths
    places = column.indices.fill_null(len(lengths)).to_numpy(zero_copy_only=False)
    return np.append(lengths, 0)[places]


def is_names(kind: pa.DataType) -> bool:
    """Check for a list of texts, such as the names of several images."""
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and (
        pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
    )


def _pieces(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (first, last) rows of pieces with at most `FRAME_TEXT` bytes of text, or of one row."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + FRAME_TEXT, side="right")))
        yield start, end
        start = end


def _cells(column: pa.Array, file: str, name: str, first: int) -> list[object]:
    if is_image_struct(column.type):
        return struct_cells(column, file, name, first)
    try:
        return bytes_cells(column, file, name, first) if is_bytes(column.type) else _objects(column)
    except (OverflowError, ValueError) as error:  # such as a date out of Python's range
        raise ValueError(f"column {name}: {error}") from None


def _objects(column: pa.Array) -> list[object]:
    """Convert to Python objects, None for null; integers stay integers beside nulls, equal texts share one object."""
    if pa.types.is_dictionary(column.type):
        values = np.array([*_objects(column.dictionary), None], dtype=object)
        return values[column.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)].tolist()
    return [None if value is None or value != value else value for value in column.to_pylist()]
