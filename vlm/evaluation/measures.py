"""From drafts and scores to numbers with intervals: plain values, ready for metrics.json."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from vlm.data.cohort import FactReader
from vlm.data.schema import VitalsSchema
from vlm.evaluation import probability
from vlm.evaluation.agreement import NAMES, Agreement
from vlm.evaluation.arms import ArmCases, all_right
from vlm.evaluation.intervals import Estimate, Statistic, mean, patient_bootstrap, ratio
from vlm.evaluation.numbers import Claim, check_numbers
from vlm.evaluation.scoring import CaseScores, ranked
from vlm.evaluation.text import METRICS, TextMetric

THRESHOLDS = (0.1, 0.2, 0.3, 0.5)
"""At which net benefit is stated."""


@dataclass(frozen=True)
class Bootstrap:
    """Who the cases belong to, and how often to resample them."""

    patients: np.ndarray
    """N names."""
    draws: int

    def __call__(
        self, statistic: Statistic, rows: np.ndarray | None = None, classes: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Estimate as plain values, over all cases or over the patients of `rows`."""
        patients = self.patients if rows is None else self.patients[rows]
        return patient_bootstrap(statistic, patients.tolist(), self.draws, classes=classes)._asdict()


@dataclass(frozen=True)
class Reports:
    """N drafts beside their full references; cases without a reference are left out of every measure."""

    drafts: Sequence[str]
    references: Sequence[str]

    @cached_property
    def rows(self) -> np.ndarray:
        """Cases that have a reference."""
        return np.flatnonzero([bool(text) for text in self.references])

    @cached_property
    def agreement(self) -> Agreement:
        """Findings of drafts against references, over `rows`."""
        return Agreement.of(*self.pairs)

    @property
    def pairs(self) -> tuple[list[str], list[str]]:
        return [self.drafts[i] for i in self.rows], [self.references[i] for i in self.rows]


def text_loss_measure(scores: CaseScores, bootstrap: Bootstrap) -> dict[str, Any]:
    """Cross-entropy per token of the reference reports, nats."""
    return bootstrap(ratio(scores.losses, scores.tokens))


def text_measures(reports: Reports, bootstrap: Bootstrap, learned: Sequence[TextMetric] = ()) -> dict[str, Any]:
    """Likeness to the references, by counting and by the `learned` metrics; zero for drafts without a word."""
    if not len(reports.rows):
        return {}
    metrics = [*(metric() for metric in METRICS), *learned]
    return {metric.key: bootstrap(metric.statistic(*reports.pairs), reports.rows) for metric in metrics}


def finding_measures(reports: Reports, bootstrap: Bootstrap) -> dict[str, Any]:
    """Finding precision, recall and F1 over all findings and for each, and the rates of each kind of error."""
    if not len(reports.rows):
        return {}
    agreement, rows = reports.agreement, reports.rows
    over_all = {
        "f1": bootstrap(agreement.f1(), rows),
        "precision": bootstrap(agreement.precision(), rows),
        "recall": bootstrap(agreement.recall(), rows),
        **{name: bootstrap(rate, rows) for name, rate in agreement.rates().items()},
    }
    each = {}
    for k, name in enumerate(NAMES):
        in_references = int((agreement.right[:, k] | agreement.missed[:, k]).sum())
        in_drafts = int((agreement.right[:, k] | agreement.invented[:, k]).sum())
        if in_references or in_drafts:
            f1 = bootstrap(agreement.f1(k), rows) if in_references >= 10 else Estimate(None)._asdict()
            each[name] = {"f1": f1, "in_references": in_references, "in_drafts": in_drafts}
    return {**over_all, "each": each}


