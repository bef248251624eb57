"""Find the modalities of the training pictures, by the headers of a sample."""

import time
from collections import Counter

import numpy as np

from vlm.data.cohort import Cohort
from vlm.data.images.modality import HEAD, MOST_MODALITIES, read_modality
from vlm.data.images.store import read_image_bytes
from vlm.data.packed.shards import is_packed, packed_bytes
from vlm.data.study import flat_images
from vlm.device import Choice

SAMPLE, SECONDS = 300, 10.0
"""Most pictures to look at, and the time after which no further one is."""


def find_modalities(cohort: Cohort) -> Choice[tuple[str, ...]]:
    """List the modalities, in order; empty if none is named, or too many to keep. Raises `UserError` as reading does.

    More than `MOST_MODALITIES` are not cut: the adapter would warn of those that were left out.
    """
    paths = flat_images(cohort.split("train")).paths
    paths = paths[paths != ""]
    if len(paths) and is_packed(str(paths[0])):  # those side by side: a shard is fetched as a whole
        paths = paths[:SAMPLE]
    sample = np.random.default_rng(0).choice(paths, min(len(paths), SAMPLE), replace=False)
    counts, end = Counter[str](), time.monotonic() + SECONDS
    for path in map(str, sample):
        data, _ = packed_bytes(path) if is_packed(path) else read_image_bytes(path, HEAD)
        counts[read_modality(data)] += 1
        if time.monotonic() > end:
            break
    looked, unnamed = counts.total(), counts.pop("", 0)
    reason = f"named in the DICOM headers of {looked - unnamed} of {looked} training pictures looked at"
    if len(counts) > MOST_MODALITIES:
        return Choice((), f"{len(counts)} are {reason}; at most {MOST_MODALITIES} are kept")
    return Choice(tuple(sorted(counts)), reason)
