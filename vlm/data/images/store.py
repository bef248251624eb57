"""Copy images from Parquet tables, in row order, to a file on disk for random access.

Parquet reads a row only with those before it, so images for training are copied once to a private temporary file. A
cohort refers to them as `embedded://SHA256/START+SIZE@FILE::WHERE`; WHERE is the row, for messages.
"""

import hashlib
import re
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlm.atomic import open_private
from vlm.data.embedded import EmbeddedImage
from vlm.data.images.image import LARGEST_FILE, read_file
from vlm.data.images.parquet_file import batch_size, open_parquet
from vlm.data.storage import new_path
from vlm.errors import UserError

EMBEDDED_REFERENCE = r"(?s)^(embedded://[0-9a-f]{64})/.*"
"""Pattern of an embedded image's reference; its group identifies the content."""
CACHED_BATCHES = 4
"""Number of cached row batches, so that threads may read rows in nearly their order."""
_REFERENCE = re.compile(r"embedded://([0-9a-f]{64})/(\d+)\+(\d+)@(.+?)::(.*)", re.DOTALL)


class EmbeddedReader:
    """Reader of images in Parquet files, fast for rows in order. It is thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._path = self._column = ""
        self._group, self._next = 0, 0
        """Current row group, and the next row of the file."""
        self._cached: deque[tuple[int, pa.Array]] = deque(maxlen=CACHED_BATCHES)

    def __reduce__(self) -> tuple[type["EmbeddedReader"], tuple[()]]:
        return EmbeddedReader, ()  # each process opens its own files

    def read(self, image: EmbeddedImage, where: str) -> bytes:
        """Read the bytes of an image; raises `UserError` that begins with `where`."""
        if not image.size:
            raise UserError(f"{where}: the image has a name and 0 bytes; leave both away where there is none")
        if image.size > LARGEST_FILE:
            raise UserError(f"{where}: the image is larger than {LARGEST_FILE >> 20} MiB")
        try:
            with self._lock:
                data = self._cell(image)
        except (OSError, LookupError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{where}: cannot read the image: {type(error).__name__}") from None
        if data is None or len(data) != image.size:
            raise UserError(f"{where}: the table changed while it was read")
        return data

    def _cell(self, image: EmbeddedImage) -> bytes | None:
        if self._path != image.file:
            self._file, self._path, self._column = open_parquet(Path(image.file)), image.file, ""
            groups = range(self._file.metadata.num_row_groups)
            self._ends = np.cumsum([self._file.metadata.row_group(group).num_rows for group in groups])
        group = int(np.searchsorted(self._ends, image.row, side="right"))
        if group == len(self._ends):
            return None
        first = self._cached[0][0] if self._cached else self._next
        if (self._column, self._group) != (image.column, group) or image.row < first:
            self._start(image.column, group)
        while self._next <= image.row:
            batch = next(self._batches, None)
            if batch is None:
                return None
            cells = batch.column(0)
            self._cached.append(
                (self._next, pc.struct_field(cells, "bytes") if pa.types.is_struct(cells.type) else cells)
            )
            self._next += len(cells)
        cells, start = next((cells, start) for start, cells in reversed(self._cached) if start <= image.row)
        return cells[image.row - start].as_py()

    def _start(self, column: str, group: int) -> None:
        """Start reading at the first row of a row group."""
        rows = batch_size(self._file.metadata, 1, 1000)
        self._batches = self._file.iter_batches(batch_size=rows, row_groups=[group], columns=[column])
        self._column, self._group, self._next = column, group, int(self._ends[group - 1]) if group else 0
        self._cached.clear()


class ImageStore:
    """Temporary file of images copied from Parquet tables, each content once."""

    def __init__(self) -> None:
        self._reader = EmbeddedReader()
        self._places: dict[str, str] = {}
        self._size = 0

    def keep(self, image: EmbeddedImage, where: str) -> str:
        """Copy an image and return its reference; raises `UserError`, which begins with `where`."""
        data = self._reader.read(image, where)
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._places:
            if not self._size:
                self._path = new_path(".images")
            try:
                with open_private(self._path, "ab") as file:
                    file.write(data)
            except OSError as error:
                folder = self._path.parent
                raise UserError(f"{folder}: cannot keep the images there: {error.strerror}; set TMPDIR") from None
            self._places[digest] = f"embedded://{digest}/{self._size}+{len(data)}@{self._path}"
            self._size += len(data)
        return f"{self._places[digest]}::{row_label(image, where)}"


def row_label(image: EmbeddedImage, where: str) -> str:
    """Format a row and its image's name, if it has one: `cases.parquet: row 2: scan.png`."""
    name = re.split(r"[/\\]", image.name)[-1][-100:]
    return f"{where}: {name}" if name and name.isprintable() else where


def read_image_bytes(path: str, most: int = -1) -> tuple[bytes, str]:
    """Read the bytes of an image, or the first `most`, from a file or the store, and its name for messages."""
    stored = _REFERENCE.fullmatch(path)
    if not stored:
        return read_file(Path(path), most), path
    _, start, size, file, where = stored.groups()
    with open(file, "rb") as images:
        images.seek(int(start))
        return images.read(int(size) if most < 0 else min(int(size), most)), where


def digest_of(path: str) -> str:
    """Get the SHA-256 of an image in the store; empty for an image file."""
    stored = _REFERENCE.fullmatch(path)
    return stored[1] if stored else ""


def image_label(path: str) -> str:
    """Name the image of a cell for messages."""
    stored = _REFERENCE.fullmatch(path)
    return stored[5] if stored else path
