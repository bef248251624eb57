"""The look of every figure, and how one is written."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
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
    """Write a figure as a PNG, complete or not at all, and close it."""
    try:
        with replaced(file) as partial:
            figure.savefig(partial, format="png")
    finally:
        plt.close(figure)
