"""Parse the chunks of a PNG without decoding pixels, and drop those that are not part of the picture."""

from collections.abc import Iterator

MOST_PARTS = 1_000_000
"""Largest number of chunks, segments or blocks to read from a file."""
_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PACKED = (b"zTXt", b"iTXt", b"iCCP")
"""Chunks that may decompress to megabytes each: a thousand of them in 8 MB take a decoder minutes."""


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, offset and size of each chunk up to the last; raises `ValueError` for a file without it."""
    place = 8
    for _ in range(MOST_PARTS):
        size, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if place + 12 + size > len(data):
            raise ValueError("it is cut off: its end is missing")
        yield kind, place + 8, size
        if kind == b"IEND":
            return
        place += 12 + size
    raise ValueError(f"it has more than {MOST_PARTS:,} chunks")


def strip_metadata(data: bytes) -> bytes:
    """Remove a PNG's texts and profiles if any of them is compressed; else return it unchanged."""
    if not any(kind in _PACKED for kind, _, _ in chunks(data)):
        return data
    kept = (data[place - 8 : place + size + 4] for kind, place, size in chunks(data) if kind in _PICTURE)
    return b"".join([data[:8], *kept])
