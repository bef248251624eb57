"""Plot each label's ROC, precision-recall, reliability, decision and risk-coverage curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from vlm.evaluation.operating_points import DIGITS, Points, is_measured
from vlm.evaluation.scoring import CaseScores, ranked
from vlm.evaluation.style import STYLE, TRAIN, VALIDATION, new_figure, save_figure
from vlm.statistics import probability
from vlm.statistics.intervals import FEWEST_PATIENTS, draw_weights, smallest_class

MOST_LABELS = 6
DRAWS = 400
FEW = 5
"""Minimum cases of a reliability bin; one with fewer is drawn hollow and left out of the line."""
GRID = np.linspace(0, 1, 101)


def probability_figure(
    scores: CaseScores, probabilities: np.ndarray, labels: Sequence[str], patients: np.ndarray, file: Path
) -> None:
    """Plot one row a label (the first six with both classes), with patient-bootstrap bands if there are enough."""
    classes = [np.unique(column[~np.isnan(column)]) for column in scores.targets.T]
    rows = [k for k in range(len(labels)) if len(classes[k]) == 2][:MOST_LABELS]
    if not rows:
        return
    with rc_context({**STYLE, "font.size": 10}):
        figure, grid = new_figure(len(rows), 4, figsize=(14, 3.4 * len(rows)), squeeze=False)
        for axes, k in zip(grid, rows, strict=True):
            known = ~np.isnan(scores.targets[:, k])
            y, p = scores.targets[known, k], probabilities[known, k]
            weights = _draws(patients[known], y)
            _roc(axes[0], y, ranked(scores.logits[known, k]), weights, labels[k].replace("_", " "))
            _precision_recall(axes[1], y, ranked(scores.logits[known, k]), weights)
            _reliability(axes[2], y, p)
            _decision(axes[3], y, p)
        save_figure(figure, file)


def _draws(patients: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Draw case weights under resampled patients (D × N); none if a class has fewer than ten patients."""
    _, group = np.unique(patients.astype(str), return_inverse=True)
    if smallest_class(group, y) < FEWEST_PATIENTS:
        return np.empty((0, len(y)))
    return draw_weights(group, DRAWS, np.random.default_rng(0))


def _curve(y: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the weights of true and false positives at each threshold from the highest, D × (T + 1)."""
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
    predicted = [p[bins == b].mean() for b in filled]
    observed = [y[bins == b].mean() for b in filled]
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls=":")
    many = [place for place, b in enumerate(filled) if counts[b] >= FEW]
    axes.plot([predicted[place] for place in many], [observed[place] for place in many], color=TRAIN, lw=1)
    sizes = 20 + 160 * counts[filled] / counts.max()
    colours = [TRAIN if counts[b] >= FEW else "white" for b in filled]  # hollow: too few cases for a frequency
    axes.scatter(predicted, observed, s=sizes, c=colours, edgecolors=TRAIN, zorder=3, clip_on=False)
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


def risk_coverage_figure(
    scores: CaseScores,
    probabilities: np.ndarray,
    points: Points,
    labels: Sequence[str],
    patients: np.ndarray,
    file: Path,
) -> None:
    """Plot the error of the decisions against the share kept, a panel for each label, a line for each of two points."""
    shown = [k for k, label in enumerate(labels) if any(map(is_measured, points.get(label, {}).values()))][:MOST_LABELS]
    if not shown:
        return
    columns = min(3, len(shown))
    with rc_context({**STYLE, "font.size": 10}):
        size = (4.6 * columns, 3.4 * -(-len(shown) // columns))
        figure, grid = new_figure(-(-len(shown) // columns), columns, figsize=size, squeeze=False)
        for axes, k in zip(grid.flat, shown, strict=False):
            known = ~np.isnan(scores.targets[:, k])
            y, p = scores.targets[known, k], np.round(probabilities[known, k], DIGITS)
            weights = _draws(patients[known], y)
            rows = {name: row for name, row in points[labels[k]].items() if is_measured(row)}
            for (name, row), color in zip(rows.items(), (TRAIN, VALIDATION), strict=False):
                _risk(axes, y, p, row["threshold"]["value"], weights, name.replace("_", " "), color)
            axes.set(title=labels[k].replace("_", " "), xlabel="share kept, most certain first", xlim=(0, 1),
                     ylabel="share of them wrong", ylim=(0, None))  # fmt: skip
            axes.legend(frameon=False, fontsize=8)
        for axes in list(grid.flat)[len(shown) :]:
            axes.remove()
        save_figure(figure, file)


def _risk(
    axes: Axes, y: np.ndarray, p: np.ndarray, threshold: float, weights: np.ndarray, name: str, color: str
) -> None:
    wrong = (p >= threshold) != (y == 1)
    kept, risk = probability.risk_coverage(wrong, probability.certainty(p, threshold))(
        np.vstack([np.ones(len(y)), weights])
    )
    shares = kept / kept[:, -1:]
    curves = [np.interp(GRID, s[s > 0], one[s > 0]) for s, one in zip(shares[1:], risk[1:], strict=True)]
    if curves:
        axes.fill_between(GRID, *np.quantile(curves, [0.025, 0.975], axis=0), color=color, alpha=0.15, lw=0)
    axes.plot(shares[0], risk[0], color=color, label=f"{name} (at {threshold:.3g})")
