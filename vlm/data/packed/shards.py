"""Read images from shards: each shard is fetched once, as a whole, checked, and cached until all images were read.

A cell refers to its image as `row://17::ADDRESS`, or to one of several as `row://17/2::ADDRESS`, in the manner of
fsspec's chained addresses. Reading the rows of a
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
from vlm.data.packed.manifest import ONE_IMAGE, Pack, Shard, open_address, read_pack
from vlm.errors import UserError

SCHEME = "row://"
_REFERENCE = re.compile(r"row://(\d+)(?:/(\d+))?::(.+)", re.DOTALL)
ENCODINGS = {"PLAIN", "RLE", "BIT_PACKED"}
"""Allowed encodings of columns and their levels; others could repeat a long text in every row."""
NUMBERS = {0, 3, 4}
"""Allowed encodings as numbers in a page header."""
CAPACITY = 2 << 30
"""Capacity of the shard cache, bytes; more than 16 interleaved shards take. A fully read shard is evicted first."""


def is_packed(path: str) -> bool:
    """Check whether an image cell's path refers to a row of a shard."""
    return path.startswith(SCHEME)


def image_reference(address: str, row: int, place: int = 0) -> str:
    """Refer to an image of a shard's row."""
    return f"{SCHEME}{row}/{place}::{address}" if place else f"{SCHEME}{row}::{address}"


def shard_addresses(paths: pa.StringArray) -> pa.StringArray:
    """Get the shard of each of N image paths; the path itself if it is in none."""
    return pc.replace_substring_regex(paths, rf"^{SCHEME}\d+(/\d+)?::", "")


def read_packed(reference: str, color: bool = False) -> np.ndarray:
    """Decode the image in a row of a shard (see `decode_image`); raises `UserError` that names both."""
    return decode_image(*packed_bytes(reference), color)


def packed_bytes(reference: str) -> tuple[bytes, str]:
    """Read the bytes of the image in a row of a shard, and its name for messages."""
    match = _REFERENCE.fullmatch(reference)
    assert match, reference
    row, place, address = int(match[1]), int(match[2] or 0), match[3]
    return _cached.image(address, row, place), f"{address}: row {row}"


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
    starts: np.ndarray
    """First image of each row, N + 1."""
    unread: set[int]
    """Images that were not read yet."""


class ShardCache:
    """LRU cache of open shards; a fully read shard is evicted at once."""

    def __init__(self, most: int = CAPACITY) -> None:
        self.most = most
        self._shards: OrderedDict[str, _OpenShard] = OrderedDict()

    def image(self, address: str, row: int, place: int = 0) -> bytes:
        """Read an image file as it was packed; raises `UserError` for a shard that is not what was written."""
        shard = self._shards.pop(address, None) or _fetch(address)
        there = row < len(shard.starts) - 1 and place < shard.starts[row + 1] - shard.starts[row]
        number = int(shard.starts[row]) + place if there else -1
        data = shard.images[number].as_py() if there else None
        if data is None:
            raise UserError(f"{address}: row {row} has no image")
        shard.unread.discard(number)
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
            name = "image" if pack.format == ONE_IMAGE else "images"
            images = parquet.read(columns=[name], use_threads=False)[name].combine_chunks()
    starts = np.arange(len(images) + 1)
    if pack.format != ONE_IMAGE:
        starts = np.concatenate([[0], np.cumsum(pc.list_value_length(images).to_numpy(zero_copy_only=False))])
        images = pc.struct_field(images.flatten(), "image")
    files = pc.struct_field(images, "bytes")
    return _OpenShard(files, starts, set(np.flatnonzero(files.is_valid().to_numpy(zero_copy_only=False)).tolist()))
