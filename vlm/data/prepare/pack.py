"""`clinical-vlm pack`: any cohort into shards, each written as a whole, in constant memory."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vlm.atomic import staged, write_file
from vlm.config import DataConfig, SourceConfig
from vlm.data.cohort import Cohort
from vlm.data.images.file_types import kind_of
from vlm.data.images.image import decode_image, shows_nothing
from vlm.data.images.store import read_source
from vlm.data.ingest.sources import load_cohort
from vlm.data.packed.manifest import FILE, Pack, Shard, shard_name
from vlm.data.packed.shards import is_packed
from vlm.data.splits import SPLITS
from vlm.errors import UserError
from vlm.locks import locked

LARGEST = 64 << 20
"""Bytes of images after which a shard ends, whatever its rows: a process holds several shards at once."""
AT_ONCE = 8
"""Images read and decoded at the same time."""


@dataclass(frozen=True)
class PackOptions:
    """How a pack is written."""

    rows: int = 512
    """Rows of a shard, at most."""
    image_side: int = 0
    """Longest side of a stored image, pixels; 0: the file as it is."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise UserError(f"--rows_per_shard: at least 1, not {self.rows}")
        if self.image_side and not 32 <= self.image_side <= 16_384:
            raise UserError(f"--image_side: 32 to 16,384 pixels, not {self.image_side}")


def pack(data: DataConfig, output: Path, options: PackOptions) -> list[str]:
    """Write the cohort of `data` to the folder `output`, which is there as a whole or not at all.

    `data.finding_labels` are left out: they are read from the reports, which are packed. Returns what to tell the
    user. Raises `UserError` that names an unreadable image, and for a folder that holds anything.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there already and not empty; name another folder or delete it")
    cohort = load_cohort(replace(data, finding_labels=[]))
    with locked(output), staged(output, sealed=False) as folder:
        writer = _Writer(folder, options, _describe(cohort, data, options))
        with tqdm(total=len(cohort.dataset), desc="packing", unit="case") as progress:
            for seed, split in enumerate(SPLITS):
                writer.write_split(split, _shuffled(cohort.split(split), seed), progress)
        whole = replace(writer.pack, shards=writer.shards)
        write_file(folder / FILE, whole.to_json())
    return [cohort.describe(), *(f"warning: {warning}" for warning in whole.warnings), *writer.notices(output)]


def _shuffled(rows: datasets.Dataset, seed: int) -> datasets.Dataset:
    """In an order of chance, so that one shard is as good a sample of the split as another."""
    return rows.select(np.random.default_rng(seed).permutation(len(rows)))


def _describe(cohort: Cohort, data: DataConfig, options: PackOptions) -> Pack:
    """The pack before its first shard. Its warnings name files by their place in the folders of the data."""
    warnings = list(cohort.warnings)
    sources: list[DataConfig | SourceConfig] = [data, *data.sources]
    for source in sources:
        for folder in filter(None, (source.root, source.mimic_cxr.reports, source.mimic_cxr.ed)):
            warnings = [warning.replace(f"{Path(folder)}{os.sep}", "") for warning in warnings]
    facts = cohort.facts.name if cohort.facts else ""
    return Pack(cohort.schema, cohort.labels, cohort.sections, dict(cohort.label_findings), facts, options.image_side,
                cohort.fingerprint, tuple(warnings), {})  # fmt: skip


class _Writer:
    """Writes shard after shard, and holds no more than one."""

    def __init__(self, folder: Path, options: PackOptions, pack: Pack) -> None:
        self.folder, self.options, self.pack = folder, options, pack
        self.shards: dict[str, Shard] = {}
        self.dicom = self.blank = 0

    def write_split(self, split: str, rows: datasets.Dataset, progress: tqdm) -> None:
        """The shards of one split; they have their names when it is known how many they are."""
        shards = [self._write(table, f"{split}-{number}") for number, table in enumerate(self._tables(rows, progress))]
        for number, shard in enumerate(shards):
            name = shard_name(split, number, len(shards))
            os.rename(self.folder / f"{split}-{number}", self.folder / name)
            self.shards[name] = shard

    def _tables(self, rows: datasets.Dataset, progress: tqdm) -> Iterator[pa.Table]:
        """The rows of each shard with their images: as many rows in each, where the images are not too large."""
        count = -(-len(rows) // self.options.rows)
        most = -(-len(rows) // max(count, 1))
        start, size = 0, 0
        images: list[bytes | None] = []
        for image in self._images(rows.select_columns(["image"])):
            images.append(image)
            size += len(image or b"")
            progress.update()
            if len(images) == most or size >= LARGEST or start + len(images) == len(rows):
                yield self._table(rows.select(range(start, start + len(images))), images)
                start, size, images = start + len(images), 0, []

    def _images(self, rows: datasets.Dataset) -> Iterator[bytes | None]:
        with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
            for some in rows.iter(AT_ONCE):
                for image, dicom, blank in pool.map(partial(_image, side=self.options.image_side), some["image"]):
                    self.dicom += dicom
                    self.blank += blank
                    yield image

    def _table(self, rows: datasets.Dataset, images: Sequence[bytes | None]) -> pa.Table:
        """Every column as it is; of an image its bytes alone, since a file's name may be a patient's."""
        schema = self.pack.features.arrow_schema
        table = rows.with_format("arrow")[:]
        cells = [None if image is None else {"bytes": image, "path": None} for image in images]
        embedded = pa.array(cells, schema.field("image").type)
        return pa.table([embedded if name == "image" else table[name] for name in schema.names], schema=schema)

    def _write(self, table: pa.Table, name: str) -> Shard:
        """One row group, so that all columns but the image are one piece; nothing folded, as images are already."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=len(table), compression="none", use_dictionary=False,
                       write_page_checksum=True)  # fmt: skip
        data = sink.getvalue()
        write_file(self.folder / name, data)
        return Shard(len(table), data.size, hashlib.sha256(data).hexdigest())

    def notices(self, output: Path) -> list[str]:
        """What was written, and what travels with it."""
        size = sum(shard.size for shard in self.shards.values())
        lines = [f"packed: {output}, {len(self.shards)} shards of {size / 2**20:,.1f} MiB in all; "
                 f"train on it with --data.source packed --data.root {output}"]  # fmt: skip
        if not self.options.image_side:
            dicom = f"; {self.dicom:,} are DICOM, with the names and dates of their headers" if self.dicom else ""
            lines.append(f"images: the files as they were, with all that they say of a patient{dicom}. "
                         "--image_side 1024 stores their pixels alone")  # fmt: skip
        if self.blank:
            lines.append(f"warning: {self.blank:,} images show one grey value alone and count as no image")
        return [*lines, "reports and ids are in the shards too: keep them as the data they were made of"]


