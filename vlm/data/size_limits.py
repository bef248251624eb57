"""Limit the size of cells, rows and tables, so that reading an untrusted file takes bounded memory."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from vlm.errors import UserError

LONGEST_ROW = 1 << 23
"""Largest row, and so cell, in characters; a longer one is an unclosed quote, or no table."""
FRAME_TEXT = 1 << 24
"""Characters after which a frame ends, however few its rows."""
MOST_CELLS = 1 << 22
"""Largest number of cells in a frame."""
FREE_UNPACKED = 1 << 25
"""Decompressed bytes allowed for any compressed file."""
MOST_RATIO = 100
"""Largest compression ratio of a larger file; real tables have 5 to 40."""
MOST_SINGLE_BYTES = 1 << 16
"""Largest gzip overhead outside the data, bytes; real files have a file name there."""
TOO_LONG = "is longer than 8 million characters; is a quote opened and never closed, or is this no table?"


def open_bytes(path: Path) -> BinaryIO:
    """Open the file's bytes, decompressed if gzipped; reading raises `UserError` for a gzip bomb."""
    return cast(BinaryIO, _Gunzip(path) if path.suffix.lower() == ".gz" else path.open("rb"))


class _CompressedFile(io.FileIO):
    """Compressed bytes; Python reads a gzip header's name and the zeros after the data one by one, for minutes."""

    ones = 0

    def read(self, size: int | None = -1) -> bytes:
        self.ones += size == 1
        if self.ones > MOST_SINGLE_BYTES:
            raise OSError("its gzip header, or what stands behind its data, is far too long")
        return super().read(size) or b""


class _Gunzip(gzip.GzipFile):
    """Gzip reader that stops beyond the compression limit."""

    def __init__(self, path: Path) -> None:
        self._compressed = _CompressedFile(path)
        super().__init__(fileobj=cast(BinaryIO, self._compressed), mode="rb")
        self._path = path

    def close(self) -> None:
        super().close()
        self._compressed.close()

    def read(self, size: int | None = -1) -> bytes:
        return self._checked(super().read(size))

    def read1(self, size: int = -1) -> bytes:
        return self._checked(super().read1(size))

    def _checked(self, data: bytes) -> bytes:
        if self.tell() > max(FREE_UNPACKED, MOST_RATIO * self._compressed.tell()):
            raise UserError(f"{self._path}: unpacks to more than {MOST_RATIO} times its size; if it is what you mean, "
                            "unpack it first")  # fmt: skip
        return data


class Lines:
    """Iterate over lines, line ends kept; raises `UserError` if one row grows beyond `LONGEST_ROW`."""

    def __init__(self, path: Path, encoding: str) -> None:
        self._path, self._file = path, io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="")
        self.number, self.row_length, self.total, self.has_nul = 0, 0, 0, False

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(LONGEST_ROW + 1):
            self.number += 1
            self.row_length += len(line)
            if self.row_length > LONGEST_ROW:
                raise UserError(f"{self._path}: line {self.number} {TOO_LONG}")
            self.has_nul = self.has_nul or "\0" in line
            yield line

    def row_ends(self) -> None:
        """Reset the count for the next row."""
        self.total += self.row_length
        self.row_length = 0

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
