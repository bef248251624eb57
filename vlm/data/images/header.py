"""Read an image's header before decoding: its size, depth, frames, orientation and decoding cost.

A small file can take an hour and a gigabyte to decode: a JPEG of ten thousand scans, a PNG that is almost empty. The
header bounds both, in time linear in the number of a file's parts.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from vlm.data.images import tiff
from vlm.data.images.png import MOST_PARTS, chunks
from vlm.data.images.tiff import exif_orientation

LARGEST_IMAGE = 50_000_000
"""Largest image, pixels: twice a large mammogram."""
LARGEST_DECODED = 200_000_000
"""Largest decoded image, bytes: 50 million pixels of four 8-bit channels, or of one 32-bit channel."""
MOST_SCANS = 64
"""Largest number of scans of a JPEG; a progressive one has about ten."""
LARGEST_SCANNED = 1_000_000_000
"""Largest pixels × scans of a JPEG: each scan covers the whole picture."""


class MultipleImages(ValueError):
    """Raised for a file of several pictures: silently reading the first would be a guess."""


@dataclass
class ImageHeader:
    """Header of an image."""

    width: int = 0
    height: int = 0
    channels: int = 1
    """Decoded channels: 4 for colour with alpha."""
    bits: int = 8
    """Bits of a channel."""
    frames: int = 1
    """Number of frames: 1, or 2 for any more."""
    scans: int = 1
    scanned: int = 0
    """Pixels that the scans cover; 0: those of the picture."""
    orientation: int = 1
    """EXIF orientation, 1 to 8; 1 if the decoder rotates the picture itself."""
    inverted: bool = False
    """True if low values are white and are decoded unchanged."""

    def check(self) -> "ImageHeader":
        """Raise `ValueError` for an empty image, or one that takes too long or too much memory."""
        if not self.width or not self.height:
            raise ValueError("it has no pixels")
        if self.width * self.height > LARGEST_IMAGE:
            raise ValueError(f"{self.width:,} x {self.height:,} pixels are more than {LARGEST_IMAGE:,}")
        decoded = self.width * self.height * self.channels * max(self.bits // 8, 1)
        if decoded > LARGEST_DECODED:
            raise ValueError(f"it unpacks to {decoded / 1e6:,.0f} MB, more than {LARGEST_DECODED / 1e6:,.0f}")
        if self.scans > MOST_SCANS or self.scans * (self.scanned or self.width * self.height) > LARGEST_SCANNED:
            raise ValueError(f"a JPEG of {self.scans:,} scans would take too long; save it again")
        return self


def read_header(data: bytes, kind: str) -> ImageHeader:
    """Read the header of an image of this kind (see `file_type`).

    Raises `ValueError` with the reason: broken, cut off, too large or too slow; `MultipleImages` for several.
    """
    readers = {"PNG": _png, "JPEG": _jpeg, "TIFF": _tiff, "BMP": _bmp, "WebP": _webp, "GIF": _gif, "PNM": _pnm}
    header = readers[kind](data).check()
    if header.frames > 1:
        which = ("pages", "page") if kind == "TIFF" else ("pictures", "picture")
        raise MultipleImages(f"a {kind} of several {which[0]}; export the {which[1]} to be read as a file of its own")
    return header


def _cut() -> ValueError:
    return ValueError("it is cut off: its end is missing")


def _too_many(what: str) -> ValueError:
    return ValueError(f"it has more than {MOST_PARTS:,} {what}")


def _big(data: bytes, place: int, size: int) -> int:
    return int.from_bytes(data[place : place + size], "big")


def _little(data: bytes, place: int, size: int, signed: bool = False) -> int:
    return int.from_bytes(data[place : place + size], "little", signed=signed)


# -------------------------------------------------------------------------------------------- PNG


def _png(data: bytes) -> ImageHeader:
    header, control = ImageHeader(), 0
    for number, (kind, place, size) in enumerate(chunks(data)):
        if (number == 0) != (kind == b"IHDR"):
            raise ValueError("its header is broken")
        if kind == b"IHDR":
            header.width, header.height = _big(data, place, 4), _big(data, place + 4, 4)
            header.bits, colour = data[place + 8], data[place + 9]
            header.channels = {0: 1, 2: 3, 3: 3, 4: 4, 6: 4}.get(colour, 4)
            header.check()  # before a million chunks are walked
        elif kind == b"tRNS" and header.channels == 3:
            header.channels = 4
        elif kind == b"eXIf":
            header.orientation = exif_orientation(data[place : place + size])
        control += kind == b"fcTL"
        if control > 1 or kind == b"fdAT":
            header.frames = 2
    return header


# ------------------------------------------------------------------------------------------- JPEG

_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of frame headers, which hold the size: baseline, progressive and the rest."""


