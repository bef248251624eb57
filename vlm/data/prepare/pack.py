"""Write any cohort as shards in constant memory (`clinical-vlm pack`); each shard is written whole."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlm.atomic import staged, write_file
from vlm.config import DataConfig, SourceConfig
from vlm.data.cohort import Cohort
from vlm.data.images.color import bgr
from vlm.data.images.file_types import file_type
from vlm.data.images.image import decode_image, shows_nothing
from vlm.data.images.store import read_image_bytes
from vlm.data.ingest.sources import load_cohort
from vlm.data.packed.manifest import FILE, ONE_IMAGE, STUDIES, Pack, Shard, shard_name
from vlm.data.packed.shards import is_packed
from vlm.data.splits import SPLITS
from vlm.data.storage import column
from vlm.data.study import Cell, flat_images
from vlm.errors import UserError
from vlm.locks import locked
from vlm.progress import Counter, counting

LARGEST = 64 << 20
"""Bytes of images after which a shard ends, whatever its rows: a process keeps several shards in memory."""
AT_ONCE = 8
"""Images read and decoded concurrently."""


@dataclass(frozen=True)
class PackOptions:
    """Options of a pack."""

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
    """Write the cohort of `data` to the folder `output` atomically.

    `data.finding_labels` are left out: they are read from the reports, which are packed. Returns messages for the
    user. Raises `UserError` that names an unreadable image, and for a folder that is not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there already and not empty; name another folder or delete it")
    cohort = load_cohort(replace(data, finding_labels=[]))
    with locked(output), staged(output, manifest=False) as folder:
        writer = _Writer(folder, options, _describe(cohort, data, options), data.color != "grey")
        with counting("packing", len(cohort.dataset)) as counter:
            for seed, split in enumerate(SPLITS):
                rows = cohort.split(split)  # shuffled, so that each shard is a random sample of it
                order = np.random.default_rng(seed).permutation(len(rows))
                writer.write_split(split, rows.select(order), counter)
        whole = replace(writer.pack, shards=writer.shards)
        write_file(folder / FILE, whole.to_json())
    return [cohort.describe(), *(f"warning: {warning}" for warning in whole.warnings), *writer.notices(output)]


def _describe(cohort: Cohort, data: DataConfig, options: PackOptions) -> Pack:
    """Build the pack's metadata without shards; its warnings name files relative to the data folders."""
    warnings = list(cohort.warnings)
    sources: list[DataConfig | SourceConfig] = [data, *data.sources]
    for source in sources:
        for folder in filter(None, (source.root, source.mimic_cxr.reports, source.mimic_cxr.ed)):
            warnings = [warning.replace(f"{Path(folder)}{os.sep}", "") for warning in warnings]
    facts = cohort.facts.name if cohort.facts else ""
    return Pack(cohort.schema, cohort.labels, cohort.sections, dict(cohort.label_findings), facts, options.image_side,
                cohort.fingerprint, tuple(warnings), {}, _format(cohort.dataset), cohort.signal)  # fmt: skip


def _format(rows: datasets.Dataset) -> int:
    """Choose the format: the earlier one where every case has one image without a role, and no prior report."""
    images = flat_images(rows)
    plain = images.counts.max(initial=0) <= 1 and not images.prior.any() and not (images.views != "").any()
    return ONE_IMAGE if plain and not any(column(rows, "prior_report").to_pylist()) else STUDIES


