"""Style, create and save figures."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
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
}


def save_figure(figure: Figure, file: Path, trim: bool = False) -> None:
    """Lay a figure out and write it as a PNG, in an atomic write; `trim` cuts margins that a fixed aspect leaves."""
    with replaced(file) as partial:
        if trim:
            figure.savefig(partial, format="png", bbox_inches="tight")
        else:  # `savefig` would draw every axis once more, for a layout that stands
            figure.tight_layout()
            FigureCanvasAgg(figure).print_png(partial)


def new_figure(
    rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], squeeze: bool = True, sharey: bool = False
) -> tuple[Figure, Any]:
    """Create a figure and its axes without pyplot, which would keep figures alive and choose a GUI backend."""
    figure = Figure(figsize)
    return figure, figure.subplots(rows, columns, squeeze=squeeze, sharey=sharey)
