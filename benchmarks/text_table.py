"""Pool what ways to train the text made of the same cases in several runs, as paired differences with intervals."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.dermoscopy import DIAGNOSES, MELANOMA, macro_f1
from benchmarks.several_runs import interval, stacked
from vlm.evaluation.ablation import minus
from vlm.statistics.intervals import Statistic, mean, ratio

Runs = Mapping[str, Mapping[str, list[Any]]]
"""Run → measure → a value for each case."""


def table(results: Mapping[str, Runs]) -> str:
    """Format a table of ways: `plain` in its own numbers, each other as its difference, paired by case and run."""
    base = results["plain"]
    lines = ["| way | " + " | ".join(STATISTICS) + " |", "| --- " * (len(STATISTICS) + 1) + "|"]
    for name, runs in results.items():
        shared = [run for run in runs if run in base]
        mine, theirs = ({run: some[run] for run in shared} for some in (runs, base))
        cells = []
        for statistic in STATISTICS.values():
            of = statistic(stacked(mine))
            paired = of if name == "plain" else minus(of, statistic(stacked(theirs)))
            value, low, high = interval(paired, next(iter(mine.values()))["lesion"], len(mine))
            sign = "" if name == "plain" else "+"
            cells.append(f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})")
        lines.append(f"| {name}, {len(shared)} runs | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _melanoma(data: Mapping[str, np.ndarray]) -> Statistic:
    """Build the F1 of writing melanoma."""
    said, has = data["said"] == MELANOMA, data["is"] == MELANOMA
    return ratio(2.0 * (said & has), said.astype(float) + has)


STATISTICS: dict[str, Callable[[Mapping[str, np.ndarray]], Statistic]] = {
    "text loss a token": lambda data: ratio(data["loss"], data["tokens"]),
    "four words right": lambda data: mean(data["right"].mean(axis=1)),
    "diagnosis right": lambda data: mean((data["said"] == data["is"]).astype(float)),
    "macro F1": lambda data: macro_f1(data["said"], data["is"], len(DIAGNOSES)),
    "melanoma, F1": _melanoma,
    "as the head": lambda data: mean((data["said"] == data["head"]).astype(float)),
}
