"""Draw a draft on pages of A4: as a PDF with selectable text, and as pictures."""

import textwrap
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm.errors import require
from vlm.inference.fhir import Software
from vlm.plain import printable
from vlm.report import NOTICE, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS, ROWS = 84, 64
"""Characters of a line, and lines of a page."""
MOST_PAGES = 40
A4 = 8.27, 11.69
"""Width and height of a page, inches."""
DOTS_PER_INCH = 150
"""Of a picture: small letters are read without magnifying."""
TITLE = "Draft of a report"
MARK = "DRAFT, NOT FOR DIAGNOSIS"
"""Mark at the head of each page."""
FONT = "DejaVu Sans Mono"
"""Comes with Matplotlib; it has Latin, Greek and Cyrillic letters."""


def page_text(report: Report, about: Software) -> str:
    """Format what the page says: as in a terminal, and which software wrote it."""
    software = f"clinical-vlm {about.version}, adapter {about.adapter[:16]}, base model {about.base}"
    return f"{NOTICE}\n\n{report}\n\nNot verified. Written by {software}."


def draw_pdf(text: str) -> bytes:
    """Print a text on pages of A4; a character without a glyph becomes `?`."""
    require("matplotlib", "the PDF of a draft needs matplotlib")
    from matplotlib import rc_context
    from matplotlib.backends.backend_pdf import PdfPages

    file = BytesIO()
    with rc_context({"pdf.fonttype": 42}), PdfPages(file, metadata={"Title": TITLE, "Creator": "clinical-vlm"}) as pdf:
        for figure in _figures(text):
            pdf.savefig(figure)
    return file.getvalue()


def draw_pictures(text: str) -> Iterator[np.ndarray]:
    """Yield the same pages as pictures, H × W of 150 dots an inch, uint8, black on white."""
    require("matplotlib", "the picture of a draft needs matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for figure in _figures(text):
        figure.set_dpi(DOTS_PER_INCH)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        yield np.asarray(canvas.buffer_rgba())[..., 0].copy()  # H × W × 4 → H × W: the page is grey


def _figures(text: str) -> "Iterator[Figure]":
    """Yield the pages, the mark at the head and the notice at the foot of each."""
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont(FONT)).get_charmap()
    lines = list(_lines("".join(x if x == "\n" or ord(x) in known else "?" for x in printable(text))))
    pages = [lines[start : start + ROWS] for start in range(0, len(lines), ROWS)][:MOST_PAGES]
    for number, page in enumerate(pages, 1):
        figure = Figure(figsize=A4)
        style: dict[str, Any] = {"family": FONT, "fontsize": 9, "parse_math": False}  # a `$` is no formula
        figure.text(0.5, 0.975, MARK, ha="center", **style | {"fontsize": 12, "weight": "bold"})
        figure.text(0.07, 0.96, "\n".join(page), va="top", linespacing=1.25, **style)
        figure.text(0.07, 0.03, f"{NOTICE} Page {number} of {len(pages)}", **style)
        yield figure


def _lines(text: str) -> Iterator[str]:
    for paragraph in text.replace("\t", " ").split("\n"):
        yield from textwrap.wrap(paragraph, COLUMNS, replace_whitespace=False, drop_whitespace=False) or [""]