class _Writer:
    """Write shards one by one, with at most one in memory."""

    def __init__(self, folder: Path, options: PackOptions, pack: Pack, color: bool) -> None:
        self.folder, self.options, self.pack, self.color = folder, options, pack, color
        self.shards: dict[str, Shard] = {}
        self.dicom = self.blank = 0

    def write_split(self, split: str, rows: datasets.Dataset, counter: Counter) -> None:
        """Write the shards of one split; they are renamed at the end, when their number is known."""
        shards = [self._write(table, f"{split}-{number}") for number, table in enumerate(self._tables(rows, counter))]
        for number, shard in enumerate(shards):
            name = shard_name(split, number, len(shards))
            os.rename(self.folder / f"{split}-{number}", self.folder / name)
            self.shards[name] = shard

    def _tables(self, rows: datasets.Dataset, counter: Counter) -> Iterator[pa.Table]:
        """Yield the rows of each shard with their images: equal row counts, fewer if the images are too large."""
        count = -(-len(rows) // self.options.rows)
        most = -(-len(rows) // max(count, 1))
        start, size = 0, 0
        images: list[list[bytes]] = []
        for of_case in self._images(rows.select_columns(["images"])):
            images.append(of_case)
            size += sum(map(len, of_case))
            counter.update()
            if len(images) == most or size >= LARGEST or start + len(images) == len(rows):
                yield self._table(rows.select(range(start, start + len(images))), images)
                start, size, images = start + len(images), 0, []

    def _images(self, rows: datasets.Dataset) -> Iterator[list[bytes]]:
        """Yield the images of each row."""
        with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
            for some in rows.iter(AT_ONCE):
                cells = (cell for of_case in some["images"] for cell in of_case)
                read = pool.map(partial(_image, side=self.options.image_side, color=self.color), cells)
                for of_case in some["images"]:
                    found = list(islice(read, len(of_case)))
                    self.dicom += sum(dicom for _, dicom, _ in found)
                    self.blank += sum(blank for _, _, blank in found)
                    yield [image for image, _, _ in found]

    def _table(self, rows: datasets.Dataset, images: Sequence[list[bytes]]) -> pa.Table:
        """Build the table of a shard; an image keeps its bytes but not its file name, which may be a patient's."""
        schema = self.pack.features.arrow_schema
        table = rows.with_format("arrow")[:]
        name = schema.names[-1]
        cells: list[Any] = [[{"bytes": image, "path": None} for image in of_case] for of_case in images]
        if self.pack.format == ONE_IMAGE:
            cells = [of_case[0] if of_case else None for of_case in cells]
        else:
            cells = [[{**{key: cell[key] for key in ("view", "prior", "days")}, "image": image}
                      for cell, image in zip(row, of_case, strict=True)]
                     for row, of_case in zip(rows["images"], cells, strict=True)]  # fmt: skip
        embedded = pa.array(cells, schema.field(name).type)
        return pa.table([embedded if key == name else table[key] for key in schema.names], schema=schema)

    def _write(self, table: pa.Table, name: str) -> Shard:
        """Write a shard as one row group, to keep each column contiguous; uncompressed, as images are already."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=len(table), compression="none", use_dictionary=False,
                       write_page_checksum=True)  # fmt: skip
        data = sink.getvalue()
        write_file(self.folder / name, data)
        return Shard(len(table), data.size, hashlib.sha256(data).hexdigest())

    def notices(self, output: Path) -> list[str]:
        """Return messages on what was written and which patient data it contains."""
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


def _image(cell: Cell, side: int, color: bool) -> tuple[bytes, bool, bool]:
    """Return the bytes to store of an image, whether they are DICOM, and whether the image is blank.

    Every image is decoded, to find unreadable files before training.
    """
    path = cell["path"]
    if is_packed(path):
        raise UserError("data.source: packed: shards are not packed again; pack the source that they were made of")
    data, where = read_image_bytes(path)
    image = decode_image(data, where, color)
    blank = shows_nothing(image)
    return (reduced(image, side), False, blank) if side else (data, file_type(data) == "DICOM", blank)


def reduced(image: np.ndarray, side: int) -> bytes:
    """Encode an image as a PNG with the longest side at most `side`: H × W grey, or H × W × 3 uint8 in colour.

    Whole numbers from 0 to 65,535 are kept. Other values are rescaled to 16 bits, which the contrast stretch of
    `to_square` undoes. PNG has no NaN: non-finite pixels become the smallest finite value.
    """
    there = np.isfinite(image)
    low, high = (float(image[there].min()), float(image[there].max())) if there.any() else (0.0, 0.0)
    image = np.where(there, image, np.float32(low))
    whole = low >= 0 and high <= 65_535 and bool((image == np.round(image)).all())
    if not whole:
        image = (image - low) * (65_535 / max(high - low, 1e-6))
    ratio = side / max(image.shape[:2])
    if ratio < 1:
        height, width = (max(1, round(length * ratio)) for length in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    depth = np.uint8 if whole and high <= 255 else np.uint16
    _, data = cv2.imencode(".png", bgr(np.round(image).astype(depth)))
    return data.tobytes()
