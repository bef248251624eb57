"""The source `packed`: the cohort of a pack, every column in the rows of this machine but the images."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlm.config import DataConfig
from vlm.data.cohort import Cohort, build_dataset
from vlm.data.ingest import phantom
from vlm.data.packed.manifest import Pack, address_of, opened, read_pack, split_of
from vlm.data.packed.shards import check_columns, references
from vlm.errors import UserError

FACT_READERS = {reader.name: reader for reader in (phantom.FACTS,)}
AT_ONCE = 8
"""Shards whose rows are read at the same time: most of it is waiting for an answer."""
MAY_BE_NULL = ("image", "context", "probability")


def load_packed(data: DataConfig) -> Cohort:
    """The cohort that was packed into `data.root`, a folder or an address that fsspec opens.

    Of each shard all columns but the image are read; the image cells refer to their rows. `data.table.labels` chooses
    among the labels, the split is that of the packing. Raises `UserError` for a pack that is not as it was written.
    """
    read_pack.cache_clear()  # another may lie there by now
    pack = read_pack(data.root)
    labels = tuple(data.table.labels) or pack.labels
    unknown = [name for name in labels if name not in pack.labels]
    if unknown:
        raise UserError(f"data.table.labels: {unknown[0]} is none of {', '.join(pack.labels)}")
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
    """The columns of each shard, in order."""
    names = iter(pack.shards)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while some := list(islice(names, AT_ONCE)):
            yield from pool.map(partial(_read_rows, root, pack), some)


def _read_rows(root: str, pack: Pack, name: str) -> dict[str, Any]:
    """All columns of a shard but the image, of which is read only where there is one."""
    address, shard = address_of(root, name), pack.shards[name]
    columns = [column for column in pack.features if column != "image"]
    with opened(address) as file:
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
    part["image"] = references(table["image"].combine_chunks().is_valid(), address)
    return part


def _chosen(part: dict[str, Any], count: int, places: list[int]) -> dict[str, Any]:
    """Of `count` labels those at these places alone."""
    known = part["labels"].flatten().to_numpy(zero_copy_only=False).reshape(len(part["id"]), count)
    return {**part, "labels": known[:, places].tolist()}
