"""Draw the heat of a label and of words over each image of a case: rows of panels, side by side."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlm.data.images.color import rgb
from vlm.explanation.bars import FAINT, NOTHING, short
from vlm.explanation.result import ExplainedWords, Explanation, overlay

MOST_COLUMNS = 4
"""Most images of a study side by side."""

# Inches.
EDGE, LEFT, GAP = 0.35, 8.3, 0.2
"""Margin of the picture, width of the left column, space between two panels."""
HEADING, HEADED, CAPTIONED = 0.62, 0.8, 0.34
"""Space above a row: of titles of two lines, of a heading and captions, of captions alone."""
TALLEST_IMAGE, TALLEST_OF_STUDY = 4.6, 3.2


class Panel(NamedTuple):
    """One image with a heat over it."""

    caption: str
    pixels: np.ndarray | None
    """H × W × 3 uint8; None for a place without an image."""


class Strip(NamedTuple):
    """A row of panels."""

    panels: list[Panel]
    columns: int
    above: float
    """Space above the panels, inches."""
    study: bool = False
    """True for images of a study, which stand in columns."""
    heading: str = ""
    """One line over all captions."""

    @property
    def height(self) -> float:
        """Height of the tallest panel, inches."""
        return max(self.size(panel)[1] for panel in self.panels)

    def size(self, panel: Panel) -> tuple[float, float]:
        """Return width and height of a panel, inches, in the image's aspect ratio."""
        if panel.pixels is None:
            return LEFT, 1.0
        height, width = panel.pixels.shape[:2]
        scale = min(self.slot / width, (TALLEST_OF_STUDY if self.study else TALLEST_IMAGE) / height)
        return width * scale, height * scale

    @property
    def slot(self) -> float:
        """Width of a column, inches."""
        return min((LEFT - GAP * (self.columns - 1)) / self.columns, TALLEST_IMAGE)


def strips(explanation: Explanation) -> list[Strip]:
    """Lay out the leading label and the words with the largest contribution of the images; a study has rows of each."""
    images, label, words = explanation.pictures, explanation.leading_label, _most_seen(explanation)
    if not images:
        return [Strip([Panel("Image", None)], 1, HEADING)]
    if len(images) == 1:
        panels = _single(explanation)
        return [Strip(panels, len(panels), HEADING)]
    names, rows = [image.name for image in images], []
    if label is not None:
        title = f"{label.name} {label.probability:.1%}: where the label comes from"
        rows += _rows(explanation, label.name, title, names)
    if words is not None:
        captions = [f"{name}: {share:.0%}" for name, share in zip(names, words.image_shares, strict=True)]
        title = f"“{short(words.text, 40)}”: where the words come from, and the share of each image"
        rows += _rows(explanation, words.text, title, captions)
    return rows or _rows(explanation, None, "Images", names)


def _single(explanation: Explanation) -> list[Panel]:
    """Make the panels of a case with one image."""
    label, words, panels = explanation.leading_label, _most_seen(explanation), []
    if label is not None:
        title = f"{label.name} {label.probability:.1%}\nwhere the label comes from"
        panels.append(Panel(title, overlay(explanation, label.name)))
    if words is not None:
        title = f"“{short(words.text, 40)}”\nwhere the words come from"
        panels.append(Panel(title, overlay(explanation, words.text)))
    return panels or [Panel("Image", rgb(explanation.pictures[0].pixels))]


def _rows(explanation: Explanation, name: str | None, title: str, captions: list[str]) -> list[Strip]:
    """Make the rows of one map over all images; without a name the images alone."""
    count = len(captions)
    columns = -(-count // -(-count // MOST_COLUMNS))  # five images are three and two
    shown = [rgb(picture.pixels) for picture in explanation.pictures[:count]]
    pixels = shown if name is None else [overlay(explanation, name, n) for n in range(count)]
    panels = [Panel(short(caption, 96 // columns), image) for caption, image in zip(captions, pixels, strict=True)]
    return [
        Strip(panels[start : start + columns], columns, CAPTIONED if start else HEADED, True, "" if start else title)
        for start in range(0, count, columns)
    ]


def _most_seen(explanation: Explanation) -> ExplainedWords | None:
    seen = [words for words in explanation.passages if words.heat is not None and words.image > NOTHING]
    return max(seen, key=lambda words: words.image, default=None)


def total_height(rows: list[Strip]) -> float:
    """Add up the heights of rows with the space above each, inches."""
    return sum(row.above + row.height for row in rows)


def draw_strips(figure: Figure, rows: list[Strip]) -> None:
    """Draw rows of panels from the upper left corner down."""
    top = 0.0
    for row in rows:
        if row.heading:
            heading = axes_at(figure, EDGE, top, LEFT, row.above)
            heading.text(0, 1 - 0.36 / row.above, row.heading, fontsize=12, va="center")
        top += row.above
        left = EDGE
        for panel in row.panels:
            width, height = row.size(panel)
            axes = axes_at(figure, left, top, width, height)
            axes.set_title(panel.caption, fontsize=10 if row.study else 12)
            left += (row.slot if row.study else max(width, 2.2)) + GAP  # a single image leaves room for its title
            _draw_panel(axes, panel.pixels)
        top += row.height


def _draw_panel(axes: Axes, pixels: np.ndarray | None) -> None:
    if pixels is None:
        axes.set_facecolor("#f4f4f4")
        axes.text(0.5, 0.5, "No image was read.", ha="center", va="center", transform=axes.transAxes, color=FAINT)
    else:
        axes.imshow(pixels, interpolation="lanczos", aspect="auto")


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes without a frame at a place in inches from the upper left corner."""
    wide, tall = figure.get_size_inches()
    axes = figure.add_axes((left / wide, 1 - (top + height) / tall, width / wide, height / tall))
    axes.spines[:].set_visible(False)
    axes.set(xticks=[], yticks=[])
    return axes
