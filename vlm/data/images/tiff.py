"""Read the directory of a TIFF, or of an EXIF block in the same format, without decoding pixels."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

NEW_SUBFILE, WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_COUNTS = 273, 274, 277, 278, 279
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS, DNG_VERSION = 322, 323, 324, 325, 50706
WHITE_IS_ZERO = 0
SUPPORTED_PHOTOMETRIC = {WHITE_IS_ZERO: "grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr"}
"""Supported photometric interpretations, decoded as a viewer shows them."""
JPEG = (6, 7)
"""Compression schemes whose strips and tiles are JPEG streams."""
UNSUPPORTED = {34712: "JPEG 2000", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL"}
"""Unsupported compression schemes."""
MOST_ENTRIES, MOST_PARTS = 65_535, 1_000_000
_TYPES = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
"""TIFF integer type → NumPy type; the other types are not needed."""


@dataclass(frozen=True)
class Directory:
    """First directory of a TIFF: tag → location of its values."""

    data: bytes
    order: Literal["<", ">"]
    entries: dict[int, tuple[str, int, int]]
    """Tag → NumPy type, number of values, offset of the first."""
    following: int
    """Offset of the next directory; 0 if there is none."""

    def values(self, tag: int) -> np.ndarray:
        """Read all values of a tag; empty if it is missing or not of an integer type."""
        kind, count, place = self.entries.get(tag, ("u1", 0, 0))
        kind = self.order + kind
        if place + count * np.dtype(kind).itemsize > len(self.data):
            raise ValueError("it is cut off: a part of its header is missing")
        return np.frombuffer(self.data, kind, count, place)

    def value(self, tag: int, default: int = 0) -> int:
        """Read the first value of a tag."""
        values = self.values(tag)[:1].tolist()
        return int(values[0]) if values else default


def is_tiff(data: bytes) -> bool:
    """Check whether data begin as a TIFF or a BigTIFF does."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_directory(data: bytes) -> Directory:
    """Read the first directory; raises `ValueError` where data are cut off before its end."""
    order: Literal["<", ">"] = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    wide, of_count, of_entry = (8, 8, 20) if big else (4, 2, 12)

    def number(place: int, size: int) -> int:
        if not 0 <= place <= len(data) - size:
            raise ValueError("it is cut off: a part of its header is missing")
        return int.from_bytes(data[place : place + size], "little" if order == "<" else "big")

    first = number(8 if big else 4, wide)
    count = number(first, of_count)
    if count > MOST_ENTRIES:
        raise ValueError("its header is broken")
    entries: dict[int, tuple[str, int, int]] = {}
    for place in range(first + of_count, first + of_count + of_entry * count, of_entry):
        kind, values = _TYPES.get(number(place + 2, 2)), number(place + 4, wide)
        if kind:
            held = place + 4 + wide
            inside = values * int(kind[1]) <= wide
            entries.setdefault(number(place, 2), (kind, values, held if inside else number(held, wide)))
    return Directory(data, order, entries, number(first + of_count + of_entry * count, wide))


def exif_orientation(block: bytes) -> int:
    """Read the orientation, 1 to 8, from an EXIF block; 1 (upright) if it is missing or broken."""
    block = block.removeprefix(b"Exif\0\0")
    if not is_tiff(block):
        return 1
    try:
        orientation = read_directory(block + bytes(4)).value(ORIENTATION, 1)  # the next offset may be omitted
    except ValueError:
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def parts(directory: Directory, width: int, height: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Get offsets and sizes of the strips or tiles, and the pixels of each.

    Raises `ValueError` if any lie beyond the end of the file or overlap.
    """
    tiled = TILE_OFFSETS in directory.entries
    offsets = directory.values(TILE_OFFSETS if tiled else STRIP_OFFSETS).astype(np.float64)
    sizes = directory.values(TILE_COUNTS if tiled else STRIP_COUNTS).astype(np.float64)
    if not 0 < len(offsets) <= MOST_PARTS or len(offsets) != len(sizes):
        raise ValueError("its header is broken: it does not say where the pixels are")
    end = len(directory.data)
    if (offsets + sizes > end).any():
        raise ValueError("it is cut off: the last of its pixels are missing")
    if sizes.sum() > end:
        raise ValueError("its header is broken: parts of its pixels lie upon each other")
    if tiled:
        return offsets, sizes, directory.value(TILE_WIDTH) * directory.value(TILE_LENGTH)
    return offsets, sizes, width * min(directory.value(ROWS_PER_STRIP, height), height)
