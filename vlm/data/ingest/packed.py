"""Read the source `packed`: load every column of a pack but the images."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm.config import DataConfig
from vlm.data.cohort import Cohort, build_dataset, selected_labels
from vlm.data.ingest.phantom_study import STUDY_FACTS
from vlm.data.ingest.phantom_words import FACTS
from vlm.data.packed.manifest import ONE_IMAGE, STUDIES, Pack, join_address, open_address, read_pack, split_of
from vlm.data.packed.shards import check_columns, image_reference
from vlm.data.signals.signal_spec import MOST_SAMPLES, SignalFormat
from vlm.data.study import LONGEST_DAYS, MOST_IMAGES, image_cell, view_name
from vlm.errors import UserError

FACT_READERS = {reader.name: reader for reader in (FACTS, STUDY_FACTS)}
AT_ONCE = 8
"""Shards read concurrently: most of the time is I/O wait."""
MAY_BE_NULL = ("image", "context", "probability")
IMAGES = {ONE_IMAGE: ("image", "image.path", "image.bytes"),
          STUDIES: ("images", "images.list.element", "images.list.element.image.bytes")}  # fmt: skip
"""Format → column of the images, what is read of it, and the column of their bytes, which is not."""


def load_packed(data: DataConfig) -> Cohort:
    """Load the cohort packed into `data.root`, a folder or an address that fsspec opens.

    All columns but the image are read; the image cells refer to their shard rows. `data.table.labels` selects labels;
    the split was fixed at packing. Raises `UserError` for a pack that is not as it was written.
    """
    read_pack.cache_clear()  # the pack may have been replaced
    pack = read_pack(data.root)
    labels = selected_labels(data, pack.labels)
    places = [pack.labels.index(name) for name in labels]
    parts = (_chosen(part, len(pack.labels), places) for part in _parts(data.root, pack))
    dataset = build_dataset(parts, pack.schema, len(labels), len(pack.sections), pack.signal is not None)
    findings = {name: finding for name, finding in pack.label_findings.items() if name in labels}
    facts = FACT_READERS.get(pack.facts)
    cohort = Cohort(dataset, pack.schema, labels, pack.sections, facts, findings, _warnings(data, pack), pack.signal)
    if cohort.fingerprint != pack.fingerprint:
        raise UserError(f"{data.root}: not the cases that were packed, though each shard has its rows and its size")
    return cohort


def _warnings(data: DataConfig, pack: Pack) -> tuple[str, ...]:
    training = sum(split_of(name) == "train" for name in pack.shards)
    wanted = data.interleave_shards
    if training >= wanted:
        return pack.warnings
    few = f"{data.root}: {training} shards of training cases are fewer than data.interleave_shards {wanted}"
    return (*pack.warnings, f"{few}, so processes cannot have their own; pack with fewer --rows_per_shard")


def _parts(root: str, pack: Pack) -> Iterator[dict[str, Any]]:
    """Yield the columns of each shard, in order."""
    names = iter(pack.shards)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while some := list(islice(names, AT_ONCE)):
            yield from pool.map(partial(_read_rows, root, pack), some)


def _read_rows(root: str, pack: Pack, name: str) -> dict[str, Any]:
    """Read all columns of a shard but the image; of the image read only whether there is one."""
    address, shard = join_address(root, name), pack.shards[name]
    images, read, skipped = IMAGES[pack.format]
    columns = [column for column in pack.features if column != images]
    roles = [f"{read}.{part}" for part in ("view", "prior", "days", "image.path")]
    with open_address(address) as file:
        size = file.seek(0, 2)
        if size != shard.size:
            raise UserError(f"{address}: damaged: {size} bytes, {shard.size} when packed")
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            check_columns(parquet, file, address, pack, shard, skipped=skipped)
            wanted = [read] if pack.format == ONE_IMAGE else roles
            table = parquet.read(columns=[*columns, *wanted], use_threads=False)
    part = {column: table[column].combine_chunks() for column in columns}
    for column, values in part.items():
        if values.null_count and column not in MAY_BE_NULL:
            raise UserError(f"{address}: an empty cell in the column {column}, where we write none")
    if not pc.all(pc.equal(part["split"], split_of(name))).as_py():
        raise UserError(f"{address}: rows of another split than its name says")
    if pack.signal is not None:
        _check_signals(part["signal"], pack.signal, address)
    cells = table[images].combine_chunks()
    if pack.format == ONE_IMAGE:
        part["images"] = [[image_cell(image_reference(address, row))] if there else []
                          for row, there in enumerate(cells.is_valid().to_pylist())]  # fmt: skip
    else:
        part["images"] = [[image_cell(image_reference(address, row, place), cell["view"], cell["prior"], cell["days"])
                           for place, cell in enumerate(of_case)]
                          for row, of_case in enumerate(_checked_roles(cells.to_pylist(), address))]  # fmt: skip
    return part


def _check_signals(cells: pa.Array, found: SignalFormat, address: str) -> None:
    """Raise `UserError` for a signal, which comes from outside, that is no whole number of samples."""
    sizes, sample = pc.binary_length(cells).to_numpy(zero_copy_only=False), 4 * len(found.channels)
    if (sizes % sample).any() or sizes.max(initial=0) > sample * MOST_SAMPLES:
        raise UserError(f"{address}: a signal is not as we write it")


def _checked_roles(rows: list[Any], address: str) -> list[Any]:
    """Check the roles of a shard's images, which come from outside; raises `UserError`."""
    for cells in rows:
        for cell in cells if cells is not None else [None]:
            if cell is None or None in (cell["view"], cell["prior"], cell["days"]):
                raise UserError(f"{address}: an image without its role, where we write one")
            known = math.isnan(cell["days"]) or 0 <= cell["days"] <= LONGEST_DAYS  # NaN: a prior of unknown time
            if view_name(cell["view"], address) != cell["view"] or not known:
                raise UserError(f"{address}: an image has a view or time as we never write it")
        if cells is not None and len(cells) > MOST_IMAGES:
            raise UserError(f"{address}: a case has more than {MOST_IMAGES} images")
    return rows


def _chosen(part: dict[str, Any], count: int, places: list[int]) -> dict[str, Any]:
    """Keep only the labels at the given places, of `count`."""
    known = part["labels"].flatten().to_numpy(zero_copy_only=False).reshape(len(part["id"]), count)
    return {**part, "labels": known[:, places].tolist()}