def number_measures(
    drafts: Sequence[str], vitals: np.ndarray, schema: VitalsSchema, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Share of the statements about vitals that fit the vitals given (N × m, NaN where missing)."""
    claims = [claims_of(draft, row, schema) for draft, row in zip(drafts, vitals, strict=True)]
    made = np.array([len(row) for row in claims], dtype=np.float64)
    right = np.array([sum(claim.consistent for claim in row) for row in claims], dtype=np.float64)
    return {"consistent": bootstrap(ratio(right, made)), "statements": int(made.sum())}


def claims_of(draft: str, row: np.ndarray, schema: VitalsSchema) -> list[Claim]:
    """What a draft says of the vitals of one case (m values)."""
    # Rounded: a value kept in single precision must not stand just above the limit that it equals.
    given = {name: round(float(value), 4) for name, value in zip(schema.names, row, strict=True) if value == value}
    return check_numbers(draft, given, schema)


def label_measures(
    scores: CaseScores, probabilities: np.ndarray, labels: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Everything about each label's probability (N × K, calibrated); the logits give the ranking."""
    measures = {}
    for k, label in enumerate(labels):
        targets = scores.targets[:, k]
        known = np.flatnonzero(~np.isnan(targets))
        y, p, ranking = targets[known], probabilities[known, k], ranked(scores.logits[known, k])
        statistics: dict[str, Statistic] = {
            "auroc": probability.auroc(y, ranking),
            "auprc": probability.average_precision(y, ranking),
            "brier": probability.brier(y, p),
            "ece": probability.expected_calibration_error(y, p),
            "calibration_slope": probability.calibration_line(y, p),
            "calibration_intercept": probability.calibration_intercept(y, p),
            "selective_risk_80": probability.selective_risk(y, p),
            **{f"net_benefit_{t:g}": probability.net_benefit(y, p, t) for t in THRESHOLDS},
        }
        estimates = {
            name: bootstrap(statistic, known, y) if len(known) else Estimate(None)._asdict()
            for name, statistic in statistics.items()
        }
        patients = bootstrap.patients[known]
        measures[label] = {
            **estimates,
            "prevalence": float(y.mean()) if len(y) else None,
            "positives": int((y == 1).sum()),
            "negatives": int((y == 0).sum()),
            "positive_patients": len(set(patients[y == 1])),
            "negative_patients": len(set(patients[y == 0])),
        }
    return measures


def pooled_calibration_error(scores: CaseScores, probabilities: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """ECE over all labels together (N × K)."""
    rows, columns = np.nonzero(~np.isnan(scores.targets))
    if not len(rows):
        return Estimate(None)._asdict()
    y, p = scores.targets[rows, columns], probabilities[rows, columns]
    return bootstrap(probability.expected_calibration_error(y, p), rows)


def auroc_of(scores: np.ndarray, targets: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """AUROC of any N scores for one label, over the cases where both are known."""
    known = np.flatnonzero(~np.isnan(targets) & ~np.isnan(scores))
    if not len(known):
        return Estimate(None)._asdict()
    return bootstrap(probability.auroc(targets[known], ranked(scores[known])), known, targets[known])


def fact_measures(cases: ArmCases, reader: FactReader, drafts: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    """Shares of reports that state every image fact, and every vitals fact, of what they were shown."""
    wanted, stated = cases.facts(reader), [reader.read(text) for text in drafts]
    names = {kind: [n for n, k in reader.evidence.items() if k == kind] for kind in ("image", "vitals")}
    shown, everyone = cases.image_donor >= 0, np.ones(len(cases), dtype=bool)
    asserted = np.array([any(fact[name] not in (None, "no image") for name in names["image"]) for fact in stated])
    measures: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
        "image_facts_right": lambda: (all_right(stated, wanted, names["image"]), shown),
        "vitals_facts_right": lambda: (all_right(stated, wanted, names["vitals"]), everyone),
        "finding_asserted_without_image": lambda: (asserted, ~shown),
    }
    result = {}
    for name, measure in measures.items():
        hits, among = measure()
        rows = np.flatnonzero(among)
        estimate = bootstrap(mean(hits[rows]), rows) if len(rows) else Estimate(None)._asdict()
        result[name] = {**estimate, "cases": len(rows)}
    return result


def contradictions(
    drafts: Sequence[str], probabilities: np.ndarray, labels: Sequence[str], findings: Mapping[str, str]
) -> np.ndarray:
    """Cases whose draft and head disagree: the head says above 0.5 and the text denies, or the other way; N, bool.

    `findings` says which finding of the labeller a label stands for; NaN in a case that speaks of none of them.
    """
    from vlm.findings.labeller import label as label_report

    result = np.full(len(drafts), np.nan)
    pairs = [(k, findings[name]) for k, name in enumerate(labels) if name in findings]
    for index, draft in enumerate(drafts):
        said = label_report(draft)
        verdicts = [
            (probabilities[index, k] >= 0.5) != (said[finding].status == "present")
            for k, finding in pairs
            if finding in said and said[finding].status != "uncertain"
        ]
        if verdicts:
            result[index] = float(any(verdicts))
    return result
