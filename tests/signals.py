"""Make a table of beats: signals of two channels with a known rate, and a report that states it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.conftest import tiny_job
from vlm.config import (
    Config,
    DataConfig,
    DropoutConfig,
    SectionConfig,
    SignalColumnConfig,
    SignalConfig,
    SplitConfig,
    TableConfig,
    VitalConfig,
)

RATE, LENGTH = 50.0, 500
"""Samples a second, and samples: ten seconds."""


def beat_train(bpm: float, seed: int = 0, jitter: float = 0.0, length: int = LENGTH) -> np.ndarray:
    """Draw a signal of narrow beats on a slow wave with noise; length × 2, `bpm` beats a minute."""
    rng = np.random.default_rng(seed)
    times = np.arange(length) / RATE
    period = 60 / bpm
    at = np.arange(0.3, times[-1], period)
    at = at + jitter * period * rng.normal(size=len(at))
    beats = np.exp(-(((times[:, None] - at) / 0.03) ** 2)).sum(axis=1)
    wave = 0.3 * np.sin(2 * np.pi * 0.3 * times + rng.uniform(0, 6))
    noise = 0.02 * rng.normal(size=(length, 2))
    return (np.stack([beats + wave, 0.5 * wave - 1.5 * beats], axis=1) + noise).astype(np.float32)


def write_beats(root: Path, cases: int = 24) -> DataConfig:
    """Write a table of beats with their signals in one file, and describe it."""
    root.mkdir(parents=True, exist_ok=True)
    rates = np.linspace(45, 150, cases)
    np.savez(root / "signals.npz", signals=np.stack([beat_train(rate, n) for n, rate in enumerate(rates)]),
             key=np.array([f"c{n}" for n in range(cases)]))  # fmt: skip
    rows = [f"c{n},p{n},{30 + n},{int(rate > 90)},Heart rate {rate:.0f} a minute." for n, rate in enumerate(rates)]
    (root / "cases.csv").write_text("\n".join(["case,patient,age,fast,report", *rows]) + "\n")
    table = TableConfig(
        image=None, id="case", patient="patient", labels=["fast"], vitals=[VitalConfig("age", "a", plausible=[0, 120])],
        report=[SectionConfig("report", ["signal"], "No signal was given.")],
        signal=SignalColumnConfig("case", "signals.npz", "signals", "key", ["I", "II"], RATE),
    )  # fmt: skip
    return DataConfig(source="table", root=str(root), image_size=32, table=table, split=SplitConfig(0.2, 0.2))


def signal_job(tiny_llm: str, folder: Path) -> Config:
    """The smallest job whose cases have signals."""
    data = replace(write_beats(folder / "beats"), dropout=DropoutConfig(signal=0.2))
    job = tiny_job(tiny_llm, folder, folder)
    signal = SignalConfig(tokens=2, width=4, cycles=[30.0, 200.0])
    return replace(job, data=data, model=replace(job.model, signal=signal), train=replace(job.train, threads=1))
