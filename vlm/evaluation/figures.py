"""The figures of a run, as PNG files that read well in print and on a screen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlm.atomic import make_folder, replaced, writing
from vlm.config import Config
from vlm.data.cohort import Cohort
from vlm.data.storage import matrix
from vlm.evaluation import probability
from vlm.evaluation.intervals import FEWEST_PATIENTS, draw_weights, smallest_class
from vlm.evaluation.scoring import CaseScores, ranked

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
MOST_LABELS = 6
DRAWS = 400
FEW = 5
"""A bin of the reliability diagram with fewer cases is drawn hollow and joins no line."""
GRID = np.linspace(0, 1, 101)


def draw_figures(
    folder: Path,
    cohort: Cohort,
    config: Config,
    scores: CaseScores,
    probabilities: np.ndarray,
    patients: np.ndarray,
    metrics: Mapping[str, Any],
    log: Sequence[dict[str, Any]],
) -> None:
    """Correlations of all cases, the losses of the run, the head's probabilities (N × K), and the ablation."""
    with writing(folder):
        make_folder(folder)
    truth = np.array(cohort.dataset["probability"], dtype=np.float64)
    vitals = matrix(cohort.dataset, "vitals", len(cohort.schema)).astype(np.float64)
    name = "pathology probability"
    if np.isnan(truth).all() and cohort.labels:
        truth, name = (
            matrix(cohort.dataset, "labels", len(cohort.labels)).astype(np.float64)[:, 0],
            f"label {cohort.labels[0]}",
        )
    table = np.column_stack([vitals, truth])
    title = f"Vitals and pathology, {len(table):,} cases"
    correlation_figure(table, [*cohort.schema.names, name], folder / "correlation.png", title)
    if log:
        loss_figure(log, folder / "losses.png", config.loss.head_only_steps)
    probability_figure(scores, probabilities, cohort.labels, patients, folder / "probability.png")
    ablation_figure(metrics["ablation"], folder / "ablation.png")


