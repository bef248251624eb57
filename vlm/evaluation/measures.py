"""Compute metrics with intervals from drafts and scores, as plain values for metrics.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from vlm.data.claims import Claim, check_numbers, given_values
from vlm.data.cohort import FactReader
from vlm.data.vitals.schema import VitalsSchema
from vlm.evaluation.agreement import NO_REFERENCE, Agreement, why_undefined
from vlm.evaluation.arms import ArmCases, all_correct
from vlm.evaluation.naming import macro, naming
from vlm.evaluation.scoring import CaseScores, ranked
from vlm.evaluation.text import METRICS, RougeL, TextMetric
from vlm.findings.labeller import Labeller, chest
from vlm.statistics import probability
from vlm.statistics.estimate import undefined
from vlm.statistics.intervals import Statistic, mean, patient_bootstrap, ratio

THRESHOLDS = (0.1, 0.2, 0.3, 0.5)
"""Decision thresholds at which net benefit is reported."""
OF_TWO_CLASSES = ("auroc", "auprc", "calibration_slope", "calibration_intercept")


@dataclass(frozen=True)
class Bootstrap:
    """Patient bootstrap: each case's patient and the number of draws."""

    patients: np.ndarray
    """N patient names."""
    draws: int

    def of(self, rows: np.ndarray) -> "Bootstrap":
        """Return the bootstrap of some cases."""
        return replace(self, patients=self.patients[rows])

    def __call__(
        self, statistic: Statistic, rows: np.ndarray | None = None, classes: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Estimate a statistic over all cases or over `rows`, as plain values."""
        patients = self.patients if rows is None else self.patients[rows]
        return patient_bootstrap(statistic, patients.tolist(), self.draws, classes=classes)._asdict()


@dataclass(frozen=True)
class Reports:
    """N drafts and their full references; every measure leaves out the cases without a reference."""

    drafts: Sequence[str]
    references: Sequence[str]
    labeller: Labeller = field(default_factory=chest)

    def of(self, rows: np.ndarray) -> "Reports":
        """Return the drafts and references of some cases."""
        drafts, references = ([texts[row] for row in rows] for texts in (self.drafts, self.references))
        return replace(self, drafts=drafts, references=references)

    @cached_property
    def rows(self) -> np.ndarray:
        """Indices of the cases with a reference."""
        return np.flatnonzero([bool(text) for text in self.references])

    @cached_property
    def agreement(self) -> Agreement:
        """Agreement of the findings of drafts and references, over `rows`."""
        return Agreement.of(*self.pairs, self.labeller)

    @property
    def pairs(self) -> tuple[list[str], list[str]]:
        return [self.drafts[i] for i in self.rows], [self.references[i] for i in self.rows]


def text_loss_measure(scores: CaseScores, bootstrap: Bootstrap) -> dict[str, Any]:
    """Compute the cross-entropy per token of the reference reports, nats."""
    if not scores.tokens.any():
        return undefined(NO_REFERENCE)
    return bootstrap(ratio(scores.losses, scores.tokens))


def text_measures(reports: Reports, bootstrap: Bootstrap, learned: Sequence[TextMetric] = ()) -> dict[str, Any]:
    """Compute the text metrics against the references, n-gram and `learned`; zero for drafts without a word."""
    if not len(reports.rows):
        return {}
    metrics = [*(metric() for metric in METRICS), *learned]
    drafts, references = reports.pairs
    return {
        metric.key: bootstrap(metric.statistic(drafts, references), reports.rows)
        if metric.reads(references)
        else undefined(f"the {len(references)} references hold nothing that it counts")
        for metric in metrics
    }


def section_measures(
    drafts: Sequence[Mapping[str, str]], references: Sequence[Mapping[str, str]], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Compute ROUGE-L of each section over the cases whose reference has it, and the share of drafts that do."""
    measures: dict[str, Any] = {}
    for name in dict.fromkeys(name for sections in references for name in sections):
        rows = np.array([index for index, sections in enumerate(references) if name in sections])
        ours, theirs = ([sections[row].get(name, "") for row in rows] for sections in (drafts, references))
        rouge = bootstrap(RougeL().statistic(ours, theirs), rows)
        written = bootstrap(mean(np.array([bool(text) for text in ours])), rows)
        measures[name] = {"rougel": rouge, "written": written, "cases": len(rows)}
    return measures


def finding_measures(reports: Reports, bootstrap: Bootstrap) -> dict[str, Any]:
    """Compute finding precision, recall, F1 and error rates over all findings, and the F1 of each finding."""
    if not len(reports.rows):
        return {}
    agreement, rows, (drafts, references) = reports.agreement, reports.rows, reports.pairs
    statistics = {"f1": agreement.f1(), "precision": agreement.precision(), "recall": agreement.recall()}
    statistics |= agreement.rates()
    if why := why_undefined(references, reports.labeller):
        return {name: undefined(why) for name in statistics} | {"each": {}}
    over_all = {name: bootstrap(statistic, rows) for name, statistic in statistics.items()}
    if not any(map(reports.labeller.is_read, drafts)):
        over_all["hallucination_rate"] = undefined(f"the labeller found nothing in {len(drafts)} drafts")
    each = {}
    for k, name in enumerate(reports.labeller.names):
        in_references = int((agreement.true_positive[:, k] | agreement.false_negative[:, k]).sum())
        in_drafts = int((agreement.true_positive[:, k] | agreement.hallucinated[:, k]).sum())
        if in_references or in_drafts:
            f1 = bootstrap(agreement.f1(k), rows) if in_references >= 10 else undefined()
            each[name] = {"f1": f1, "in_references": in_references, "in_drafts": in_drafts}
    return {**over_all, "each": each}


def named_labels(
    reports: Reports, targets: np.ndarray, labels: Sequence[str], stands_for: Mapping[str, str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Measure whether the text names a label where the table has it (N × K, NaN unknown), by label and their mean F1.

    `stands_for` maps a label to the finding that names it. A label that no case has is left out.
    """
    named = naming(reports.drafts, targets, labels, stands_for, reports.labeller)
    if not named:
        return {}
    each = {
        name: {
            "f1": bootstrap(found.f1),
            "precision": bootstrap(ratio(found.right, found.said)),
            "recall": bootstrap(ratio(found.right, found.has)),
            "prevalence": float(found.has.sum() / found.known.sum()),
            "cases": int(found.has.sum()),
            "named": int(found.said.sum()),
        }
        for name, found in named.items()
    }
    return {"macro_f1": bootstrap(macro(named)), "each": each}


def number_measures(
    drafts: Sequence[str], vitals: np.ndarray, schema: VitalsSchema, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Compute the share of the statements about vitals that fit the vitals given (N × m, NaN where missing)."""
    claims = [claims_of(draft, row, schema) for draft, row in zip(drafts, vitals, strict=True)]
    made = np.array([len(row) for row in claims], dtype=np.float64)
    right = np.array([sum(claim.consistent for claim in row) for row in claims], dtype=np.float64)
    why = "no draft says anything of a vital" if len(schema) else ""
    consistent = bootstrap(ratio(right, made)) if made.any() else undefined(why)
    return {"consistent": consistent, "statements": int(made.sum())}


def claims_of(draft: str, row: np.ndarray, schema: VitalsSchema) -> list[Claim]:
    """Check a draft's statements about the vitals of one case (m values)."""
    return check_numbers(draft, given_values(row.tolist(), schema), schema)


def label_measures(
    scores: CaseScores, probabilities: np.ndarray, labels: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Compute the metrics of each label's calibrated probability (N × K); the logits give the ranking."""
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
        needs = {name: _two_classes(y, label) for name in OF_TWO_CLASSES} | {"ece": _enough_for_bins(len(y))}
        unknown = "" if len(known) else f"{label} is unknown in every test case"
        estimates = {
            name: undefined(why) if (why := unknown or needs.get(name, "")) else bootstrap(statistic, known, y)
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


def _two_classes(y: np.ndarray, label: str) -> str:
    """Explain why a measure of two classes is undefined; empty if it is defined."""
    kinds = np.unique(y)
    return "" if len(kinds) == 2 else f"{label} is {kinds[:1].sum():g} in all {len(y)} test cases where it is known"


def _enough_for_bins(count: int) -> str:
    """Explain why the ECE of `count` known labels is undefined; empty if it is defined."""
    return "" if count >= probability.BINS else f"only {count} known labels for {probability.BINS} bins"


def pooled_calibration_error(scores: CaseScores, probabilities: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Compute the ECE over all labels together (N × K)."""
    rows, columns = np.nonzero(~np.isnan(scores.targets))
    if why := _enough_for_bins(len(rows)):
        return undefined(why if scores.targets.size else "")
    y, p = scores.targets[rows, columns], probabilities[rows, columns]
    return bootstrap(probability.expected_calibration_error(y, p), rows)


def auroc_of(scores: np.ndarray, targets: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Compute the AUROC of N scores for one label, over the cases where both are known."""
    known = np.flatnonzero(~np.isnan(targets) & ~np.isnan(scores))
    if len(np.unique(targets[known])) < 2:
        return undefined()
    return bootstrap(probability.auroc(targets[known], ranked(scores[known])), known, targets[known])


def fact_measures(cases: ArmCases, reader: FactReader, drafts: Sequence[str], bootstrap: Bootstrap) -> dict[str, Any]:
    """Compute for each kind of evidence the share of reports that state all its facts, of the input shown.

    For all kinds but the vitals also the share that assert such a fact among the cases that are not shown it.
    """
    wanted, stated = cases.facts(reader), [reader.read(text) for text in drafts]
    measures: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    asserted_without = {}
    for kind in dict.fromkeys(reader.evidence.values()):
        names = [name for name, evidence in reader.evidence.items() if evidence == kind]
        right, first = all_correct(stated, wanted, names), names[0]
        if kind == "vitals":
            measures["vitals_facts_right"] = right, np.ones(len(cases), dtype=bool)
            continue
        shown = np.array([fact[first] not in (None, reader.unsaid.get(first)) for fact in wanted], dtype=bool)
        said = [any(fact[name] not in (None, reader.unsaid.get(name)) for name in names) for fact in stated]
        measures[f"{kind}_facts_right"] = right, shown
        asserted_without[f"{first}_asserted_without_{kind}"] = np.array(said, dtype=bool), ~shown
    result = {}
    for name, (hits, among) in {**measures, **asserted_without}.items():
        rows = np.flatnonzero(among)
        estimate = bootstrap(mean(hits[rows]), rows) if len(rows) else undefined()
        result[name] = {**estimate, "cases": len(rows)}
    return result


def head_against_text(
    drafts: Sequence[str],
    probabilities: np.ndarray,
    labels: Sequence[str],
    findings: Mapping[str, str],
    labeller: Labeller | None = None,
) -> np.ndarray:
    """Flag cases where head and draft disagree: a probability of 0.5 or more and a denial, or the reverse; N.

    `findings` maps a label to the labeller's finding. NaN for a case whose draft states none of them. What a reader is
    shown, `vlm.reliability.contradictions`, flags single sentences, and against a sure head alone.
    """
    labeller = labeller or chest()
    result = np.full(len(drafts), np.nan)
    pairs = [(k, findings[name]) for k, name in enumerate(labels) if name in findings]
    for index, draft in enumerate(drafts):
        found = labeller.label(draft)
        verdicts = [
            (probabilities[index, k] >= 0.5) != (found[finding].status == "present")
            for k, finding in pairs
            if finding in found and found[finding].status != "uncertain"
        ]
        if verdicts:
            result[index] = float(any(verdicts))
    return result
