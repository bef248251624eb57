"""Draw an explanation's numbers as bars: what vitals and images add to the chosen words, and the probabilities."""

import textwrap
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from vlm.explanation.result import Explanation

IMAGE, VITALS, LANGUAGE = "#f28e2b", "#5b9bd5", "#dedede"
AGAINST, FAINT = "#b8b8b8", "#666666"
INDENT = -1.45 / 2.05
"""Left edge of the names beside the bars, in widths of the bars."""
NOTHING = 0.05
"""Smallest contribution that is named, nats."""
MOST_LABELS = 12


class Bar(NamedTuple):
    """A signed contribution to the chosen words."""

    name: str
    nats: float
    aside: str
    """Text beside the bar."""
    colour: str


def evidence_bars(explanation: Explanation) -> list[Bar]:
    """List a bar for each image, where there are several, and for each vital."""
    several = len(explanation.pictures) > 1
    return [*(_image_bars(explanation) if several else ()), *_vital_bars(explanation)]


def count_evidence(explanation: Explanation) -> int:
    """Count the bars."""
    return len(explanation.vitals) + (len(explanation.pictures) if len(explanation.pictures) > 1 else 0)


def _image_bars(explanation: Explanation) -> list[Bar]:
    """List each image's contribution, with its share in what the images contribute."""
    sums = np.sum([words.by_image for words in explanation.passages], axis=0)  # n
    shares = np.abs(sums) / max(float(np.abs(sums).sum()), 1e-12)
    return [
        Bar(image.name, float(value), f"{_signed(value)} ({share:.0%})", IMAGE)
        for image, value, share in zip(explanation.pictures, sums, shares, strict=True)
    ]


def _vital_bars(explanation: Explanation) -> list[Bar]:
    """List each vital's contribution, with its value and the word that it contributes most to."""
    passages, bars = explanation.passages, []
    given = {name: f"{v:g}" if isinstance(v, float) else str(v) for name, v in explanation.report.vitals.items()}
    for name in explanation.vitals:
        value = float(np.sum([words.by_vital[name] for words in passages]))
        most = max(passages, key=lambda words, name=name: abs(words.by_vital[name]))  # type: ignore[misc]
        named = f" “{short(most.text, 12)}”" if abs(most.by_vital[name]) > NOTHING else ""
        aside = f"{_signed(value)}{named}" if name in given else "not given"
        bars.append(Bar(f"{name} {given.get(name, '')}".strip(), value, aside, VITALS))
    return bars


def _signed(nats: float) -> str:
    return f"{round(float(nats), 2) + 0.0:+.2f}"


def draw_evidence(axes: Axes, explanation: Explanation) -> None:
    """Draw each vital's signed contribution to the chosen words, and each image's where there are several."""
    several = len(explanation.pictures) > 1
    axes.set_title(f"{'Evidence' if several else 'Vitals'}: nats added to the chosen words", x=INDENT)
    bars = evidence_bars(explanation) if explanation.passages else []
    if not bars:
        text = "no words were chosen" if explanation.vitals or several else "the model reads none"
        axes.text(INDENT, 0.5, text, transform=axes.transAxes, color=FAINT)
        return
    sums = np.array([bar.nats for bar in bars])
    axes.barh(range(len(bars)), sums, color=[bar.colour if bar.nats >= 0 else AGAINST for bar in bars], height=0.62)
    for place, bar in enumerate(bars):
        axes.text(max(bar.nats, 0), place, f"  {bar.aside}", va="center", fontsize=8.5, color=FAINT)
    axes.axvline(0, color="0.5", lw=0.8)
    axes.set_yticks(range(len(bars)), [short(bar.name, 24) for bar in bars])
    low, high = min(float(sums.min()), 0.0), max(float(sums.max()), 0.1)
    axes.set(ylim=(len(bars) - 0.4, -0.6), xlim=(low, high + 0.9 * (high - low)))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    _finish(axes)


def draw_labels(axes: Axes, explanation: Explanation) -> None:
    """Draw the probability of each label, the most probable first."""
    axes.set_title("Probabilities", x=INDENT)
    labels = sorted(explanation.labels, key=lambda label: -round(label.probability, 3))[:MOST_LABELS]
    if not labels:
        axes.text(INDENT, 0.5, "the model has no labels", transform=axes.transAxes, color=FAINT)
        return
    axes.barh(range(len(labels)), [label.probability for label in labels], color="#7a7a7a", height=0.62)
    for place, label in enumerate(labels):
        axes.text(label.probability, place, f"  {label.probability:.1%}", va="center", fontsize=8.5, color=FAINT)
    axes.set_yticks(range(len(labels)), [short(label.name, 24) for label in labels])
    axes.set(xlim=(0, 1.35), ylim=(len(labels) - 0.4, -0.6))
    axes.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
    _finish(axes)
    left_out = len(explanation.labels) - len(labels)
    meaning = explanation.report.calibration + (f"; {left_out} less probable ones are left away" if left_out else "")
    inches = axes.get_position().height * axes.get_figure().get_size_inches()[1]  # type: ignore[union-attr]
    axes.text(INDENT, -0.4 / inches, textwrap.fill(meaning, 52), transform=axes.transAxes, va="top",
              fontsize=8.5, color=FAINT)  # fmt: skip


def _finish(axes: Axes) -> None:
    axes.spines["bottom"].set(visible=True, color="0.7")
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", length=3, labelsize=8.5, color="0.7", labelcolor=FAINT)


def short(text: str, most: int) -> str:
    """Cut a text to at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
