"""Draw an explanation as one picture: heat maps, the draft with its words tinted, vitals and probabilities."""

import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyBboxPatch, Patch
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

from vlm.atomic import replaced
from vlm.errors import UserError
from vlm.explanation.result import ExplainedWords, Explanation, TintedWord, overlay

IMAGE, VITALS, LANGUAGE = "#f28e2b", "#5b9bd5", "#dedede"
AGAINST, INK, FAINT = "#b8b8b8", "#222222", "#666666"
INDENT = -1.45 / 2.05
"""Left edge of the names beside the bars, in widths of the bars."""
NOTHING = 0.05
"""Smallest contribution that is named, nats."""
MOST_LABELS = 12

# Inches: two columns, the image and the draft on the left, the numbers on the right.
WIDTH, EDGE, LEFT, BARS, BARS_WIDTH = 13.2, 0.35, 8.3, 10.75, 2.05
TALLEST_IMAGE, HEADING, ROW, AXIS = 4.6, 0.62, 0.27, 0.3
TEXT_SIZE, LINE, NOTE = 12.5, 0.34, 0.21


def draw(explanation: Explanation, file: str | Path) -> None:
    """Write the picture as a PNG without a name, path or value of the patient in its metadata.

    Raises `UserError` where the file cannot be written.
    """
    maps, lines, notes = _maps(explanation), _lines(explanation.tinted_words(), LEFT), _notes(explanation)
    image = max(_size(pixels, len(maps))[1] for _, pixels in maps)
    words, below = 0.45 + LINE * len(lines), 0.25 + NOTE * len(notes)
    vitals = HEADING + ROW * max(len(explanation.vitals), 1) + AXIS
    labels = HEADING + ROW * max(min(len(explanation.labels), MOST_LABELS), 1) + AXIS + 0.45
    height = EDGE + max(HEADING + image + 0.3 + words + below, vitals + labels)
    with rc_context({"font.size": 10, "axes.titlesize": 12, "text.color": INK, "axes.titlelocation": "left"}):
        figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white")
        _draw_maps(figure, maps)
        top = HEADING + image + 0.3
        _draw_words(_axes(figure, EDGE, top, LEFT, words), lines, words)
        _draw_notes(_axes(figure, EDGE, top + words, LEFT, below), notes, below)
        _draw_vitals(_axes(figure, BARS, HEADING, BARS_WIDTH, vitals - HEADING - AXIS), explanation)
        _draw_labels(_axes(figure, BARS, vitals + HEADING, BARS_WIDTH, labels - HEADING - AXIS - 0.45), explanation)
        try:
            with replaced(Path(file)) as partial:
                figure.savefig(partial, format="png", metadata={"Software": None})
        except UserError as error:
            raise UserError(str(error).replace("cannot be written", "cannot write the picture")) from None


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes without a frame at a place in inches from the upper left corner."""
    wide, tall = figure.get_size_inches()
    axes = figure.add_axes((left / wide, 1 - (top + height) / tall, width / wide, height / tall))
    axes.spines[:].set_visible(False)
    axes.set(xticks=[], yticks=[])
    return axes


# ------------------------------------------------------------------------------------------- the image


def _maps(explanation: Explanation) -> list[tuple[str, np.ndarray | None]]:
    """Return title and pixels of each panel: the leading label, and the words with the largest image contribution."""
    if explanation.picture is None:
        return [("Image", None)]
    panels: list[tuple[str, np.ndarray | None]] = []
    label, words = explanation.leading_label, _most_seen(explanation)
    if label is not None:
        panels.append(
            (f"{label.name} {label.probability:.1%}\nwhere the label comes from", overlay(explanation, label.name))
        )
    if words is not None:
        panels.append((f"“{_short(words.text, 40)}”\nwhere the words come from", overlay(explanation, words.text)))
    return panels or [("Image", np.repeat(explanation.picture[..., None], 3, axis=2))]


def _most_seen(explanation: Explanation) -> ExplainedWords | None:
    seen = [words for words in explanation.passages if words.heat is not None and words.image > NOTHING]
    return max(seen, key=lambda words: words.image, default=None)


def _size(pixels: np.ndarray | None, panels: int) -> tuple[float, float]:
    """Return width and height of a panel, inches, in the image's aspect ratio."""
    most = (LEFT - 0.2) / 2 if panels > 1 else 4.6
    if pixels is None:
        return LEFT, 1.0
    height, width = pixels.shape[:2]
    scale = min(most / width, TALLEST_IMAGE / height)
    return width * scale, height * scale


def _draw_maps(figure: Figure, maps: list[tuple[str, np.ndarray | None]]) -> None:
    left = EDGE
    for title, pixels in maps:
        width, height = _size(pixels, len(maps))
        axes = _axes(figure, left, HEADING, width, height)
        left += max(width, 2.2) + 0.2  # room for its title
        axes.set_title(title)
        if pixels is None:
            axes.set_facecolor("#f4f4f4")
            axes.text(0.5, 0.5, "No image was read.", ha="center", va="center", transform=axes.transAxes, color=FAINT)
        else:
            axes.imshow(pixels, interpolation="lanczos", aspect="auto")


# ------------------------------------------------------------------------------------------- the words


class _Placed(NamedTuple):
    """A word of the draft and its place in the line, inches."""

    word: TintedWord
    left: float
    width: float


