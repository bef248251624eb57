"""Read images from shards: each shard is fetched once, as a whole, checked, and cached until all images were read.

A cell refers to its image as `row://17::ADDRESS`, in the manner of fsspec's chained addresses. Reading the rows of a
shard close together (see `vlm.data.sampling`) fetches it once.
"""

import hashlib
import io
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm.data.images.image import decode_image
from vlm.data.images.parquet_pages import DICTIONARY, PageHeaders
from vlm.data.packed.manifest import Pack, Shard, open_address, read_pack
from vlm.errors import UserError

SCHEME = "row://"
_REFERENCE = re.compile(r"row://(\d+)::(.+)", re.DOTALL)
ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED"}
"""Allowed encodings of columns and their levels; others could repeat a long text in every row."""
NUMBERS = {0, 3, 4}
"""Allowed encodings as numbers in a page header."""
CAPACITY = 2 << 30
"""Capacity of the shard cache, bytes; more than 16 interleaved shards take. A fully read shard is evicted first."""


def is_packed(path: str) -> bool:
    """Check whether an image cell's path refers to a row of a shard."""
    return path.startswith(SCHEME)


def image_references(there: pa.BooleanArray, address: str) -> pa.StructArray:
    """Build the image cells of a shard's N rows; `there` marks rows with an image."""
    paths = pa.array([f"{SCHEME}{row}::{address}" for row in range(len(there))])
    nothing = pa.nulls(len(there), pa.binary())
    return pa.StructArray.from_arrays([nothing, paths], names=["bytes", "path"], mask=pc.invert(there))


def shard_addresses(cells: pa.StructArray) -> pa.StringArray:
    """Get the shard of each of N image cells; the file path if it is in none, null if there is no image."""
    paths = pc.struct_field(cells, "path")  # of a null cell: null
    return pc.replace_substring_regex(paths, rf"^{SCHEME}\d+::", "")


def read_packed(reference: str) -> np.ndarray:
    """Decode the image in a row of a shard (see `decode_image`); raises `UserError` that names both."""
    match = _REFERENCE.fullmatch(reference)
    assert match, reference
    row, address = int(match[1]), match[2]
    return decode_image(_cached.image(address, row), f"{address}: row {row}")


def check_columns(
    file: pq.ParquetFile, read: BinaryIO, address: str, pack: Pack, shard: Shard, skipped: str = ""
) -> None:
    """Raise `UserError` unless a Parquet file has the layout we write, so that nothing in it can expand.

    Page headers are checked too, except for the column `skipped`, since the footer may lie.
    """
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    same = file.schema_arrow.remove_metadata().equals(pack.features.arrow_schema.remove_metadata())
    folded = any(
        chunk.has_dictionary_page or chunk.compression != "UNCOMPRESSED" or not set(chunk.encodings) <= ENCODINGS
        for chunk in chunks
    )
    headers = PageHeaders(read, shard.size)
    try:
        pages = [headers.read(chunk) for chunk in chunks if chunk.path_in_schema != skipped]
        folded = folded or any(page.types & {DICTIONARY} or not page.encodings <= NUMBERS for page in pages)
    except ValueError:
        folded = True
    if not same or folded or file.metadata.num_rows != shard.rows:
        raise UserError(f"{address}: not the shard that pack.json describes: other columns, rows or encoding")


@dataclass
class _OpenShard:
    images: pa.BinaryArray
    unread: set[int]
    """Rows whose image was not read yet."""


class ShardCache:
    """LRU cache of open shards; a fully read shard is evicted at once."""

    def __init__(self, most: int = CAPACITY) -> None:
        self.most = most
        self._shards: OrderedDict[str, _OpenShard] = OrderedDict()

    def image(self, address: str, row: int) -> bytes:
        """Read an image file as it was packed; raises `UserError` for a shard that is not what was written."""
        shard = self._shards.pop(address, None) or _fetch(address)
        data = shard.images[row].as_py() if row < len(shard.images) else None
        if data is None:
            raise UserError(f"{address}: row {row} has no image")
        shard.unread.discard(row)
        if shard.unread:
            self._shards[address] = shard
        while len(self._shards) > 1 and sum(held.images.nbytes for held in self._shards.values()) > self.most:
            self._shards.popitem(last=False)
        return data


_cached = ShardCache()


def _fetch(address: str) -> _OpenShard:
    """Read a whole shard and keep its images."""
    root, _, name = address.rpartition("/")
    pack = read_pack(root)
    shard = pack.shards[name]
    with open_address(address) as file:
        data = file.read(shard.size + 1)
        if len(data) != shard.size:
            raise UserError(f"{address}: damaged: not the {shard.size} bytes that were packed")
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            raise UserError(f"{address}: damaged: its SHA-256 is not that of what was packed")
        with pq.ParquetFile(pa.BufferReader(data)) as parquet:
            check_columns(parquet, io.BytesIO(data), address, pack, shard)
            images = parquet.read(columns=["image"], use_threads=False)["image"].combine_chunks()
    files = pc.struct_field(images, "bytes")
    return _OpenShard(files, set(np.flatnonzero(files.is_valid().to_numpy(zero_copy_only=False)).tolist()))