def _image(cell: dict[str, Any] | None, side: int) -> tuple[bytes | None, bool, bool]:
    """What is stored of an image, whether it is DICOM, and whether it is blank.

    It is decoded in any case: who trains can mend no file.
    """
    if cell is None:
        return None, False, False
    path = cell["path"]
    if is_packed(path):
        raise UserError("data.source: packed: shards are not packed again; pack the source that they were made of")
    data, where = read_source(path)
    image = decode_image(data, where)
    blank = shows_nothing(image)
    return (reduced(image, side), False, blank) if side else (data, kind_of(data) == "DICOM", blank)


def reduced(image: np.ndarray, side: int) -> bytes:
    """A grey PNG of an H × W image, its longest side at most `side`.

    Whole numbers up to 65,535 stay what they are; any others are spread over 16 bits, which the contrast stretch of
    `to_square` undoes. PNG has no value for what is not there: it becomes the darkest that is.
    """
    there = np.isfinite(image)
    low, high = (float(image[there].min()), float(image[there].max())) if there.any() else (0.0, 0.0)
    image = np.where(there, image, np.float32(low))
    whole = low >= 0 and high <= 65_535 and bool((image == np.round(image)).all())
    if not whole:
        image = (image - low) * (65_535 / max(high - low, 1e-6))
    ratio = side / max(image.shape)
    if ratio < 1:
        height, width = (max(1, round(length * ratio)) for length in image.shape)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    depth = np.uint8 if whole and high <= 255 else np.uint16
    _, data = cv2.imencode(".png", np.round(image).astype(depth))
    return data.tobytes()
