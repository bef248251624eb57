"""Render one frame of `clinical-vlm watch` with rich."""

import math
from collections.abc import Sequence
from itertools import pairwise

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vlm.plain import printable
from vlm.training.monitor.run_state import Row, Run

BLOCKS = "▁▂▃▄▅▆▇█"
STYLES = {"training": "green", "testing": "green", "starting": "cyan", "finished": "bold", "stopped": "yellow"}
LOSSES = (("BCE", "loss_bce"), ("CE", "loss_ce"), ("joint", "loss"))
SPEEDS = (
    ("cases/s", "samples_per_s", "{:,.2f}"),
    ("tokens/s", "tokens_per_s", "{:,.0f}"),
    ("images/s", "images_per_s", "{:,.2f}"),
    ("waits", "data_wait", "{:.0%}"),
    ("peak MiB", "memory_mib", "{:,.0f}"),
)


def frame(run: Run, width: int) -> RenderableType:
    """Render the whole view of a run, `width` columns wide."""
    parts: list[RenderableType] = [_title(run), *_progress(run, width)]
    if run.training:
        parts += [Text(), _losses(run, width), Text(), _speeds(run.last)]
    parts += [Text(), _checkpoint(run), *(Text(f"note: {printable(note)}", style="yellow") for note in run.notes)]
    return Group(*parts)


def _title(run: Run) -> Text:
    title = Text.assemble((run.state, STYLES[run.state]), "  ", (printable(str(run.folder)), "bold"))
    return title.append(f", {printable(run.writer)}", "dim") if run.writer else title


def _progress(run: Run, width: int) -> list[RenderableType]:
    if run.steps is None:
        return [Text(f"step {run.step}")]
    words = f"step {run.step} of {run.steps}"
    if run.seconds_left is not None:
        words += f", about {duration(run.seconds_left)} left"
    rate = run.last.get("learning_rate")
    words += f", learning rate {rate:.2g}" if rate is not None else ""
    return [Text(words), ProgressBar(max(run.steps, 1), min(run.step, run.steps), width=min(width, 100))]


def _losses(run: Run, width: int) -> Table:
    """Tabulate the losses of training and validation: last and lowest value, and a sparkline on a log scale."""
    table = Table.grid(padding=(0, 2))
    for title in ("", "last", "lowest", "course (log)"):
        table.add_column(Text(title, style="dim"), justify="left" if title in ("", "course (log)") else "right")
    table.add_row(*(column.header for column in table.columns))
    for split, prefix in (("training", ""), ("validation", "eval_")):
        for title, name in LOSSES:
            values = run.series(prefix + name)
            if values:
                cells = f"{split} {title}", f"{values[-1]:.4f}", f"{min(values):.4f}"
                table.add_row(*cells, Text(sparkline(values, max(8, min(width, 100) - 42)), style="cyan"))
    aurocs = run.series("eval_auroc")
    if aurocs:
        table.add_row("validation AUROC", f"{aurocs[-1]:.4f}", "", f"highest {max(aurocs):.4f}")
    return table


def _speeds(row: Row) -> Table:
    """Tabulate speed, wait and memory of all processes together, and of each if there are several."""
    table = Table.grid(padding=(0, 2))
    for title in ("", *(title for title, _, _ in SPEEDS), "s/step"):
        table.add_column(Text(title, style="dim"), justify="right" if title else "left")
    table.add_row(*(column.header for column in table.columns))
    ranks = sorted(int(name.rsplit("_rank", 1)[1]) for name in row if name.startswith("memory_mib_rank"))
    for title, end in (("all" if ranks else "speed", ""), *((f"process {rank}", f"_rank{rank}") for rank in ranks)):
        cells = [_cell(row.get(name + end), shape) for _, name, shape in SPEEDS]
        table.add_row(title, *cells, "" if end else _cell(row.get("step_s"), "{:.2f}"))
    return table


def _cell(value: float | None, shape: str) -> str:
    return "–" if value is None else shape.format(value)


def _checkpoint(run: Run) -> Text:
    if run.checkpoint is None:
        return Text("no checkpoint yet")
    age = run.checkpoint_age
    words = f"last checkpoint: step {run.checkpoint}" + (f", {duration(age)} ago" if age is not None else "")
    losses = [(row["eval_loss"], row["step"]) for row in run.validation if row["eval_loss"] is not None]
    return Text(words + (f"; best validation at step {min(losses)[1]}" if losses else ""))


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw values as at most `width` blocks, each the mean of its share, scaled from the smallest to the largest.

    The scale is logarithmic if all values are above 0: a loss falls by orders of magnitude.
    """
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    scaled = [math.log(value) for value in values] if min(values) > 0 else list(values)
    count = min(width, len(scaled))
    edges = [index * len(scaled) // count for index in range(count + 1)]
    means = [sum(scaled[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    levels = [(mean - low) / span if span > 0 else 0.0 for mean in means]
    return "".join(BLOCKS[min(int(level * len(BLOCKS)), len(BLOCKS) - 1)] for level in levels)


def duration(seconds: float) -> str:
    """Format a time in its two largest units."""
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // part)} {smaller}"
    return f"{max(int(seconds), 0)} s"
