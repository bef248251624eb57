"""Image files made by hand: TIFFs of any kind of number, JPEGs of many scans, PNGs that hold almost nothing."""

import io
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: np.ndarray, photometric: int | None = None, big: bool = False, order: str = "<",
         more: Sequence[tuple[int, int, list[int]]] = ()) -> bytes:  # fmt: skip
    """A TIFF of one strip; `more` are further tags as (tag, type 3 or 4, values)."""
    height, width, samples = (*pixels.shape, 1)[:3]
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[pixels.dtype.kind]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data += b"\0" * (len(data) % 2)
    start = 16 if big else 8
    given = {tag for tag, _, _ in more}
    tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, [pixels.dtype.itemsize * 8] * samples), (259, 3, [1]),
            (262, 3, [photometric if photometric is not None else 2 if samples > 2 else 1]), (273, 4, [start]),
            (277, 3, [samples]), (278, 4, [height]), (279, 4, [pixels.nbytes]), (339, 3, [kind] * samples)]  # fmt: skip
    tags = sorted([tag for tag in tags if tag[0] not in given] + list(more))
    wide = "Q" if big else "I"
    place = start + len(data)
    size = (8 + 20 * len(tags) + 8) if big else (2 + 12 * len(tags) + 4)
    body, behind = struct.pack(order + ("Q" if big else "H"), len(tags)), b""
    for tag, form, values in tags:
        raw = struct.pack(f"{order}{len(values)}{'HI'[form == 4]}", *values)
        if len(raw) > struct.calcsize(order + wide):
            held, behind = struct.pack(order + wide, place + size + len(behind)), behind + raw
        else:
            held = raw.ljust(struct.calcsize(order + wide), b"\0")
        body += struct.pack(f"{order}HH{wide}", tag, form, len(values)) + held
    body += struct.pack(order + wide, 0)
    mark = b"II" if order == "<" else b"MM"
    head = struct.pack(order + "HHHQ", 43, 8, 0, place) if big else struct.pack(order + "HI", 42, place)
    return mark + head + data + body + behind


def exif(orientation: int) -> bytes:
    """An EXIF block that says how the picture is turned."""
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 0x0112, 3, 1, orientation, 0, 0)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk with its checksum."""
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def empty_png(width: int, height: int, bits: int, colour: int, interlace: int = 0) -> bytes:
    """A PNG of zeros in which a gigabyte takes a megabyte; `colour` as the standard counts: 0 grey, 2 RGB, 6 RGBA."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    packer = zlib.compressobj(9)
    row = bytes(1 + width * channels * bits // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, colour, 0, 0, interlace])
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    small = np.random.default_rng(0).integers(0, 256, (height // 16 + 1, width // 16 + 1), dtype=np.uint8)
    whole = saved(Image.fromarray(small).resize((width, height)), "JPEG", progressive=True, quality=90)
    places = [found.start() for found in re.finditer(rb"\xff\xda", whole)]
    return whole[:-2] + whole[places[-1] : -2] * (scans - len(places)) + b"\xff\xd9"
