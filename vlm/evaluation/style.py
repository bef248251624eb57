"""Style, create and save figures."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vlm.atomic import replaced

TRAIN, VALIDATION = "#3b6ea8", "#d9822b"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.dpi": 150,
    "savefig.bbox": "tight",
}


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG in an atomic write."""
    with replaced(file) as partial:
        figure.savefig(partial, format="png")


def new_figure(
    rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], squeeze: bool = True, sharey: bool = False
) -> tuple[Figure, Any]:
    """Create a figure and its axes without pyplot, which would keep figures alive and choose a GUI backend."""
    figure = Figure(figsize)
    return figure, figure.subplots(rows, columns, squeeze=squeeze, sharey=sharey)
