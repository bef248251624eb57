"""Draw the figures of a run as PNG files for print and screen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from vlm.atomic import make_folder, writing
from vlm.config import Config
from vlm.data.cohort import Cohort
from vlm.data.correlation import draw_matrix, pairwise_correlation
from vlm.data.dataset import CaseDataset
from vlm.data.storage import hashes, matrix
from vlm.evaluation.curves import probability_figure, risk_coverage_figure
from vlm.evaluation.scoring import CaseScores
from vlm.evaluation.style import STYLE, TRAIN, VALIDATION, new_figure, save_figure

MOST_LABELS = 3
"""Labels in the correlation matrix; more would leave its numbers too small to read."""


def draw_figures(
    folder: Path,
    cohort: Cohort,
    config: Config,
    test: CaseDataset,
    scores: CaseScores,
    probabilities: np.ndarray,
    patients: np.ndarray,
    metrics: Mapping[str, Any],
    log: Sequence[dict[str, Any]],
) -> None:
    """Draw the correlations, the losses, the head's probabilities (N × K), risk and the ablation.

    `test` holds the N cases tested.
    """
    with writing(folder):
        make_folder(folder)
    columns = correlated_columns(cohort, hashes(test.rows, "id"), probabilities)
    title = f"Vitals and labels of {len(cohort.dataset):,} cases,\nprobabilities of the model for {len(test):,} unseen"
    if columns:
        correlation_figure(np.column_stack([*columns.values()]), [*columns], folder / "correlation.png", title)
    if log:
        loss_figure(log, folder / "losses.png", config.loss.head_only_steps)
    probability_figure(scores, probabilities, cohort.labels, patients, folder / "probability.png")
    points, file = metrics["operating_points"], folder / "risk_coverage.png"
    risk_coverage_figure(scores, probabilities, points, cohort.labels, patients, file)
    ablation_figure(metrics["ablation"], folder / "ablation.png")


def correlated_columns(cohort: Cohort, tested: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Collect the columns of the correlation matrix, each N long, NaN where missing, by their names.

    The vitals, a probability of pathology that the cohort itself has, and of the first labels what is known beside the
    model's probability (T × K) of the cases `tested` (T, hashes of their ids).
    """
    dataset = cohort.dataset
    vitals = matrix(dataset, "vitals", len(cohort.schema)).astype(np.float64)
    known = matrix(dataset, "labels", len(cohort.labels)).astype(np.float64)
    ids = hashes(dataset, "id")
    order = np.argsort(ids)
    model = np.full(known.shape, np.nan)
    model[order[np.searchsorted(ids, tested, sorter=order)]] = probabilities
    columns = dict(zip(cohort.schema.names, vitals.T, strict=True))
    truth = np.array(dataset["probability"], dtype=np.float64)
    if not np.isnan(truth).all():
        columns["pathology probability"] = truth
    for k, label in enumerate(cohort.labels[:MOST_LABELS]):
        columns |= {f"{label}, known": known[:, k], f"{label}, model": model[:, k]}
    return columns


def ablation_figure(ablation: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Plot each arm's change against the cases as given, with intervals."""
    panels = {
        "text_loss_change": "Text loss per token",
        "finding_f1_change": "Finding F1",
        "auroc_change": "AUROC, mean of labels",
        "drafts_changed": "Share of drafts changed",
    }
    arms = list(ablation)[::-1]
    if not arms:
        return
    with rc_context(STYLE):
        figure, grid = new_figure(1, len(panels), figsize=(14, 0.8 + 0.42 * len(arms)), sharey=True)
        for axes, (key, title) in zip(grid, panels.items(), strict=True):
            for place, arm in enumerate(arms):
                value, low, high = (ablation[arm][key][part] for part in ("value", "low", "high"))
                if value is None:
                    continue
                if low is not None:
                    axes.plot([low, high], [place, place], color=TRAIN, lw=2, alpha=0.5)
                axes.plot(value, place, "o", color=TRAIN)
            axes.axvline(0, color="0.6", lw=1, ls=":")
            axes.set_title(title, fontsize=11)
            axes.margins(x=0.15)
        grid[0].set_yticks(range(len(arms)), [arm.replace("_", " ") for arm in arms])
        grid[0].set_ylim(-0.6, len(arms) - 0.4)
        save_figure(figure, file)


def correlation_figure(values: np.ndarray, names: Sequence[str], file: Path, title: str) -> np.ndarray:
    """Plot the pairwise Pearson correlations of columns (N × C, NaN where missing), as the source paper's Figure 1.

    Returns the matrix (C × C, NaN where fewer than `FEWEST` rows have both values).
    """
    matrix = pairwise_correlation(values)
    with rc_context({**STYLE, "axes.grid": False}):
        side = 1.6 + 0.75 * len(names)
        figure, axes = new_figure(figsize=(side + 0.6, side))
        image = draw_matrix(axes, matrix, names, 11)
        axes.set_title(title)
        figure.colorbar(image, ax=axes, shrink=0.8, label="Pearson correlation")
        save_figure(figure, file, trim=True)
    return matrix


def loss_figure(rows: Sequence[dict[str, Any]], file: Path, head_only_steps: int = 0) -> None:
    """Plot classification and text loss of training and validation by step, as the source paper's Figure 2."""
    with rc_context(STYLE):
        figure, (left, right) = new_figure(1, 2, figsize=(10, 3.8))
        _loss_panel(left, rows, "loss_bce", "Classification loss (BCE)", 0)
        _loss_panel(right, rows, "loss_ce", "Text loss (CE per token)", head_only_steps)
        if head_only_steps:
            right.axvspan(0, head_only_steps, color="0.92", zorder=0)
            right.text(head_only_steps / 2, 0.5, "head only", transform=right.get_xaxis_transform(),
                       ha="center", va="center", fontsize=9, color="0.4")  # fmt: skip
        if left.get_lines():
            left.legend(frameon=False)
        save_figure(figure, file)


def _loss_panel(axes: Axes, rows: Sequence[dict[str, Any]], name: str, title: str, first_step: int) -> None:
    train = [(row["step"], row[name]) for row in rows if row.get(name) is not None and row["step"] > first_step]
    validation = [(row["step"], row[f"eval_{name}"]) for row in rows if row.get(f"eval_{name}") is not None]
    if train:
        axes.plot(*zip(*train, strict=True), color=TRAIN, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), color=VALIDATION, marker="o", markersize=5, label="validation")
    axes.set(title=title, xlabel="optimizer step", ylim=(0, None), xlim=(0, None))
