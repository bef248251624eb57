"""Walk through the chunks of a PNG without decoding a pixel, and leave out those that are no part of the picture."""

from collections.abc import Iterator

MOST_PARTS = 1_000_000
"""Chunks, segments or blocks of a file that are looked at."""
_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_PACKED = (b"zTXt", b"iTXt", b"iCCP")
"""Chunks that unpack to megabytes each: a thousand of them in 8 MB keep a decoder busy for minutes."""


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, place and size of each chunk up to the last; raises `ValueError` for a file without it."""
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


def picture_alone(data: bytes) -> bytes:
    """A PNG without its texts and profiles where any of them is packed; else as it is."""
    if not any(kind in _PACKED for kind, _, _ in chunks(data)):
        return data
    kept = (data[place - 8 : place + size + 4] for kind, place, size in chunks(data) if kind in _PICTURE)
    return b"".join([data[:8], *kept])