def _lines(words: list[TintedWord], room: float) -> list[list[_Placed]]:
    """Break the draft into lines by the width of its words as they are drawn."""
    lines: list[list[_Placed]] = [[]]
    left = 0.0
    for word in words:
        text = word.text.strip()
        width = _text_width(f"|{text}|") - _text_width("||")
        if lines[-1] and left + width > room and text[0].isalnum():  # a full stop may overhang rather than begin a line
            lines.append([])
            left = 0.0
        lines[-1].append(_Placed(word._replace(text=text), left, width))
        left += width + (0.09 if word.text != word.text.rstrip() else 0.025)
        if "\n" in word.text:
            lines.append([])
            left = 0.0
    return lines


def _text_width(text: str) -> float:
    return float(TextPath((0, 0), _plain(text), prop=FontProperties(size=TEXT_SIZE)).get_extents().width) / 72


def _plain(text: str) -> str:
    """Escape dollar signs, which matplotlib would read as mathematics."""
    return text.replace("$", r"\$")


def tint(word: TintedWord) -> np.ndarray:
    """Mix the colours of image, vitals and language by a word's shares; RGB, 0 to 1."""
    colours = np.array([to_rgb(colour) for colour in (IMAGE, VITALS, LANGUAGE)])
    return np.asarray(np.array(word[1:]) @ colours)


def _draw_words(axes: Axes, lines: list[list[_Placed]], height: float) -> None:
    axes.set(xlim=(0, LEFT), ylim=(height, 0))
    axes.text(0, 0.1, "Draft", fontsize=12, va="center")
    for number, line in enumerate(lines):
        middle = 0.5 + LINE * number
        for word, left, width in line:
            axes.add_patch(FancyBboxPatch((left, middle - 0.13), width, 0.26, lw=0, facecolor=tint(word),
                                          boxstyle="round,pad=0.012,rounding_size=0.03"))  # fmt: skip
            axes.text(left, middle + 0.01, _plain(word.text), fontsize=TEXT_SIZE, va="center_baseline")
    handles = [Patch(color=IMAGE, label="from the image"), Patch(color=VITALS, label="from the vitals"),
               Patch(color=LANGUAGE, label="the language alone")]  # fmt: skip
    axes.legend(handles=handles, loc="center right", bbox_to_anchor=(LEFT, 0.1), bbox_transform=axes.transData,
                ncols=3, frameon=False, fontsize=9, handlelength=1.2, columnspacing=1.4, borderaxespad=0)  # fmt: skip


def _notes(explanation: Explanation) -> list[str]:
    said = []
    if explanation.passages:
        chosen = ", ".join(dict.fromkeys(f"“{words.text}”" for words in explanation.passages))
        said.append(f"Chosen words: {chosen}. Completeness error {explanation.completeness_error:.2%} at most.")
    said.extend(f"{note[0].upper()}{note[1:]}." for note in (*explanation.notes, *explanation.report.warnings))
    return [line for text in said for line in textwrap.wrap(text, 118)] + [explanation.report.notice]


def _draw_notes(axes: Axes, notes: list[str], height: float) -> None:
    axes.set(xlim=(0, 1), ylim=(height, 0))
    for number, note in enumerate(notes):
        last = number == len(notes) - 1
        axes.text(0, 0.1 + NOTE * number + 0.06 * last, _plain(note), fontsize=11 if last else 9, va="center",
                  color=INK if last else FAINT, fontweight="bold" if last else "normal")  # fmt: skip


# ----------------------------------------------------------------------------------------- the numbers


def _draw_vitals(axes: Axes, explanation: Explanation) -> None:
    """Draw each vital's signed contribution to the chosen words, with the word that it contributes most to."""
    axes.set_title("Vitals: nats added to the chosen words", x=INDENT)
    names, passages = list(explanation.vitals), explanation.passages
    if not names or not passages:
        text = "no words were chosen" if names else "the model reads none"
        axes.text(INDENT, 0.5, text, transform=axes.transAxes, color=FAINT)
        return
    sums = np.array([sum(words.by_vital[name] for words in passages) for name in names])
    axes.barh(range(len(names)), sums, color=[VITALS if value >= 0 else AGAINST for value in sums], height=0.62)
    for place, (name, value) in enumerate(zip(names, sums, strict=True)):
        most = max(passages, key=lambda words, name=name: abs(words.by_vital[name]))  # type: ignore[misc]
        named = f" “{_short(most.text, 12)}”" if abs(most.by_vital[name]) > NOTHING else ""
        aside = f"{round(float(value), 2) + 0.0:+.2f}{named}" if name in explanation.report.vitals else "not given"
        axes.text(max(float(value), 0), place, f"  {aside}", va="center", fontsize=8.5, color=FAINT)
    axes.axvline(0, color="0.5", lw=0.8)
    given = {name: f"{v:g}" if isinstance(v, float) else str(v) for name, v in explanation.report.vitals.items()}
    axes.set_yticks(range(len(names)), [_short(f"{name} {given.get(name, '')}".strip(), 24) for name in names])
    low, high = min(float(sums.min()), 0.0), max(float(sums.max()), 0.1)
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(low, high + 0.9 * (high - low)))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    _finish(axes)


def _draw_labels(axes: Axes, explanation: Explanation) -> None:
    axes.set_title("Probabilities", x=INDENT)
    labels = sorted(explanation.labels, key=lambda label: -round(label.probability, 3))[:MOST_LABELS]
    if not labels:
        axes.text(INDENT, 0.5, "the model has no labels", transform=axes.transAxes, color=FAINT)
        return
    axes.barh(range(len(labels)), [label.probability for label in labels], color="#7a7a7a", height=0.62)
    for place, label in enumerate(labels):
        axes.text(label.probability, place, f"  {label.probability:.1%}", va="center", fontsize=8.5, color=FAINT)
    axes.set_yticks(range(len(labels)), [_short(label.name, 24) for label in labels])
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


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
