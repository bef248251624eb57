"""Compare the drafts of two times: have vitals, probabilities, findings or faults changed? `clinical-vlm drift A B`."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency, ks_2samp

from vlm.atomic import make_folder, replace_file, writing
from vlm.errors import UserError
from vlm.findings.labeller import Labeller
from vlm.resources import render
from vlm.statistics.estimate import undefined
from vlm.untrusted import parse_json

LONGEST_LINE = 4 << 20
"""Most bytes of a line."""
FEWEST = 30
"""Fewest drafts on each side for a comparison."""
NOTABLE = 0.1
"""Smallest distance, KS or PSI, that is told: below it a PSI is usually called stable (Siddiqi, 2006)."""
MOST_KINDS = 50
"""Most different words of a quantity that is compared."""
RISK = 0.05
"""Probability of one alarm or more without any change: it is shared among all quantities (Bonferroni)."""
UNREAD = "faults: row that could not be read"
Values = dict[str, list[Any]]
"""Quantity, `kind: name` → a value for each draft: a number, a word, True or False, None where missing."""


def drift(reference: Path, later: Path, vocabulary: str, output: Path) -> dict[str, Any]:
    """Compare two files of drafts, and write drift.json and drift.html to a folder; they hold no text of a draft.

    Raises `UserError` for a file that holds no drafts, and for a folder `output` that is not empty.
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: not empty; name a new folder with --output")
    labeller = Labeller.load(vocabulary)
    before, after = (read_drafts(file, labeller) for file in (reference, later))
    counts = [len(next(iter(values.values()))) for values in (before, after)]
    result: dict[str, Any] = {"reference": counts[0], "later": counts[1], "quantities": compare_drafts(before, after)}
    with writing(output):
        make_folder(output)
    replace_file(output / "drift.json", json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    replace_file(output / "drift.html", render("vlm.evaluation", "drift.html.j2", notable=NOTABLE, risk=RISK, **result))
    return result


def read_drafts(file: Path, labeller: Labeller) -> Values:
    """Read what is compared of each draft of a JSON Lines file; its text is read for findings and then forgotten."""
    rows = [_quantities(row, f"{file}: line {number}", labeller) for number, row in enumerate(_lines(file), 1)]
    if not rows:
        raise UserError(f"{file}: holds no draft")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _lines(file: Path) -> Iterator[Any]:
    try:
        with file.open("rb") as read:
            for number, line in enumerate(iter(lambda: read.readline(LONGEST_LINE + 1), b""), 1):
                if len(line) > LONGEST_LINE:
                    raise UserError(f"{file}: line {number}: longer than {LONGEST_LINE >> 20} MiB")
                yield parse_json(line)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{file}: not the drafts of a table: {getattr(error, 'unquoted', 'no JSON')}") from None


def _quantities(row: Any, where: str, labeller: Labeller) -> dict[str, Any]:
    """Take from a line its vitals, probabilities, findings and faults."""
    if isinstance(row, Mapping) and "error" in row:
        return {UNREAD: True}
    parts = row if isinstance(row, Mapping) else {}
    vitals, probabilities, text = (parts.get(key) for key in ("vitals", "probabilities", "text"))
    if not (isinstance(vitals, Mapping) and isinstance(probabilities, Mapping) and isinstance(text, str)):
        raise UserError(f"{where}: no draft; give a file that `clinical-vlm draft --input` wrote")
    found = labeller.label(text)
    return {
        **{f"vitals: {name}": value for name, value in vitals.items() if isinstance(value, int | float | str)},
        **{f"probabilities: {name}": value for name, value in probabilities.items() if isinstance(value, int | float)},
        **{f"findings: {name}": name in found and found[name].status == "present" for name in labeller.names},
        "faults: draft not finished": parts.get("finished") is False,
        UNREAD: False,
    }


def compare_drafts(before: Values, after: Values) -> list[dict[str, Any]]:
    """Compare each quantity, the most distant first; `drifted` where distance and chance both say so."""
    rows: list[dict[str, Any]] = []
    sizes = [len(next(iter(values.values()))) for values in (before, after)]
    for name in dict.fromkeys([*before, *after]):
        a, b = (values.get(name, [None] * size) for values, size in zip((before, after), sizes, strict=True))
        if UNREAD in before and UNREAD in after and name != UNREAD:  # a row that was not read lacks no vital
            a, b = ([value for value, unread in zip(side, values[UNREAD], strict=True) if not unread]
                    for side, values in ((a, before), (b, after)))  # fmt: skip
        if not name.startswith("findings") or any(a) or any(b):
            rows += _compared(name, a, b)
    tested = sum(row["distance"]["value"] is not None for row in rows)
    for row in rows:
        value, p = row["distance"]["value"], row["p"]
        row["drifted"] = None if value is None else bool(value >= NOTABLE and p < RISK / tested)
    return sorted(rows, key=lambda row: -(row["distance"]["value"] or 0))


def _compared(name: str, a: Sequence[Any], b: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yield the comparison of the values, and of the share missing if any is."""
    known = [[value for value in values if value is not None] for values in (a, b)]
    numbers = not any(isinstance(value, str | bool) for values in known for value in values)
    yield {"name": name, **(_ks(*known) if numbers else _psi(*known))}
    if name.startswith("vitals") and len(known[0]) + len(known[1]) < len(a) + len(b):
        yield {"name": f"{name}, missing", **_psi([value is None for value in a], [value is None for value in b])}


def _ks(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Compare numbers by the distance of Kolmogorov and Smirnov, the largest between the shares below a value."""
    if why := _too_few(a, b):
        return {"test": "KS", "reference": len(a), "later": len(b), "distance": undefined(why), "p": None}
    found = ks_2samp(a, b)
    medians = {"reference_is": f"median {np.median(a):.4g}", "later_is": f"median {np.median(b):.4g}"}
    return {"test": "KS", "reference": len(a), "later": len(b), "distance": {"value": float(found.statistic)},
            "p": float(found.pvalue), **medians}  # fmt: skip


def _psi(a: Sequence[Any], b: Sequence[Any]) -> dict[str, Any]:
    """Compare words or yes and no by the population stability index, half a draft added to each count."""
    sides = [Counter(map(str, side)) for side in (a, b)]
    kinds = sorted(set().union(*sides))
    row: dict[str, Any] = {"test": "PSI", "reference": len(a), "later": len(b)}
    why = _too_few(a, b) or (f"more than {MOST_KINDS} different words" if len(kinds) > MOST_KINDS else "")
    if why:
        return {**row, "distance": undefined(why), "p": None}
    counts = np.array([[side[kind] for kind in kinds] for side in sides])  # 2 × kinds
    shares = (counts + 0.5) / (counts + 0.5).sum(axis=1, keepdims=True)
    distance = float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())
    p = float(chi2_contingency(counts, correction=False).pvalue) if len(kinds) > 1 else 1.0
    said = [", ".join(f"{kind} {share:.3f}" for kind, share in zip(kinds, side, strict=True) if kind != "False")
            for side in counts / counts.sum(axis=1, keepdims=True)]  # fmt: skip
    return {**row, "distance": {"value": distance}, "p": p, "reference_is": said[0], "later_is": said[1]}


def _too_few(a: Sequence[Any], b: Sequence[Any]) -> str:
    return "" if min(len(a), len(b)) >= FEWEST else f"{len(a)} and {len(b)} drafts have it; {FEWEST} of each are needed"


def lines(result: Mapping[str, Any]) -> list[str]:
    """Summarize a comparison in a line for each quantity that drifted."""
    rows = result["quantities"]
    told = [f"{result['reference']} drafts before, {result['later']} later; {len(rows)} quantities"]
    for row in rows:
        if row["drifted"]:
            told.append(f"  ! {row['name']}: {row['test']} {row['distance']['value']:.3f}, p {row['p']:.2g}; "
                        f"{row['reference_is']} → {row['later_is']}")  # fmt: skip
    return told if len(told) > 1 else [*told, "  no drift seen"]