def _segments(data: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield marker, offset and size of each segment from a start of image to its end."""
    place = start + 2
    for _ in range(MOST_PARTS):
        found = _NEXT_MARKER.search(data, place)
        if not found:
            raise _cut()
        marker, place = data[found.start() + 1], found.end()
        size = 0 if marker in (0x01, 0xD8, 0xD9) else _big(data, place, 2)
        if place + size > len(data):
            raise _cut()
        yield marker, place, size
        if marker == 0xD9:
            return
        place += size
    raise _too_many("segments")


def _jpeg(data: bytes) -> ImageHeader:
    header, end, seen = ImageHeader(scans=0), 0, False
    for marker, place, size in _segments(data, 0):
        if marker in _FRAMES and not header.width:
            header.height, header.width = _big(data, place + 3, 2), _big(data, place + 5, 2)
            header.channels = 1 if data[place + 7 : place + 8] == b"\x01" else 3
        elif marker == 0xDA:
            header.scans += 1
        elif marker == 0xE1 and not seen and data[place + 2 : place + 8] == b"Exif\0\0":
            header.orientation, seen = exif_orientation(data[place + 2 : place + size]), True
        end = place
    if not header.scans:
        raise ValueError("it has no pixels")
    header.frames += _has_another(data, end, header)
    return header


def _has_another(data: bytes, start: int, first: ImageHeader) -> bool:
    """Check whether a JPEG of the same size follows: a preview or gain map is smaller, a second picture is not."""
    for _ in range(16):
        start = data.find(b"\xff\xd8\xff", start)
        if start < 0:
            return False
        try:
            for marker, place, _ in _segments(data, start):
                if marker in _FRAMES:
                    if (_big(data, place + 3, 2), _big(data, place + 5, 2)) == (first.height, first.width):
                        return True
                    break
        except ValueError:  # what follows an image may be anything
            return False
        start += 2
    return False


# ------------------------------------------------------------------------------------------- TIFF


def _tiff(data: bytes) -> ImageHeader:
    directory = tiff.read_directory(data)
    width, height = directory.value(tiff.WIDTH), directory.value(tiff.LENGTH)
    bits, samples = directory.value(tiff.BITS, 1), directory.value(tiff.SAMPLES, 1)
    photometric = directory.value(tiff.PHOTOMETRIC, 1)
    header = ImageHeader(width, height, samples if bits > 8 else 4, bits)
    header.check()
    header.frames += directory.following > 0
    if tiff.DNG_VERSION in directory.entries or directory.value(tiff.NEW_SUBFILE) & 1:
        raise ValueError("it seems to be a camera's raw file, with a preview in front; export the picture")
    if photometric not in tiff.SUPPORTED_PHOTOMETRIC:
        raise ValueError("its colours are neither grey, RGB, CMYK, YCbCr nor a palette; save it as RGB")
    compression = directory.value(tiff.COMPRESSION, 1)
    if compression in tiff.UNSUPPORTED:
        raise ValueError(f"a TIFF compressed by {tiff.UNSUPPORTED[compression]}; save it with LZW or uncompressed")
    if samples == 2 and bits > 8:
        raise ValueError(f"a grey TIFF of {bits} bits with a second channel; save it without that channel")
    offsets, sizes, pixels = tiff.parts(directory, width, height)
    if pixels * header.channels * max(bits // 8, 1) > LARGEST_DECODED:
        raise ValueError("its header is broken: its strips or tiles are too large")
    if compression in tiff.JPEG:
        places = zip(offsets.astype(int), sizes.astype(int), strict=True)
        header.scans = max(data.count(b"\xff\xda", place, place + size) for place, size in places)
        header.scanned = pixels * len(sizes)
    header.inverted = photometric == tiff.WHITE_IS_ZERO and bits > 8  # up to 8 bits are decoded as they are shown
    return header


# ------------------------------------------------------------------------------- BMP, WebP, GIF, PNM


def _bmp(data: bytes) -> ImageHeader:
    if _little(data, 14, 4) == 12:
        return ImageHeader(_little(data, 18, 2), _little(data, 20, 2), 3)
    return ImageHeader(abs(_little(data, 18, 4, True)), abs(_little(data, 22, 4, True)), 4)


def _webp(data: bytes) -> ImageHeader:
    header, place, end, frames = ImageHeader(channels=4), 12, 8 + _little(data, 4, 4), 0
    if end > len(data):
        raise _cut()
    for _ in range(MOST_PARTS):
        if place + 8 > end:
            header.frames = max(frames, 1)
            return header
        kind, size, place = data[place : place + 4], _little(data, place + 4, 4), place + 8
        if place + size > len(data):
            raise _cut()
        if kind == b"VP8X":
            header.width, header.height = _little(data, place + 4, 3) + 1, _little(data, place + 7, 3) + 1
        elif kind == b"VP8 " and not header.width:
            header.width, header.height = _little(data, place + 6, 2) & 0x3FFF, _little(data, place + 8, 2) & 0x3FFF
        elif kind == b"VP8L" and not header.width:
            packed = _little(data, place + 1, 4)
            header.width, header.height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
        elif kind == b"EXIF":
            header.orientation = exif_orientation(data[place : place + size])
        frames += kind == b"ANMF"
        place += size + size % 2
    raise _too_many("chunks")


def _gif(data: bytes) -> ImageHeader:
    header = ImageHeader(_little(data, 6, 2), _little(data, 8, 2), 4, frames=0)
    place = 13 + _colours(data[10:11])
    for _ in range(MOST_PARTS):
        block = data[place : place + 1]
        if block == b",":
            header.frames += 1
            place = _after_blocks(data, place + 11 + _colours(data[place + 9 : place + 10]))
        elif block == b"!":
            place = _after_blocks(data, place + 2)
        elif header.frames:  # the trailer, which some writers omit
            return header
        else:
            raise _cut()
        if header.frames > 1:
            return header
    raise _too_many("blocks")


def _colours(flags: bytes) -> int:
    """Get the size of a colour table, bytes."""
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _after_blocks(data: bytes, place: int) -> int:
    """Skip a chain of length-prefixed blocks and return the offset after it."""
    for _ in range(MOST_PARTS):
        if place >= len(data):
            raise _cut()
        size = data[place]
        place += 1 + size
        if not size:
            return place
    raise _too_many("blocks")


def _pnm(data: bytes) -> ImageHeader:
    comment = rb"(?:\s|#[^\n]*\n)+"
    found = re.match(rb"P([1-6])" + comment + rb"(\d{1,9})" + comment + rb"(\d{1,9})", data[:4096])
    if not found:
        raise ValueError("its header is broken")
    return ImageHeader(int(found[2]), int(found[3]), 3 if found[1] in b"36" else 1, 16)
