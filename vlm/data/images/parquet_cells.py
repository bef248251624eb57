"""Columns of images in Parquet: a structure {bytes, path}, as `datasets` writes it, or bytes alone."""

import re

import pyarrow as pa
import pyarrow.compute as pc

from vlm.data.embedded import EmbeddedImage
from vlm.data.images.file_types import kind_of
from vlm.data.size_limits import LONGEST_ROW

_PNM = re.compile(rb"P[1-6]\s(?:#[^\n]*\n|\s)*\d+\s+\d+\s")
"""The beginning of a picture in characters, which a text is not likely to have."""


def is_image_struct(kind: pa.DataType) -> bool:
    """Whether a column is {bytes, path}, as `datasets` writes images."""
    if not pa.types.is_struct(kind) or {field.name for field in kind} != {"bytes", "path"}:
        return False
    path = kind.field("path").type
    path = path.value_type if pa.types.is_dictionary(path) else path
    is_text = pa.types.is_string(path) or pa.types.is_large_string(path) or pa.types.is_null(path)
    return is_bytes(kind.field("bytes").type) and is_text


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds bytes, also where they are in a dictionary."""
    if pa.types.is_dictionary(kind):
        return is_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def struct_cells(column: pa.StructArray, file: str, name: str, first: int) -> list[object]:
    """Cells of N rows from `first` on: an image, the name of a file where there are no bytes, None for neither."""
    files, paths = (pc.struct_field(column, field) for field in ("bytes", "path"))
    names = [path or "" for path in paths.to_pylist()]
    sizes = [-1 if size is None else size for size in _lengths(files)]
    return [
        EmbeddedImage(file, name, first + place, size, path) if size > 0 or (size == 0 and path) else path or None
        for place, (size, path) in enumerate(zip(sizes, names, strict=True))
    ]


def bytes_cells(column: pa.Array, file: str, name: str, first: int) -> list[object]:
    """Cells of N rows from `first` on: text that a program wrote as bytes, an image, None for nothing."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    texts = [_as_text(value.as_py() or b"") for value in column.dictionary]
    cells: list[object] = []
    for row, (value, size) in enumerate(zip(column.indices.to_pylist(), _lengths(column), strict=True), start=first):
        text = texts[value] if size else None
        cells.append(EmbeddedImage(file, name, row, size) if size and text is None else text)
    return cells


def _lengths(column: pa.Array) -> list[int | None]:
    """Bytes of each of N cells, None where there is nothing."""
    if not pa.types.is_dictionary(column.type):
        return pc.binary_length(column).to_pylist()
    return pc.binary_length(column.dictionary).take(column.indices).to_pylist()


def _as_text(value: bytes) -> str | None:
    """The text that the bytes are; None for what is none, and for a picture written in characters."""
    kind = kind_of(value)
    if len(value) > LONGEST_ROW or (kind and (kind != "PNM" or _PNM.match(value))):
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None
