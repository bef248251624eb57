"""Read image columns of untrusted Parquet files, and refuse files that expand far beyond their size.

An image is a structure {bytes, path}, as `datasets` writes it, or bytes alone.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm.data.embedded import EmbeddedImage
from vlm.data.images.file_types import file_type
from vlm.data.images.parquet_pages import PREFIXES, PageHeaders
from vlm.data.size_limits import FRAME_TEXT, FREE_UNPACKED, LONGEST_ROW, MOST_CELLS, MOST_RATIO
from vlm.errors import UserError

_PNM = re.compile(rb"P[1-6]\s(?:#[^\n]*\n|\s)*\d+\s+\d+\s")
"""Header of a PNM image in ASCII, unlikely to start a text."""


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open the file, texts left dictionary-encoded; raises `UserError` if its metadata show it expands too far."""
    limits = {"thrift_string_size_limit": 1 << 24, "thrift_container_size_limit": 1 << 20,
              "arrow_extensions_enabled": False}  # fmt: skip
    with pq.ParquetFile(path, **limits) as file:
        _refuse_bombs(path, file.metadata)
        kinds = column_types(file)
        texts = [name for name, kind in kinds.items() if is_text(kind) and not fixed_width(kind)]
        images = [(name, kind) for name, kind in kinds.items() if is_image_struct(kind)]
        texts += [f"{name}.{part.name}" for name, kind in images for part in kind if is_text(part.type)]
        if _has_prefixes(file.metadata):  # Arrow does not dictionary-encode these
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


def batch_size(metadata: pq.FileMetaData, columns: int, rows: int, width: int = 0) -> int:
    """Choose a batch size with bounded cells and bytes, by the file's metadata; a row has at least `width` bytes."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    longest = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1.0) + width
    few = 4 if _has_prefixes(metadata) else rows
    return max(1, min(rows, MOST_CELLS // max(columns, 1), int(FRAME_TEXT / max(longest, 1.0)), few))


def _has_prefixes(metadata: pq.FileMetaData) -> bool:
    """Check for prefix-encoded texts, whose length no metadata states."""
    return any("DELTA_BYTE_ARRAY" in chunk.encodings for chunk in _chunks(metadata))


def column_types(file: pq.ParquetFile) -> dict[str, pa.DataType]:
    """Get the storage type of each column, without Arrow extension types such as JSON or a tensor."""
    schema = file.schema_arrow
    types = [kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind for kind in schema.types]
    return dict(zip(schema.names, types, strict=True))


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    is_long = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return is_long or is_bytes(kind) or pa.types.is_binary_view(kind) or bool(fixed_width(kind))


def fixed_width(kind: pa.DataType) -> int:
    """Get the value size of a fixed-size binary column, bytes; 0 for other types.

    Arrow expands its values, however often one is repeated.
    """
    return kind.byte_width if pa.types.is_fixed_size_binary(kind) else 0


def is_image_struct(kind: pa.DataType) -> bool:
    """Check whether a column is {bytes, path}, as `datasets` writes images."""
    if not pa.types.is_struct(kind) or {field.name for field in kind} != {"bytes", "path"}:
        return False
    path = kind.field("path").type
    path = path.value_type if pa.types.is_dictionary(path) else path
    is_text = pa.types.is_string(path) or pa.types.is_large_string(path) or pa.types.is_null(path)
    return is_bytes(kind.field("bytes").type) and is_text


def is_bytes(kind: pa.DataType) -> bool:
    """Check whether a column holds bytes, dictionary-encoded or not."""
    if pa.types.is_dictionary(kind):
        return is_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def struct_cells(column: pa.StructArray, file: str, name: str, first: int) -> list[object]:
    """Convert N rows from `first` on: an image, a file name if there are no bytes, None for neither."""
    files, paths = (pc.struct_field(column, field) for field in ("bytes", "path"))
    names = [path or "" for path in paths.to_pylist()]
    sizes = [-1 if size is None else size for size in _lengths(files)]
    return [
        EmbeddedImage(file, name, first + place, size, path) if size > 0 or (size == 0 and path) else path or None
        for place, (size, path) in enumerate(zip(sizes, names, strict=True))
    ]


def bytes_cells(column: pa.Array, file: str, name: str, first: int) -> list[object]:
    """Convert N rows from `first` on: text stored as bytes, an image, None for null."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    texts = [_as_text(value.as_py() or b"") for value in column.dictionary]
    cells: list[object] = []
    for row, (value, size) in enumerate(zip(column.indices.to_pylist(), _lengths(column), strict=True), start=first):
        text = texts[value] if size else None
        cells.append(EmbeddedImage(file, name, row, size) if size and text is None else text)
    return cells


def _lengths(column: pa.Array) -> list[int | None]:
    """Get the length of each of N cells, bytes; None if null."""
    if not pa.types.is_dictionary(column.type):
        return pc.binary_length(column).to_pylist()
    return pc.binary_length(column.dictionary).take(column.indices).to_pylist()


def _as_text(value: bytes) -> str | None:
    """Decode bytes as text; None if they are no text, or an ASCII image."""
    kind = file_type(value)
    if len(value) > LONGEST_ROW or (kind and (kind != "PNM" or _PNM.match(value))):
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
