"""Format a check result as text, JSON or an HTML page."""

import io
import json
import textwrap
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from vlm.atomic import make_folder, replace_file, writing
from vlm.data.correlation import draw_matrix, pairwise_correlation
from vlm.data.prepare.check import CheckResult
from vlm.data.prepare.columns import missing
from vlm.data.prepare.notice import LEVELS
from vlm.data.prepare.pictures import Pair
from vlm.plain import escaped
from vlm.resources import data_uri, render

SIGNS = {"error": "✗", "warning": "!", "note": "·"}
INK, RANGE, PALE = "#1f5f8b", "#d7e8d4", "#c9d6df"
MOST_PAIRS = 12


def as_text(result: CheckResult) -> str:
    """Format as text: notices, the most serious first, then how the columns were recognised."""
    lines = [f"{result.table.name}: " + ", ".join(
        f"{sum(n.level == level for n in result.notices)} {level}s" for level in LEVELS)]  # fmt: skip
    for notice in result.notices:
        rows = f" (row {', '.join(map(str, notice.rows))})" if notice.rows else ""
        lines += textwrap.wrap(escaped(f"{SIGNS[notice.level]} {notice.message}{rows}"), 118, subsequent_indent="  ")
    lines.append("columns")
    for reason in result.roles.reasons:
        lines += textwrap.wrap(escaped(f"  {reason}"), 118, subsequent_indent="    ")
    return "\n".join(lines)


def as_json(result: CheckResult) -> str:
    """Format as JSON with stable keys: table, worst, columns, notices {level, check, message, rows}."""
    roles = result.roles
    columns = {name: getattr(roles, name) for name in ("patient", "image", "split", "view", "source", "license")}
    columns |= {"vitals": {column: vital.name for column, vital in roles.vitals.items()},
                "labels": list(roles.labels), "texts": list(roles.texts)}  # fmt: skip
    notices = [{"level": n.level, "check": n.check, "message": n.message, "rows": list(n.rows)} for n in result.notices]
    whole = {"table": result.table.name, "rows": len(result.frame), "worst": result.worst, "columns": columns}
    return json.dumps({**whole, "notices": notices}, indent=2, ensure_ascii=False) + "\n"


def write_html(result: CheckResult, file: Path) -> None:
    """Write one HTML page without scripts or network access."""
    thumbs = {picture.row: _jpeg(picture.thumb) for picture in result.pictures}
    page = render(
        "vlm.data.prepare",
        "page.html.j2",
        title=result.table.name,
        rows=len(result.frame),
        groups=[(level, [n for n in result.notices if n.level == level]) for level in LEVELS],
        reasons=result.roles.reasons,
        labels=_labels(result),
        figures=[(name, figure) for name, figure in (
            ("Values", _histograms(result)), ("Empty cells", _gaps(result)), ("Correlations", _correlations(result)),
        ) if figure],
        pairs=[(pair, thumbs[pair.first], thumbs[pair.second], _whose(result, pair)) for pair in
               sorted(result.pairs, key=lambda pair: _whose(result, pair) == "one patient")[:MOST_PAIRS]],
        more=max(len(result.pairs) - MOST_PAIRS, 0),
    )  # fmt: skip
    with writing(file):
        make_folder(file.parent)
    replace_file(file, page)


def _whose(result: CheckResult, pair: Pair) -> str:
    if not result.roles.patient:
        return "no patient column"
    patients = result.frame[result.roles.patient]
    return "one patient" if patients.iloc[pair.first] == patients.iloc[pair.second] else "different patients"


def _labels(result: CheckResult) -> list[dict[str, object]]:
    return [
        {"name": name, "positive": int((y == 1).sum()), "negative": int((y == 0).sum()),
         "unknown": int(np.isnan(y).sum()), "share": float(np.nanmean(y)) if (~np.isnan(y)).any() else 0.0}
        for name, y in result.roles.labels.items()
    ]  # fmt: skip


def _histograms(result: CheckResult) -> str:
    """Plot a histogram of each vital over its plausible range."""
    numbers = result.numbers
    vitals = [
        (c, v) for c, v in result.roles.vitals.items() if not v.categories and np.isfinite(numbers[c]).sum() >= 10
    ]
    if not vitals:
        return ""
    across = min(4, len(vitals))
    down = -(-len(vitals) // across)
    figure = Figure(figsize=(3 * across, 2.1 * down))
    axes = figure.subplots(down, across, squeeze=False)
    for ax, (column, vital) in zip(axes.flat, vitals, strict=False):
        x = numbers[column][np.isfinite(numbers[column])]
        low, high = vital.plausible or (x.min(), x.max())
        left, right = min(x.min(), max(low, x.mean() - 6 * x.std())), max(x.max(), min(high, x.mean() + 6 * x.std()))
        ax.axvspan(max(low, left), min(high, right), color=RANGE, lw=0)
        ax.hist(x, bins=30, range=(left, right if right > left else left + 1), color=INK)
        ax.set_title(f"{column}{f' ({vital.unit})' if vital.unit else ''}, n = {len(x):,}", fontsize=9)
    for ax in axes.flat[len(vitals) :]:
        ax.axis("off")
    return _png(figure)


def _gaps(result: CheckResult) -> str:
    """Plot the share of empty cells of each column and of unknown values of each label."""
    shares = {column: missing(result.frame[column]).mean() for column in (*result.roles.vitals, *result.roles.texts)}
    shares |= {f"label {name}": np.isnan(y).mean() for name, y in result.roles.labels.items()}
    if not shares:
        return ""
    figure = Figure(figsize=(7, 0.3 * len(shares) + 0.6))
    ax = figure.subplots()
    names = sorted(shares, key=lambda name: shares[name])
    ax.barh(names, [1] * len(names), color=PALE)
    ax.barh(names, [shares[name] for name in names], color=INK)
    ax.set(xlim=(0, 1), xlabel="share of empty cells")
    return _png(figure)


def _correlations(result: CheckResult) -> str:
    """Plot Pearson correlations of vitals and labels, each of at least ten pairs."""
    columns = {c: x for c, x in result.numbers.items() if np.isfinite(x).sum() >= 10} | result.roles.labels
    if len(columns) < 2:
        return ""
    n = len(columns)
    figure = Figure(figsize=(0.55 * n + 2.5, 0.5 * n + 1.5))
    matrix = pairwise_correlation(np.column_stack(list(columns.values())))
    draw_matrix(figure.subplots(), matrix, list(columns), 7, written=n <= 14)
    return _png(figure)


def _png(figure: Figure) -> str:
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    figure.tight_layout()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return data_uri("image/png", stream.getvalue())


def _jpeg(thumb: np.ndarray) -> str:
    large = cv2.resize(thumb, (128, 128), interpolation=cv2.INTER_CUBIC)
    return data_uri("image/jpeg", cv2.imencode(".jpg", large)[1].tobytes())
