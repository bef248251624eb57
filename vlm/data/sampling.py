"""Sample the cases of a training epoch: one shuffle, or shard by shard so that each shard is fetched once.

Shards are shuffled and assigned to streams, which are interleaved; the rows are shuffled within each shard. Every
optimizer step takes the same number of cases from each stream. A rank reads only its own streams, but the cases of a
step do not depend on the number of ranks. When the shortest stream ends, the rest of the others is split into new
streams: those shards, one or two for each stream, may be read by two ranks.
"""

import heapq
import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from vlm.data.dataset import CaseDataset
from vlm.data.packed.shards import SCHEME, shard_addresses
from vlm.data.study import flat_images
from vlm.distributed import log_rank0


def shards_of(dataset: CaseDataset) -> np.ndarray | None:
    """Get the shard index of each case's images, N; None if no image is in a shard.

    A case without an image gets the shard of the case before it: the rows of a shard are contiguous.
    """
    first = pa.array(flat_images(dataset.rows).first, pa.string())
    if not pc.any(pc.starts_with(first, SCHEME)).as_py():
        return None
    encoded = shard_addresses(first).dictionary_encode()
    named = np.array([address != "" for address in encoded.dictionary.to_pylist()])
    own = np.where(named, np.cumsum(named) - 1, -1)
    shards = own[encoded.indices.to_numpy(zero_copy_only=False)]
    has = np.flatnonzero(shards >= 0)
    return shards[has[np.maximum(np.searchsorted(has, np.arange(len(shards)), side="right") - 1, 0)]]


def make_sampler(
    dataset: CaseDataset, batch_size: int, micro: int = 1, processes: int = 1
) -> "CaseSampler | ShardSampler":
    """Choose the sampler: by shards if the images are in shards, else one shuffle of all cases."""
    shards = shards_of(dataset)
    if shards is None:
        return CaseSampler(dataset, batch_size)
    sampler = ShardSampler(dataset, shards, batch_size, micro, processes)
    log_rank0(sampler.describe())
    return sampler


class CaseSampler(torch.utils.data.Sampler[int]):
    """Sample every case once an epoch, shuffled; weighted cases with replacement, as many in all.

    The order depends on (seed, epoch) alone, so that a resumed run repeats it. The cases of one optimizer step are
    sorted by report length, which leaves the step the same and pads its micro-batches less.
    """

    def __init__(self, dataset: CaseDataset, batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.dataset.seed, self.dataset.epoch])
        weights, count = self.dataset.weights, len(self)
        order = rng.permutation(count) if weights is None else rng.choice(count, count, p=weights / weights.sum())
        lengths = self.dataset.report_lengths
        for start in range(0, count, self.batch_size):  # no list of a million numbers is made
            step = order[start : start + self.batch_size]
            yield from step[np.argsort(-lengths[step], kind="stable")].tolist()


class ShardSampler(torch.utils.data.Sampler[int]):
    """Sample every case once an epoch, by streams of shards; weighted cases with replacement, as many in all.

    The order depends on (seed, epoch) alone, so that a resumed run repeats it. `processes` and the micro-batch size
    `micro` change only the order within a step. Within a step each stream's cases are sorted by report length, as
    `CaseSampler` sorts the whole step.
    """

    def __init__(
        self, dataset: CaseDataset, shards: np.ndarray, batch_size: int, micro: int = 1, processes: int = 1
    ) -> None:
        self.dataset, self.batch_size, self.micro, self.processes = dataset, batch_size, micro, processes
        self.streams = math.gcd(dataset.interleave_shards, batch_size)
        self._rows = np.argsort(shards, kind="stable")
        self._ends = np.cumsum(np.bincount(shards))

    def describe(self) -> str:
        """Describe how the shards are read, and why."""
        wanted = f"data.interleave_shards {self.dataset.interleave_shards}"
        why = f"the most that divide {wanted} and train.batch_size {self.batch_size}"
        shared = f"; {self.processes} processes do not divide them, so some read the same shards"
        return (f"packed: {len(self._ends)} shards, {self.streams} interleaved ({why})"
                f"{shared if self.streams % self.processes else ''}")  # fmt: skip

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.dataset.seed, self.dataset.epoch])
        streams = self._assign_streams(self._shuffled_shards(rng), rng)
        share = self.batch_size // self.streams
        even = min(map(len, streams)) // share * share
        rest = np.concatenate([rows[even:] for rows in streams])
        for part in ([rows[:even] for rows in streams], np.array_split(rest, self.streams)):
            for start in range(0, max(map(len, part)), share):  # no list of a million numbers is made
                yield from self._ordered_step([rows[start : start + share] for rows in part]).tolist()

    def _shuffled_shards(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Shuffle the rows of each shard, each repeated as often as it is drawn.

        The counts are those of independent draws by weight; the rows of a shard stay together.
        """
        weights, rows = self.dataset.weights, self._rows
        ends = self._ends
        if weights is not None:
            times = rng.multinomial(len(rows), weights[rows] / weights.sum())
            rows, ends = np.repeat(rows, times), np.cumsum(times)[self._ends - 1]
        return [rng.permutation(shard) for shard in np.split(rows, ends[:-1])]

    def _assign_streams(self, shards: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        """Assign the shards in random order, each to the stream with the fewest rows; return the rows of each."""
        streams: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in range(self.streams)]
        shortest = [(0, stream) for stream in range(self.streams)]
        for number in rng.permutation(len(shards)):
            size, stream = heapq.heappop(shortest)
            streams[stream].append(shards[number])
            heapq.heappush(shortest, (size + len(shards[number]), stream))
        return [np.concatenate(rows) for rows in streams]

    def _ordered_step(self, streams: list[np.ndarray]) -> np.ndarray:
        """Order the cases of a step so that each rank gets those of its own streams.

        accelerate gives the batches of `micro` cases to the ranks in turn.
        """
        lengths = self.dataset.report_lengths
        step = np.concatenate([rows[np.argsort(-lengths[rows], kind="stable")] for rows in streams])
        process = np.arange(len(step)) // self.micro % self.processes  # rank of each position
        placed = np.empty_like(step)
        placed[np.argsort(process, kind="stable")] = step
        return placed
