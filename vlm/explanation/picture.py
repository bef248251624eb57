"""Draw an explanation as one picture: heat maps, the draft with its words tinted, evidence and probabilities."""

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

from vlm.atomic import replaced
from vlm.errors import UserError
from vlm.explanation.bars import (
    FAINT,
    IMAGE,
    LANGUAGE,
    MOST_LABELS,
    VITALS,
    count_evidence,
    draw_evidence,
    draw_labels,
)
from vlm.explanation.heat_panels import EDGE, HEADING, LEFT, axes_at, draw_strips, strips, total_height
from vlm.explanation.result import Explanation, TintedWord

INK = "#222222"

# Inches: two columns, the images and the draft on the left, the numbers on the right.
WIDTH, BARS, BARS_WIDTH = 13.2, 10.75, 2.05
ROW, AXIS = 0.27, 0.3
TEXT_SIZE, LINE, NOTE = 12.5, 0.34, 0.21


def draw(explanation: Explanation, file: str | Path) -> None:
    """Write the picture as a PNG without a name, path or value of the patient in its metadata.

    Raises `UserError` where the file cannot be written.
    """
    rows, lines, notes = strips(explanation), _lines(explanation.tinted_words(), LEFT), _notes(explanation)
    images = total_height(rows) + 0.3
    words, below = 0.45 + LINE * len(lines), 0.25 + NOTE * len(notes)
    evidence = HEADING + ROW * max(count_evidence(explanation), 1) + AXIS
    labels = HEADING + ROW * max(min(len(explanation.labels), MOST_LABELS), 1) + AXIS + 0.45
    height = EDGE + max(images + words + below, evidence + labels)
    with rc_context({"font.size": 10, "axes.titlesize": 12, "text.color": INK, "axes.titlelocation": "left"}):
        figure = Figure(figsize=(WIDTH, height), dpi=150, facecolor="white")
        draw_strips(figure, rows)
        _draw_words(axes_at(figure, EDGE, images, LEFT, words), lines, words, len(explanation.pictures) > 1)
        _draw_notes(axes_at(figure, EDGE, images + words, LEFT, below), notes, below)
        draw_evidence(axes_at(figure, BARS, HEADING, BARS_WIDTH, evidence - HEADING - AXIS), explanation)
        draw_labels(axes_at(figure, BARS, evidence + HEADING, BARS_WIDTH, labels - HEADING - AXIS - 0.45), explanation)
        try:
            with replaced(Path(file)) as partial:
                figure.savefig(partial, format="png", metadata={"Software": None})
        except UserError as error:
            raise UserError(str(error).replace("cannot be written", "cannot write the picture")) from None


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


def _draw_words(axes: Axes, lines: list[list[_Placed]], height: float, several: bool) -> None:
    axes.set(xlim=(0, LEFT), ylim=(height, 0))
    axes.text(0, 0.1, "Draft", fontsize=12, va="center")
    for number, line in enumerate(lines):
        middle = 0.5 + LINE * number
        for word, left, width in line:
            axes.add_patch(FancyBboxPatch((left, middle - 0.13), width, 0.26, lw=0, facecolor=tint(word),
                                          boxstyle="round,pad=0.012,rounding_size=0.03"))  # fmt: skip
            axes.text(left, middle + 0.01, _plain(word.text), fontsize=TEXT_SIZE, va="center_baseline")
    handles = [Patch(color=IMAGE, label=f"from the image{'s' * several}"), Patch(color=VITALS, label="from the vitals"),
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
