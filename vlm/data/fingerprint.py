"""Fingerprint a cohort's contents, to detect that a table or its images changed under the same ids."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vlm.data.cohort import Cohort
from vlm.data.images.store import digest_of
from vlm.data.packed.shards import is_packed
from vlm.data.storage import column, hashes, matrix
from vlm.data.study import flat_images

MOST_READ = 1 << 30
"""Bytes of images to hash; beyond it, names and sizes are compared."""


def contents_fingerprint(cohort: Cohort) -> str:
    """Hash ids, splits, reports, labels, vitals, context and images, independent of row order.

    Images are hashed by name and, up to a gigabyte in all, by bytes; beyond it by size. Embedded images are always
    hashed by bytes. Folders and times do not count: data may be moved or copied.
    """
    rows = cohort.dataset
    texts = [hashes(rows, name) for name in ("id", "patient", "split", "context", "source")]
    if np.ptp(reports := hashes(rows, "prior_report")) if len(rows) else False:
        texts.append(reports)
    if cohort.signal is not None:
        texts.append(hashes(rows, "signal"))
    sections = _sections(rows, len(cohort.sections))
    singles = [_numbers(rows, name)[:, None] for name in ("probability", "weight")]
    many = matrix(rows, "vitals", len(cohort.schema)), matrix(rows, "labels", len(cohort.labels))
    numbers = np.concatenate([*many, *singles], axis=1)
    bits = np.where(np.isnan(numbers), np.float32(np.nan), numbers).view(np.uint32).astype(np.uint64)
    images = _images(rows)
    table = np.concatenate([np.stack([*texts, images], axis=1), sections, bits], axis=1)  # N × all
    return hashlib.sha256(np.ascontiguousarray(table[np.argsort(texts[0])]).tobytes()).hexdigest()


def _sections(rows: datasets.Dataset, count: int) -> np.ndarray:
    """Hash the sections of each report; N × S."""
    flat: list[np.ndarray] = [np.empty(0, np.uint64)]
    for chunk in column(rows, "sections").chunks:
        texts = pc.fill_null(chunk.flatten(), "\0").to_numpy(zero_copy_only=False)
        flat.append(pd.util.hash_array(texts.astype(object), categorize=False))
    return np.concatenate(flat).reshape(len(rows), count)


def _numbers(rows: datasets.Dataset, name: str) -> np.ndarray:
    return pa.concat_arrays(column(rows, name).chunks).to_numpy(zero_copy_only=False).astype(np.float32)


def _images(rows: datasets.Dataset) -> np.ndarray:
    """Hash the images of each case; N, uint64. One image without a role has the hash of its file alone."""
    images = flat_images(rows)
    own = _files(images.paths.tolist())
    roles = np.array([f"{v} {p} {d}" for v, p, d in zip(images.views, images.prior, images.days, strict=True)], object)
    plain = (images.views == "") & ~images.prior
    own = np.where(plain, own, own * np.uint64(3) + pd.util.hash_array(roles, categorize=False))
    hashed = np.full(len(rows), _files([""])[0])
    starts = np.cumsum(images.counts) - images.counts
    hashed[images.counts > 0] = own[starts[images.counts > 0]]
    further = np.setdiff1d(np.arange(len(own)), starts[images.counts > 0])
    np.add.at(hashed, images.row[further], own[further] * np.uint64(5))
    return hashed


def _files(paths: Sequence[str]) -> np.ndarray:
    """Hash each image's name and content or size, uint64. An image in a shard is hashed where it is read."""
    stored = {path: digest for path in paths if path and (digest := digest_of(path))}
    files = {path for path in paths if path and path not in stored and not is_packed(path)}
    sizes = {path: os.stat(path).st_size for path in files if os.path.isfile(path)}
    small = sum(sizes.values()) <= MOST_READ
    seen: list[str] = []
    for path in paths:
        if path in stored:
            seen.append(stored[path])
        elif not path or path not in sizes:
            seen.append(Path(path).name if path else "")
        else:
            content = hashlib.sha256(Path(path).read_bytes()).hexdigest() if small else str(sizes[path])
            seen.append(f"{Path(path).name} {content}")
    return pd.util.hash_array(np.array(seen, dtype=object), categorize=False)
