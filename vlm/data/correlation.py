"""Compute and draw pairwise correlations of columns with missing values."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

FEWEST = 10
"""Minimum rows with both values for a correlation: five pairs can give −0.98 by chance."""


def pairwise_correlation(values: np.ndarray) -> np.ndarray:
    """Compute Pearson correlations of N × C values over the rows with both; C × C, NaN under `FEWEST` rows."""
    columns = values.shape[1]
    matrix = np.full((columns, columns), np.nan)
    for i, j in np.ndindex(columns, columns):
        both = ~np.isnan(values[:, i]) & ~np.isnan(values[:, j])
        a, b = values[both, i].astype(np.float64), values[both, j].astype(np.float64)
        if len(a) >= FEWEST and a.std() > 0 and b.std() > 0:
            matrix[i, j] = np.corrcoef(a, b)[0, 1]
    return matrix


def draw_matrix(axes: Axes, matrix: np.ndarray, names: Sequence[str], size: float, written: bool = True) -> AxesImage:
    """Draw a correlation matrix (C × C) as a heat map, with its numbers in `size` points if they are `written`."""
    image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    for row, column in np.ndindex(*matrix.shape) if written else ():
        value = matrix[row, column]
        text = "–" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
        colour = "white" if abs(value) > 0.6 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image
