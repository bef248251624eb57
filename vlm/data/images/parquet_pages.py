"""Read the page headers of a Parquet file: Arrow relies on them, whatever sizes and encodings the footer states.

A header is a Thrift structure in the compact protocol; see the Parquet format's `parquet.thrift`.
"""

from typing import Any, BinaryIO, NamedTuple

import pyarrow.parquet as pq

DICTIONARY = 2
"""Page type of a dictionary page."""
PREFIXES = 7
"""The encoding DELTA_BYTE_ARRAY."""
_PADDING = 100
"""Bytes that Arrow reads beyond a chunk, since some writers omit a header from its size."""
_DEEPEST = 8
_SUB_HEADERS = {5: 2, 7: 2, 8: 4}
"""Header field of a data page, a dictionary page or a data page v2 → field of its encoding."""


class Pages(NamedTuple):
    """Summary of the page headers of a column chunk."""

    unpacked: int
    """Uncompressed size, bytes."""
    encodings: frozenset[int]
    types: frozenset[int]


class PageHeaders:
    """Reader of page headers; in all it reads no more than the file's size, so overlapping chunks take bounded time."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.left = file, size

    def read(self, chunk: pq.ColumnChunkMetaData) -> Pages:
        """Read the pages of a chunk as Arrow would; raises `ValueError` for an invalid header."""
        position = chunk.data_page_offset
        if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < position:
            position = chunk.dictionary_page_offset
        end, seen, unpacked = position + chunk.total_compressed_size + _PADDING, 0, 0
        encodings: set[int] = set()
        types: set[int] = set()
        while seen < chunk.num_values and position < end:
            self.file.seek(position)
            header = self._struct(0)
            size, packed = header.get(2), header.get(3)
            if not (isinstance(size, int) and isinstance(packed, int) and min(size, packed) >= 0):
                raise ValueError("a page without its size")
            for field, place in _SUB_HEADERS.items():
                if isinstance(part := header.get(field), dict):
                    encodings.add(part.get(place, -1))
                    seen += max(part.get(1) or 0, 0) if field != 7 else 0
            types.add(header.get(1, -1))
            unpacked += size
            position = self.file.tell() + packed
        return Pages(unpacked, frozenset(encodings), frozenset(types))

    def _byte(self) -> int:
        self.left -= 1
        byte = self.file.read(1)
        if not byte or self.left < 0:
            raise ValueError("a page's header is damaged")
        return byte[0]

    def _varint(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise ValueError("a page's header is damaged")

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _struct(self, depth: int) -> dict[int, Any]:
        """Parse a structure: field → integer or structure; other types are skipped."""
        if depth > _DEEPEST:
            raise ValueError("a page's header is too deep")
        fields: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            fields[field] = None if kind in (1, 2) else self._value(kind, depth)  # a boolean's value is in its type
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 12:
            return self._struct(depth + 1)
        if kind in (1, 2, 3):  # booleans in a list: a byte each
            return self._byte() and None
        if kind in (7, 8):
            self.file.seek(8 if kind == 7 else self._varint(), 1)
        elif kind in (9, 10) and depth <= _DEEPEST:
            head = self._byte()
            for _ in range(self._varint() if head >> 4 == 15 else head >> 4):
                self._value(head & 15, depth + 1)
        else:  # no header has a map
            raise ValueError("a page's header is damaged")
        return None
