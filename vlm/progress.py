"""Show in one bar how far a job is: its phase, the share done, the time left.

A loop counts its items by `progress` or `counting`. Within `whole_job` these move the job's bar by the cost that is
expected of them; elsewhere the loop has a bar of its own. The time left carries on the speed so far. Rank 0 alone
shows it; where stderr is no terminal, it prints a plain line now and then.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from operator import length_hint
from typing import Any, ClassVar, TypeVar

import numpy as np
from tqdm import tqdm

from vlm.distributed import is_main
from vlm.plain import escaped

Item = TypeVar("Item")
LINE_SECONDS, LINE_SHARE = 30.0, 0.05
"""Fewest seconds, and least share of the job, between two lines of a log."""


class Phase:
    """A part of a job, by the title of its loop.

    `parts` are items and the cost of all of them, in the unit of the job's other phases; none for no cost.
    """

    def __init__(self, title: str, *parts: tuple[float, float]) -> None:
        self.title, self.begun, self.open = title, False, False
        self.items, self.costs = np.cumsum([(0.0, 0.0), *parts], axis=0).T  # P + 1 each
        self.shown = 0.0
        """Cost that the bar shows as done."""

    def cost(self, share: float = 1.0) -> float:
        """Compute the cost of the first `share` of the items."""
        return float(np.interp(share * self.items[-1], self.items, self.costs))


class Job:
    """The phases of a job in their order, and its bar."""

    active: ClassVar["Job | None"] = None

    def __init__(self, phases: Sequence[Phase], leave: bool) -> None:
        self.phases = phases
        self.total = total = sum(phase.cost() for phase in phases)
        # Without smoothing the time left is by the mean speed: phases differ from what is expected of them.
        self.bar = tqdm(total=total, leave=leave, smoothing=0, disable=not is_main(), **_look(total))

    def begin(self, title: str) -> Phase:
        """Begin the next phase of this title; those before it are over. One that nobody expected costs nothing."""
        waiting = [phase for phase in self.phases if phase.title == title and not phase.begun]
        phase = waiting[0] if waiting else Phase(title)
        if waiting:
            self.end([earlier for earlier in self.phases[: self.phases.index(phase)] if not earlier.open])
        phase.begun = True
        return phase

    def end(self, phases: Sequence[Phase]) -> None:
        """Show phases as done to their end."""
        for phase in phases:
            self.move(phase, 1.0, skipped=not phase.begun)
            phase.begun = True

    def move(self, phase: Phase, share: float, skipped: bool = False) -> None:
        """Show the first `share` of a phase as done; what was skipped took no time and tells nothing of the speed."""
        step = phase.cost(share) - phase.shown
        phase.shown += step
        if skipped and not self.bar.disable:
            self.bar.initial += step
        step = min(step, max(self.total - self.bar.n, 0))
        self.bar.total = max(self.total, self.bar.n + step)  # more by a rounding error; else `-00:00` would be left
        self.bar.update(step)

    def title(self, title: str, refresh: bool = False) -> None:
        """Name what is being done."""
        self.bar.set_description_str(title, refresh=refresh and _on_terminal())


class Counter:
    """Count the items of a loop."""

    def __init__(self, job: Job, title: str, total: int, done: int) -> None:
        self.job, self.name, self.total, self.done = job, escaped(title), total, done
        self.phase = job.begin(title)

    def update(self, count: int = 1) -> None:
        """Count items that are done."""
        self.done += count
        self.show()

    def show(self, first: bool = False) -> None:
        """Show the count; what was done before the `first` time is of an earlier run."""
        self.job.title(f"{self.name} {self.done}/{self.total}", refresh=first)
        self.job.move(self.phase, self.done / max(self.total, 1), skipped=first)

    def set_postfix(self, values: Mapping[str, str]) -> None:
        """Show values after the time, until the loop ends."""
        self.job.bar.set_postfix(values, refresh=_on_terminal())


@contextmanager
def whole_job(phases: Sequence[Phase], leave: bool = True) -> Iterator[Job]:
    """Show one bar for everything that counts its items within; it stays on the terminal with `leave`."""
    job = Job(phases, leave)
    Job.active, outer = job, Job.active
    try:
        with job.bar:
            yield job
            job.end(phases)
    finally:
        Job.active = outer


@contextmanager
def counting(title: str, total: int, done: int = 0) -> Iterator[Counter]:
    """Count `total` items of a loop, of which `done` were before it; at its end the phase is over, however many."""
    job = Job.active
    with nullcontext(job) if job else whole_job([Phase(title, (total, total))], leave=False) as job:
        counter, postfix = Counter(job, title, total, done), getattr(job.bar, "postfix", None)
        counter.phase.open = True
        counter.show(first=True)
        try:
            yield counter
            job.move(counter.phase, 1.0, skipped=True)
        finally:
            counter.phase.open = False
            job.bar.postfix = postfix


def progress(items: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of a loop and count them; `total` is needed where they have no length."""
    with counting(title, length_hint(items) if total is None else total) as counter:
        for item in items:
            yield item
            counter.update()


def announce(title: str) -> None:
    """Name a phase of the job that counts nothing: it is over where the next one begins."""
    if Job.active:
        Job.active.begin(title)
        Job.active.title(title, refresh=True)


def _on_terminal() -> bool:
    return sys.stderr.isatty()


class _Lines:
    """File that prints what tqdm draws over and over as lines, each once."""

    last = ""

    def write(self, drawn: str) -> None:
        if (line := drawn.strip()) not in ("", self.last):
            self.last = line
            print(line, file=sys.stderr, flush=True)


def _look(total: float) -> dict[str, Any]:
    """Choose tqdm's options: a bar on a terminal, else lines, none of which is of a job of a few seconds."""
    if _on_terminal():
        bar = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left{postfix}"
        return {"bar_format": bar, "dynamic_ncols": True, "miniters": 0}
    line = "{percentage:.0f}% after {elapsed}, about {remaining} left: {desc}{postfix}"
    often = {"mininterval": LINE_SECONDS, "maxinterval": math.inf, "miniters": LINE_SHARE * total}
    return {"file": _Lines(), "position": 0, "bar_format": line, "delay": LINE_SECONDS, **often}