def ablation_figure(ablation: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """What each arm changes against the cases as given, with intervals."""
    panels = {
        "text_loss_change": "Text loss per token",
        "finding_f1_change": "Finding F1",
        "auroc_change": "AUROC, mean of labels",
        "drafts_changed": "Share of drafts changed",
    }
    arms = list(ablation)[::-1]
    if not arms:
        return
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(1, len(panels), figsize=(14, 0.8 + 0.42 * len(arms)), sharey=True)
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
        figure.tight_layout()
        save_figure(figure, file)


def correlation_figure(values: np.ndarray, names: Sequence[str], file: Path, title: str) -> np.ndarray:
    """Pearson correlations of columns (N × C, NaN where missing), pair by pair over the rows that have both.

    The source paper's Figure 1. Returns the matrix (C × C, NaN where fewer than `FEWEST` rows have both).
    """
    matrix = pairwise_correlation(values)
    with plt.rc_context({**STYLE, "axes.grid": False}):
        side = 1.6 + 0.75 * len(names)
        figure, axes = plt.subplots(figsize=(side + 0.6, side))
        image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
        for row, column in np.ndindex(*matrix.shape):
            value = matrix[row, column]
            text = "–" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
            axes.text(column, row, text, ha="center", va="center", color="white" if abs(value) > 0.6 else "black")
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title(title)
        figure.colorbar(image, ax=axes, shrink=0.8, label="Pearson correlation")
        save_figure(figure, file)
    return matrix


FEWEST = 10
"""Rows that have both values, below which no correlation is shown: five pairs make −0.98 of nothing."""


def pairwise_correlation(values: np.ndarray) -> np.ndarray:
    """Pearson correlation of each pair of columns over the rows that have both values; NaN under `FEWEST` of them."""
    columns = values.shape[1]
    matrix = np.full((columns, columns), np.nan)
    for i, j in np.ndindex(columns, columns):
        both = ~np.isnan(values[:, i]) & ~np.isnan(values[:, j])
        a, b = values[both, i].astype(np.float64), values[both, j].astype(np.float64)
        if len(a) >= FEWEST and a.std() > 0 and b.std() > 0:
            matrix[i, j] = np.corrcoef(a, b)[0, 1]
    return matrix


def loss_figure(rows: Sequence[dict[str, Any]], file: Path, head_only_steps: int = 0) -> None:
    """Classification and text loss of training and validation over the steps: the source paper's Figure 2."""
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
        _loss_panel(left, rows, "loss_bce", "Classification loss (BCE)", 0)
        _loss_panel(right, rows, "loss_ce", "Text loss (CE per token)", head_only_steps)
        if head_only_steps:
            right.axvspan(0, head_only_steps, color="0.92", zorder=0)
            right.text(head_only_steps / 2, 0.5, "head only", transform=right.get_xaxis_transform(),
                       ha="center", va="center", fontsize=9, color="0.4")  # fmt: skip
        if left.get_lines():
            left.legend(frameon=False)
        figure.tight_layout()
        save_figure(figure, file)


def _loss_panel(axes: Axes, rows: Sequence[dict[str, Any]], name: str, title: str, first_step: int) -> None:
    train = [(row["step"], row[name]) for row in rows if row.get(name) is not None and row["step"] > first_step]
    validation = [(row["step"], row[f"eval_{name}"]) for row in rows if row.get(f"eval_{name}") is not None]
    if train:
        axes.plot(*zip(*train, strict=True), color=TRAIN, label="training")
    if validation:
        axes.plot(*zip(*validation, strict=True), color=VALIDATION, marker="o", markersize=5, label="validation")
    axes.set(title=title, xlabel="optimizer step", ylim=(0, None), xlim=(0, None))


def probability_figure(
    scores: CaseScores, probabilities: np.ndarray, labels: Sequence[str], patients: np.ndarray, file: Path
) -> None:
    """One row a label (the first six that have both classes), with patient-bootstrap bands where there are enough."""
    rows = [k for k in range(len(labels)) if len(np.unique(_known(scores.targets[:, k]))) == 2][:MOST_LABELS]
    if not rows:
        return
    with plt.rc_context({**STYLE, "font.size": 10}):
        figure, grid = plt.subplots(len(rows), 4, figsize=(14, 3.4 * len(rows)), squeeze=False)
        for axes, k in zip(grid, rows, strict=True):
            known = ~np.isnan(scores.targets[:, k])
            y, p = scores.targets[known, k], probabilities[known, k]
            weights = _draws(patients[known], y)
            _roc(axes[0], y, ranked(scores.logits[known, k]), weights, labels[k].replace("_", " "))
            _precision_recall(axes[1], y, ranked(scores.logits[known, k]), weights)
            _reliability(axes[2], y, p)
            _decision(axes[3], y, p)
        figure.tight_layout()
        save_figure(figure, file)


def _known(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _draws(patients: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weights of the cases under resampled patients (D × N); none where a class has under ten patients."""
    _, group = np.unique(patients.astype(str), return_inverse=True)
    if smallest_class(group, y) < FEWEST_PATIENTS:
        return np.empty((0, len(y)))
    return draw_weights(group, DRAWS, np.random.default_rng(0))


def _curve(y: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of true and of false positives at each threshold from the highest, D × (T + 1)."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    w = weights[:, order]
    true, false = np.cumsum(w * y[order], axis=1)[:, ends], np.cumsum(w * (1 - y[order]), axis=1)[:, ends]
    zero = np.zeros((len(weights), 1))
    return np.hstack([zero, true]), np.hstack([zero, false])


def _roc(axes: Axes, y: np.ndarray, scores: np.ndarray, weights: np.ndarray, label: str) -> None:
    true, false = _curve(y, scores, np.vstack([np.ones(len(y)), weights]))
    curves = [np.interp(GRID, f / f[-1], t / t[-1]) for t, f in zip(true, false, strict=True) if t[-1] and f[-1]]
    if len(curves) > 1:
        axes.fill_between(GRID, *np.quantile(curves[1:], [0.025, 0.975], axis=0), color=TRAIN, alpha=0.18, lw=0)
    axes.plot(false[0] / false[0, -1], true[0] / true[0, -1], color=TRAIN)
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls=":")
    area = probability.auroc(y, scores)(np.ones((1, len(y))))[0]
    axes.set(title=f"{label}: AUROC {area:.3f}", xlabel="1 − specificity", ylabel="sensitivity")


def _precision_recall(axes: Axes, y: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> None:
    true, false = _curve(y, scores, np.vstack([np.ones(len(y)), weights]))
    with np.errstate(invalid="ignore"):
        precision = np.where(true + false > 0, true / (true + false), 1.0)
    curves = [np.interp(GRID, t / t[-1], p) for t, p in zip(true, precision, strict=True) if t[-1]]
    if len(curves) > 1:
        axes.fill_between(GRID, *np.quantile(curves[1:], [0.025, 0.975], axis=0), color=TRAIN, alpha=0.18, lw=0)
    axes.plot(true[0] / true[0, -1], precision[0], color=TRAIN)
    axes.axhline(y.mean(), color="0.6", lw=1, ls=":")
    area = probability.average_precision(y, scores)(np.ones((1, len(y))))[0]
    axes.set(title=f"AUPRC {area:.3f}, prevalence {y.mean():.2f}", xlabel="recall", ylabel="precision", ylim=(0, 1.03))


def _reliability(axes: Axes, y: np.ndarray, p: np.ndarray) -> None:
    bins = np.minimum((p * probability.BINS).astype(int), probability.BINS - 1)
    counts = np.bincount(bins, minlength=probability.BINS)
    filled = np.flatnonzero(counts)
    said = [p[bins == b].mean() for b in filled]
    seen = [y[bins == b].mean() for b in filled]
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls=":")
    many = [place for place, b in enumerate(filled) if counts[b] >= FEW]
    axes.plot([said[place] for place in many], [seen[place] for place in many], color=TRAIN, lw=1)
    sizes = 20 + 160 * counts[filled] / counts.max()
    colours = [TRAIN if counts[b] >= FEW else "white" for b in filled]  # hollow: too few cases for a frequency
    axes.scatter(said, seen, s=sizes, c=colours, edgecolors=TRAIN, zorder=3, clip_on=False)
    error = probability.expected_calibration_error(y, p)(np.ones((1, len(y))))[0]
    axes.set(title=f"ECE {error:.3f}, Brier {np.mean((p - y) ** 2):.3f}", xlabel="probability said",
             ylabel="frequency seen", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))  # fmt: skip


def _decision(axes: Axes, y: np.ndarray, p: np.ndarray) -> None:
    thresholds = np.linspace(0.02, 0.9, 60)
    one = np.ones((1, len(y)))
    model = [probability.net_benefit(y, p, t)(one)[0] for t in thresholds]
    everyone = [probability.net_benefit(y, np.ones_like(p), t)(one)[0] for t in thresholds]
    axes.plot(thresholds, model, color=TRAIN, label="model")
    axes.plot(thresholds, everyone, color=VALIDATION, lw=1, label="treat all")
    axes.axhline(0, color="0.6", lw=1, ls=":", label="treat none")
    top = max(y.mean(), *model) + 0.03
    axes.set(title="Decision curve", xlabel="threshold", ylabel="net benefit", ylim=(-0.05, top))
    axes.legend(frameon=False, fontsize=8)


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG, complete or not at all, and close it."""
    try:
        with replaced(file) as partial:
            figure.savefig(partial, format="png")
    finally:
        plt.close(figure)
