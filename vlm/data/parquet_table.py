"""Parquet as tables: cells as Python objects, and files that unfold into far more than they hold refused."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm.data.headers import some_of, unique_header
from vlm.data.limits import FRAME_TEXT, FREE_UNPACKED, LONGEST_ROW, MOST_CELLS, MOST_RATIO
from vlm.data.parquet_images import bytes_cells, is_bytes, is_image_struct, struct_cells
from vlm.data.parquet_pages import PREFIXES, PageHeaders
from vlm.errors import UserError

MOST_REPEATED = 1000
"""Times a file's size that its text may be, for texts stand once in a dictionary and in many rows."""


def read_parquet(shards: list[Path], rows: int) -> Iterator[pd.DataFrame]:
    """Frames of at most `rows` rows of Parquet files that have the same columns.

    Of images the cells are `EmbeddedImage`; what other columns of lists or structures hold is not read. Raises
    `UserError` as `read_chunks` does.
    """
    start, columns, empty = 0, None, None
    for path in shards:
        try:
            with open_parquet(path) as file:
                kept = [name for name in file.schema_arrow.names if not re.fullmatch(r"__index_level_\d+__", name)]
                names = unique_header(kept, range(len(kept)), str(path))
                if columns is not None and set(names) != set(columns):
                    odd = some_of(sorted(map(str, set(names) ^ set(columns))))
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


def open_parquet(path: Path) -> pq.ParquetFile:
    """The file, with texts left in their dictionaries; raises `UserError` for one that says it unfolds too far."""
    limits = {"thrift_string_size_limit": 1 << 24, "thrift_container_size_limit": 1 << 20,
              "arrow_extensions_enabled": False}  # fmt: skip
    with pq.ParquetFile(path, **limits) as file:
        _refuse_bombs(path, file.metadata)
        kinds = _kinds(file)
        texts = [name for name, kind in kinds.items() if _is_text(kind) and not _width(kind)]
        images = [(name, kind) for name, kind in kinds.items() if is_image_struct(kind)]
        texts += [f"{name}.{part.name}" for name, kind in images for part in kind if _is_text(part.type)]
        if _has_prefixes(file.metadata):  # Arrow makes no dictionary of these
            texts = []
    return pq.ParquetFile(path, read_dictionary=texts, buffer_size=1 << 20, pre_buffer=False, **limits)


def _refuse_bombs(path: Path, metadata: pq.FileMetaData) -> None:
    size = path.stat().st_size
    with path.open("rb") as read:
        headers = PageHeaders(read, size)
        for chunk in _chunks(metadata):
            pages, packed = headers.read(chunk), min(chunk.total_compressed_size, size)
            unpacked, column = max(chunk.total_uncompressed_size, pages.unpacked), chunk.path_in_schema[:60]
            if unpacked > max(FREE_UNPACKED, MOST_RATIO * packed):
                raise UserError(f"{path}: column {column} unpacks to {unpacked >> 20:,} MiB, more than {MOST_RATIO} "
                                "times its size; if you mean it, write the file without compression")  # fmt: skip
            if PREFIXES in pages.encodings and "DELTA_BYTE_ARRAY" not in chunk.encodings:
                raise UserError(f"{path}: column {column} has another encoding than the file says; write it again")
    if metadata.num_rows > max(1 << 20, MOST_RATIO * size):
        raise UserError(f"{path}: {metadata.num_rows:,} rows in {size:,} bytes; that is no table of cases")


def _chunks(metadata: pq.FileMetaData) -> Iterator[pq.ColumnChunkMetaData]:
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    return (group.column(place) for group in groups for place in range(group.num_columns))


def _kinds(file: pq.ParquetFile) -> dict[str, pa.DataType]:
    """The type of each column as it is stored, without a meaning that Arrow has for it, such as JSON or a tensor."""
    schema = file.schema_arrow
    types = [kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind for kind in schema.types]
    return dict(zip(schema.names, types, strict=True))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    is_long = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return is_long or is_bytes(kind) or pa.types.is_binary_view(kind) or bool(_width(kind))


def _may_hold_images(kind: pa.DataType) -> bool:
    return is_bytes(kind) or is_image_struct(kind)


def _width(kind: pa.DataType) -> int:
    """Bytes of each value of a column of bytes that are all as long, which Arrow writes out however often one stands
    there; 0 for other kinds."""
    return kind.byte_width if pa.types.is_fixed_size_binary(kind) else 0


def _batches(path: Path, file: pq.ParquetFile, kept: list[str], rows: int) -> Iterator[tuple[list[list[object]], int]]:
    """The cells of each column and their number, as many rows at a time as hold a bounded text."""
    kinds = _kinds(file)
    flat = [name for name in kept if is_image_struct(kinds[name]) or not pa.types.is_nested(kinds[name])]
    nested = {name: _stand_in(kinds[name]) for name in kept if name not in flat}
    most = max(FREE_UNPACKED, MOST_REPEATED * path.stat().st_size)
    total = first = 0
    width = sum(_width(kinds[name]) for name in flat)
    for batch in file.iter_batches(batch_size=batch_size(file.metadata, len(kept), rows, width), columns=flat):
        stored = [column.storage if isinstance(column, pa.ExtensionArray) else column for column in batch.columns]
        batch = pa.record_batch(stored, names=flat)
        nothing = np.zeros(batch.num_rows, np.int64)
        lengths = {name: _text_sizes(column, name, path) for name, column in zip(flat, batch.columns, strict=True)}
        texts = [length for name, length in lengths.items() if not _may_hold_images(kinds[name])]
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
            for name, stand_in in nested.items():  # the first row is enough to say so where the column is used
                cells[name] = [stand_in, *[None] * (len(piece) - 1)]
            yield [cells[name] for name in kept], len(piece)
        first += batch.num_rows


def batch_size(metadata: pq.FileMetaData, columns: int, rows: int, width: int = 0) -> int:
    """Rows whose cells and bytes are few, as far as the file says how long they are; each has at least `width`."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    longest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1.0) + width
    few = 4 if _has_prefixes(metadata) else rows
    return max(1, min(rows, MOST_CELLS // max(columns, 1), int(FRAME_TEXT / max(longest, 1.0)), few))


def _has_prefixes(metadata: pq.FileMetaData) -> bool:
    """Whether a text may repeat the one before it, so that nothing says how long they are."""
    return any("DELTA_BYTE_ARRAY" in chunk.encodings for chunk in _chunks(metadata))


def _stand_in(kind: pa.DataType) -> object:
    """What stands for a list or a structure that is not read: its kind alone matters, to say so where it is used."""
    return {} if pa.types.is_struct(kind) else []


def _text_sizes(column: pa.Array, name: str, path: Path) -> np.ndarray:
    """Bytes of each text or image of a column, N; 0 for other kinds. Raises `UserError` for a text that is too long."""
    if is_image_struct(column.type):
        files, paths = (_text_sizes(pc.struct_field(column, part), name, path) for part in ("bytes", "path"))
        return files + paths
    if not _is_text(column.type):
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


def _pieces(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last row of pieces that hold at most `FRAME_TEXT` bytes of text, or one row."""
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
    except (OverflowError, ValueError) as error:  # such as a date that Python has not
        raise ValueError(f"column {name}: {error}") from None


def _objects(column: pa.Array) -> list[object]:
    """Python objects, None for nothing: a whole number stays whole beside a missing one, equal texts are one."""
    if pa.types.is_dictionary(column.type):
        values = np.array([*_objects(column.dictionary), None], dtype=object)
        return values[column.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)].tolist()
    return [None if value is None or value != value else value for value in column.to_pylist()]
