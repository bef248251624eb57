"""Read the source `packed`: load every column of a pack but the images."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm.config import DataConfig
from vlm.data.cohort import Cohort, build_dataset, selected_labels
from vlm.data.ingest.phantom_study import STUDY_FACTS
from vlm.data.ingest.phantom_words import FACTS
from vlm.data.packed.manifest import Pack, join_address, open_address, read_pack, split_of
from vlm.data.packed.shards import check_columns, image_references
from vlm.errors import UserError

FACT_READERS = {reader.name: reader for reader in (FACTS, STUDY_FACTS)}
AT_ONCE = 8
"""Shards read concurrently: most of the time is I/O wait."""
MAY_BE_NULL = ("image", "context", "probability")


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
    dataset = build_dataset(parts, pack.schema, len(labels), len(pack.sections))
    findings = {name: finding for name, finding in pack.label_findings.items() if name in labels}
    facts = FACT_READERS.get(pack.facts)
    cohort = Cohort(dataset, pack.schema, labels, pack.sections, facts, findings, _warnings(data, pack))
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
    columns = [column for column in pack.features if column != "image"]
    with open_address(address) as file:
        size = file.seek(0, 2)
        if size != shard.size:
            raise UserError(f"{address}: damaged: {size} bytes, {shard.size} when packed")
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            check_columns(parquet, file, address, pack, shard, skipped="image.bytes")
            table = parquet.read(columns=[*columns, "image.path"], use_threads=False)
    part = {column: table[column].combine_chunks() for column in columns}
    for column, values in part.items():
        if values.null_count and column not in MAY_BE_NULL:
            raise UserError(f"{address}: an empty cell in the column {column}, where we write none")
    if not pc.all(pc.equal(part["split"], split_of(name))).as_py():
        raise UserError(f"{address}: rows of another split than its name says")
    part["image"] = image_references(table["image"].combine_chunks().is_valid(), address)
    return part


def _chosen(part: dict[str, Any], count: int, places: list[int]) -> dict[str, Any]:
    """Keep only the labels at the given places, of `count`."""
    known = part["labels"].flatten().to_numpy(zero_copy_only=False).reshape(len(part["id"]), count)
    return {**part, "labels": known[:, places].tolist()}
