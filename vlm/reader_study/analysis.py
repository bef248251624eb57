"""Analyse a reader study: acceptability and errors by source, paired differences, agreement of readers, time."""

import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vlm.atomic import replace_file
from vlm.plain import escaped
from vlm.reader_study.answers import ERRORS, VERDICTS, Answers, read_answers
from vlm.reader_study.study_file import ANSWERS, OURS, Study, read_study
from vlm.resources import render
from vlm.statistics.estimate import Estimate, described, undefined
from vlm.statistics.intervals import FEWEST_PATIENTS, Statistic, mean, patient_bootstrap

DRAWS = 2000
GRADES = {name: grade for grade, name in enumerate(VERDICTS)}
"""Verdict → grade, 0 the best."""
AT_MOST = {"as_it_stands": 0, "at_most_minor_edits": 1}
"""Measure of acceptability → worst grade that counts."""


@dataclass(frozen=True)
class Judged:
    """The judgements of a study as tables."""

    texts: pd.DataFrame
    """A row for each text that a reader judged: reader, page, case, patient, text, grade, sources, each error."""
    pages: pd.DataFrame
    """A row for each page that a reader answered: reader, patient, sources, seconds, showings."""

    @property
    def sources(self) -> pd.DataFrame:
        """The texts, with a row for each of the sources that wrote one."""
        return self.texts.explode("sources").rename(columns={"sources": "source"})


