"""Describe a signal: channels, rate and length, with the statistics of the training split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm.errors import UserError
from vlm.plain import is_clean

if TYPE_CHECKING:  # one case needs no tables, and their libraries take a second to import
    import datasets

MOST_SAMPLES, MOST_CHANNELS = 4096, 16
"""Most samples of a channel that a model reads, and most channels."""
MOST_AVERAGED, LONGEST_NAME = 1024, 60
HIGHEST_RATE = 1e6
"""Highest rate of samples, a second."""
LARGEST = 1e30
"""Limit of the statistics' numbers."""
CLIP = 20.0
"""Limit of normalised samples, in standard deviations: a loose electrode must not drown the rest."""


@dataclass(frozen=True)
class SignalFormat:
    """What the samples of a cohort's signals are."""

    channels: list[str]
    rate: float
    """Samples a second, as recorded."""
    scale: float = 1.0
    """Factor from a recorded sample to its unit."""
    average: int = 1
    """Recorded samples averaged into one."""

    def __post_init__(self) -> None:
        names = self.channels
        if not 1 <= len(names) <= MOST_CHANNELS or len(set(names)) < len(names):
            raise UserError(f"signal: channels: 1 to {MOST_CHANNELS} different names")
        if not all(name and len(name) <= LONGEST_NAME and is_clean(name) for name in names):
            raise UserError("signal: channels: one is no plain word")
        if not 0 < self.rate <= HIGHEST_RATE:
            raise UserError(f"signal: rate: above 0 and at most {HIGHEST_RATE:,.0f} a second, not {self.rate:g}")
        if not 0 < abs(self.scale) <= LARGEST:
            raise UserError(f"signal: scale: a number other than 0, not {self.scale:g}")
        if not 1 <= self.average <= MOST_AVERAGED:
            raise UserError(f"signal: average: 1 to {MOST_AVERAGED:,} samples, not {self.average}")

    def samples(self, recorded: np.ndarray, where: str) -> np.ndarray:
        """Convert a recorded signal, l × C or C × l or l, to C × l float32 in its unit, NaN for a gap.

        An array as long as wide is taken as l × C. Infinite samples are gaps. Raises `UserError` for another shape, a
        signal without a sample, and one that is longer than a model reads.
        """
        count, values = len(self.channels), np.asarray(recorded)
        values = values[:, None] if values.ndim == 1 and count == 1 else values
        if values.ndim == 2 and values.shape[1] != count:
            values = values.T
        if values.ndim != 2 or values.shape[1] != count:
            shape = " × ".join(map(str, np.shape(recorded)))
            raise UserError(f"{where}: a signal of {shape} is not one of {count} channels ({', '.join(self.channels)})")
        whole = len(values) // self.average
        if not 1 <= whole <= MOST_SAMPLES:
            needed = -(-len(values) // MOST_SAMPLES)
            way_out = f"set data.table.signal.average to {needed} or more" if whole else "it has none"
            raise UserError(f"{where}: {len(values):,} samples are not 1 to {MOST_SAMPLES:,}; {way_out}")
        scaled = values[: whole * self.average].astype(np.float32) * np.float32(self.scale)
        scaled[~(np.abs(scaled) < LARGEST)] = np.nan
        return np.ascontiguousarray(scaled.reshape(whole, self.average, count).mean(axis=1).T)

    def doubts(self, samples: np.ndarray) -> list[str]:
        """Describe what is doubtful about samples, C × l: gaps and flat channels."""
        gaps = bool(np.isnan(samples).any())
        flat = [name for name, channel in zip(self.channels, samples, strict=True) if _flat(channel)]
        doubts = [f"flat: {', '.join(flat)}"] if flat else []
        return [*doubts, "samples that are no finite number are gaps"] if gaps else doubts


def _flat(samples: np.ndarray) -> bool:
    """Check whether a channel shows one value alone, or none."""
    known = samples[~np.isnan(samples)]
    return not len(known) or bool(np.ptp(known) == 0)


def shows_no_signal(samples: np.ndarray) -> bool:
    """Check whether every channel is flat: such a signal counts as none."""
    return all(map(_flat, samples))


@dataclass(frozen=True)
class SignalSpec:
    """Signal that a model reads, fitted on the training split; saved in the adapter."""

    channels: list[str]
    rate: float
    """Samples a second, as recorded."""
    scale: float
    average: int
    length: int
    """Samples of a channel, after averaging; L."""
    mean: list[float]
    """Mean of each channel."""
    deviation: list[float]
    """Standard deviation of each channel."""

    def __post_init__(self) -> None:
        SignalFormat(self.channels, self.rate, self.scale, self.average)  # checks them
        if not 1 <= self.length <= MOST_SAMPLES:
            raise UserError(f"signal: length: 1 to {MOST_SAMPLES:,} samples, not {self.length!r:.20}")
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if len(values) != len(self.channels) or not all(abs(value) < LARGEST for value in values):
                raise UserError(f"signal: {name}: one number below {LARGEST:g} for each channel")
        if not all(value > 0 for value in self.deviation):
            raise UserError("signal: deviation: above 0")

    @property
    def format(self) -> SignalFormat:
        """What recorded samples are."""
        return SignalFormat(self.channels, self.rate, self.scale, self.average)

    @property
    def samples_a_second(self) -> float:
        """Rate after averaging."""
        return self.rate / self.average

    @classmethod
    def fit(cls, rows: "datasets.Dataset", found: SignalFormat | None) -> "SignalSpec | None":
        """Fit to the training rows; None for a cohort without signals."""
        if found is None:
            return None
        count = len(found.channels)
        total, squares, known, longest = np.zeros(count), np.zeros(count), np.zeros(count), 1
        for part in rows.select_columns(["signal"]).iter(1000):
            for cell in part["signal"]:
                samples = from_bytes(cell, count)
                if samples is None:
                    continue
                there = ~np.isnan(samples)
                values = np.where(there, samples, 0).astype(np.float64)
                total, squares = total + values.sum(axis=1), squares + (values**2).sum(axis=1)
                known, longest = known + there.sum(axis=1), max(longest, samples.shape[1])
        mean = total / np.maximum(known, 1)
        deviation = np.sqrt(np.maximum(squares / np.maximum(known, 1) - mean**2, 0))
        deviation = np.where(deviation > 1e-12, deviation, 1)  # a channel that is flat in every case
        return cls(found.channels, float(found.rate), float(found.scale), found.average, longest, mean.tolist(),
                   deviation.tolist())  # fmt: skip

    def describe(self) -> str:
        """Describe what is read in one line, to print."""
        seconds = self.length / self.samples_a_second
        what = f"{len(self.channels)} channels ({', '.join(self.channels)}) of {self.length:,} samples"
        return f"signal of a case: {what}, {self.samples_a_second:g} a second, {seconds:g} s (the longest for training)"

    def normalise(self, samples: np.ndarray | None) -> np.ndarray:
        """Normalise the samples of a case, C × l in their unit → C × L float32, NaN at gaps; all NaN without a signal.

        A shorter signal has a gap at its end, a longer one is cut there.
        """
        out = np.full((len(self.channels), self.length), np.nan, np.float32)
        if samples is None or shows_no_signal(samples):
            return out
        shown = samples[:, : self.length]
        centre, scale = (np.array(values, np.float32)[:, None] for values in (self.mean, self.deviation))
        out[:, : shown.shape[1]] = np.clip((shown - centre) / scale, -CLIP, CLIP)
        return out

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a random signal, C × L in its unit: smooth noise."""
        noise = rng.normal(size=(len(self.channels), self.length)).cumsum(axis=1)
        noise = (noise - noise.mean(axis=1, keepdims=True)) / (noise.std(axis=1, keepdims=True) + 1e-6)
        return np.array(self.mean)[:, None] + np.array(self.deviation)[:, None] * noise

    def read(self, recorded: Any, where: str = "the signal") -> tuple[np.ndarray | None, list[str]]:
        """Read the recorded signal of one case; returns its samples, C × l, or None, and warnings.

        Raises `UserError` as `SignalFormat.samples` does.
        """
        samples = self.format.samples(recorded, where)
        if shows_no_signal(samples):
            return None, ["the signal is flat and was taken as none"]
        doubts, length = self.format.doubts(samples), samples.shape[1]
        if length != self.length:
            what = "the end is cut" if length > self.length else "the rest is a gap"
            doubts.append(f"it has {length:,} samples, those for training {self.length:,}; {what}")
        return samples, [f"the signal: {doubt}" for doubt in doubts]


def to_bytes(samples: np.ndarray | None) -> bytes:
    """Store the samples of a row, C × l float32; nothing for none."""
    return b"" if samples is None else samples.astype("<f4").tobytes()


def from_bytes(cell: bytes | None, channels: int) -> np.ndarray | None:
    """Read what `to_bytes` stored; raises `UserError` for a cell that it never writes."""
    if not cell:
        return None
    if len(cell) % (4 * channels) or len(cell) > 4 * channels * MOST_SAMPLES:
        raise UserError(f"a signal of {len(cell):,} bytes is not one of {channels} channels")
    return np.frombuffer(cell, "<f4").reshape(channels, -1)


def same_format(formats: Sequence[SignalFormat | None]) -> SignalFormat | None:
    """Return the one format of several sources, None without any; raises `UserError` for two."""
    known = [found for found in formats if found is not None]
    if any(found != known[0] for found in known):
        raise UserError("data.sources: the signals differ in channels, rate, scale or average; a model reads one kind")
    return next(iter(known), None)