def write_results(folder: Path) -> list[str]:
    """Analyse the answers so far and write results.json and results.html; returns a summary to print.

    Raises `UserError` for a folder without a study, and for answers that are not as they were written.
    """
    study = read_study(folder)
    answers, _ = read_answers(folder / ANSWERS, study)
    results = analyse(study, answers)
    replace_file(folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    page = render("vlm.reader_study", "results.html.j2", verdicts=VERDICTS, errors=ERRORS, show=described, **results)
    replace_file(folder / "results.html", page)
    return [*map(escaped, summary(results)), f"page: {folder / 'results.html'}"]


def analyse(study: Study, answers: Answers, draws: int = DRAWS) -> dict[str, Any]:
    """Compute all results as plain values; intervals by bootstrap over patients, with the same readers."""
    judged = tabulate(study, answers)
    rows, readers = judged.sources, range(1, len(study.readers) + 1)
    return {
        "format": 1,
        "run": study.run,
        "layout": study.layout,
        "cases": len(study.cases),
        "patients": len({case.patient for case in study.cases}),
        "same_texts": sum(len(text.sources) > 1 for case in study.cases for text in case.texts),
        "readers": {str(reader): _progress(study, judged, reader, draws) for reader in readers},
        "sources": {name: by_source(rows[rows["source"] == name], judged, study, draws) for name in study.sources},
        "differences": {name: difference(rows, name, draws) for name in study.sources if name != OURS},
        "agreement": {f"{a}, {b}": agreement(judged.texts, a, b, draws) for a, b in combinations(readers, 2)},
        "seconds": median_seconds(judged.pages, draws),
    }


def tabulate(study: Study, answers: Answers) -> Judged:
    """Lay the answers out as tables, and say again what was shown on each page."""
    texts, pages = [], []
    for (reader, number), answer in sorted(answers.items()):
        page = study.readers[reader - 1].pages[number - 1]
        case = study.cases[page.case]
        common = {"reader": reader, "page": number, "case": page.case, "patient": case.patient}
        for place, judgement in zip(page.texts, answer.judgements, strict=True):
            said = {"text": place, "grade": GRADES[judgement.verdict], "sources": case.texts[place].sources}
            texts.append(common | said | {kind: kind in judgement.errors for kind in ERRORS})
        sources = [name for place in page.texts for name in case.texts[place].sources]
        pages.append(common | {"sources": sources, "seconds": answer.seconds, "showings": answer.showings})
    known = ["reader", "page", "case", "patient"]
    return Judged(
        pd.DataFrame(texts, columns=[*known, "text", "grade", "sources", *ERRORS]),
        pd.DataFrame(pages, columns=[*known, "sources", "seconds", "showings"]),
    )


def by_source(rows: pd.DataFrame, judged: Judged, study: Study, draws: int) -> dict[str, Any]:
    """Measure one source: how often each verdict, acceptability, errors by kind, and time where a page has one text."""
    patients = rows["patient"]
    counts = {name: int((rows["grade"] == grade).sum()) for name, grade in GRADES.items()}
    accepted = {name: _share(rows["grade"] <= worst, patients, draws) for name, worst in AT_MOST.items()}
    errors = {kind: _share(rows[kind], patients, draws) for kind in ERRORS}
    some = _share(rows[list(ERRORS)].any(axis=1), patients, draws)
    result = {**_counted(rows), "verdicts": counts, "accepted": accepted, "any_error": some, "errors": errors}
    if study.layout == "single":
        of_it = judged.pages.merge(rows[["reader", "page"]], on=["reader", "page"])
        result["seconds"] = median_seconds(of_it, draws)
    return result


def difference(rows: pd.DataFrame, other: str, draws: int) -> dict[str, Any]:
    """Compare the draft with another source, paired by reader and case; a positive difference favours the draft."""
    keys = ["reader", "case", "patient"]
    sides = [rows.loc[rows["source"] == name, [*keys, "text", "grade"]] for name in (OURS, other)]
    pairs = sides[0].merge(sides[1], on=keys, suffixes=("", "_other"))
    accepted = {
        name: _estimate(mean(_numbers(pairs["grade"] <= worst) - _numbers(pairs["grade_other"] <= worst)),
                        pairs["patient"], draws)
        for name, worst in AT_MOST.items()
    }  # fmt: skip
    compared = np.sign(_numbers(pairs["grade_other"]) - _numbers(pairs["grade"]))
    verdicts = {name: int((compared == sign).sum()) for name, sign in (("better", 1), ("same", 0), ("worse", -1))}
    same = int((pairs["text"] == pairs["text_other"]).sum())
    return {**_counted(pairs), **verdicts, "same_text": same, "accepted": accepted}


def agreement(texts: pd.DataFrame, first: int, second: int, draws: int) -> dict[str, Any]:
    """Compare two readers on the texts that both judged: quadratically weighted kappa, and how often they agree."""
    keys = ["case", "text", "patient"]
    sides = [texts.loc[texts["reader"] == reader, [*keys, "grade"]] for reader in (first, second)]
    both = sides[0].merge(sides[1], on=keys, suffixes=("", "_other"))
    a, b = (both[name].to_numpy(dtype=np.int64) for name in ("grade", "grade_other"))
    why = "both readers gave one and the same verdict throughout" if len(both) else "no text was judged by both"
    kappa = _estimate(weighted_kappa(a, b, len(VERDICTS)), both["patient"], draws, why)
    return {**_counted(both), "kappa": kappa, "same_verdict": _share(both["grade"] == both["grade_other"],
                                                                     both["patient"], draws)}  # fmt: skip


def weighted_kappa(a: np.ndarray, b: np.ndarray, kinds: int) -> Statistic:
    """Build the statistic of Cohen's kappa with quadratic weights (1968) of grades a and b (N, from 0).

    It equals scikit-learn's `cohen_kappa_score`, which takes one draw at a time: 2,000 would take minutes.
    """
    cells = np.eye(kinds * kinds)[a * kinds + b]  # N × kinds²
    places = np.arange(kinds)
    penalty = np.subtract.outer(places, places) ** 2.0

    def statistic(weights: np.ndarray) -> np.ndarray:
        table = (weights @ cells).reshape(-1, kinds, kinds)  # D × kinds × kinds
        by_chance = table.sum(axis=2)[:, :, None] * table.sum(axis=1)[:, None, :]
        observed = (penalty * table).sum(axis=(1, 2)) * table.sum(axis=(1, 2))
        expected = (penalty * by_chance).sum(axis=(1, 2))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(expected > 0, 1 - observed / expected, np.nan)

    return statistic


def weighted_median(values: np.ndarray) -> Statistic:
    """Build the statistic of the median of N values."""
    order = np.argsort(values)
    ordered = values[order]

    def statistic(weights: np.ndarray) -> np.ndarray:
        reached = np.cumsum(weights[:, order], axis=1)  # D × N
        half = reached[:, -1:] / 2
        low, high = (reached >= half).argmax(axis=1), (reached > half).argmax(axis=1)
        return (ordered[low] + ordered[high]) / 2

    return statistic


def median_seconds(pages: pd.DataFrame, draws: int) -> dict[str, Any]:
    """Estimate the median time of an answer, over pages that were shown once without a restart in between."""
    timed = pages[(pages["showings"] == 1) & pages["seconds"].notna()]
    statistic = weighted_median(_numbers(timed["seconds"]))
    found = _estimate(statistic, timed["patient"], draws, "no page was answered at its first showing")
    return {**found, "answers": len(timed), "left_out": len(pages) - len(timed)}


def _progress(study: Study, judged: Judged, reader: int, draws: int) -> dict[str, Any]:
    pages = judged.pages[judged.pages["reader"] == reader]
    own = judged.texts[judged.texts["reader"] == reader]
    verdicts = {name: int((own["grade"] == grade).sum()) for name, grade in GRADES.items()}
    return {"answered": len(pages), "pages": len(study.readers[reader - 1].pages), "verdicts": verdicts,
            "seconds": median_seconds(pages, draws)}  # fmt: skip


def _counted(rows: pd.DataFrame) -> dict[str, int]:
    return {"judgements": len(rows), "cases": rows["case"].nunique(), "patients": rows["patient"].nunique()}


def _share(hits: pd.Series, patients: pd.Series, draws: int) -> dict[str, Any]:
    """Estimate a share; of 0 or 1 a bootstrap knows no interval, and the rule of three (Hanley, 1983) stands in."""
    found, n = _estimate(mean(_numbers(hits)), patients, draws), patients.nunique()
    if found["value"] in (0, 1) and n >= FEWEST_PATIENTS:
        why = f"alike in all {n} patients; by the rule of three up to {3 / n:.2f} of others may differ"
        return Estimate(found["value"])._asdict() | {"why": why}
    return found


def _numbers(values: pd.Series) -> np.ndarray:
    return values.to_numpy(dtype=np.float64)


def _estimate(
    statistic: Statistic, patients: pd.Series, draws: int, undefined_since: str = "nothing was judged"
) -> dict[str, Any]:
    """Estimate a statistic with its interval, and say why where there is no value or no interval."""
    found = patient_bootstrap(statistic, patients.astype(str).tolist(), draws)
    if found.value is None:
        return undefined(undefined_since)
    n = patients.nunique()
    if found.low is not None and found.low != found.high:
        return found._asdict()
    why = f"{n} patients; an interval needs {FEWEST_PATIENTS}" if n < FEWEST_PATIENTS else "undefined in most resamples"
    if found.low is not None:
        why = f"alike in nearly all resamples of the {n} patients"
    return Estimate(found.value)._asdict() | {"why": why}


def summary(results: dict[str, Any]) -> list[str]:
    """Summarize the results in a few lines."""
    readers: dict[str, Any] = results["readers"]
    lines = [f"{results['cases']} cases of {results['patients']} patients; {len(readers)} readers; "
             f"intervals: 95 %, by bootstrap over patients, with the same readers"]  # fmt: skip
    for name, row in readers.items():
        state = "" if row["answered"] == row["pages"] else "; not finished"
        lines.append(f"reader {name}: {row['answered']} of {row['pages']} pages answered; "
                     f"median seconds {described(row['seconds'])}{state}")  # fmt: skip
    for name, row in results["sources"].items():
        lines.append(f"{name}: {row['judgements']} judgements; acceptable as it stands "
                     f"{described(row['accepted']['as_it_stands'])}; with minor edits at most "
                     f"{described(row['accepted']['at_most_minor_edits'])}")  # fmt: skip
    for name, row in results["differences"].items():
        lines.append(f"draft − {name}: as it stands {described(row['accepted']['as_it_stands'])}; with minor edits at "
                     f"most {described(row['accepted']['at_most_minor_edits'])}; better {row['better']}, same "
                     f"{row['same']} (same text {row['same_text']}), worse {row['worse']}")  # fmt: skip
    for name, row in results["agreement"].items():
        lines.append(f"readers {name}: weighted kappa {described(row['kappa'])}, {row['judgements']} texts")
    return lines
