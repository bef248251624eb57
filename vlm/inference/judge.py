"""Add to a report how far to rely on it, by the thresholds that the adapter keeps."""

from dataclasses import replace
from typing import TYPE_CHECKING

from vlm.data.case import Example
from vlm.findings.labeller import Labeller
from vlm.findings.structure import findings_of_labels
from vlm.reliability.contradictions import find_contradictions
from vlm.report import Report

if TYPE_CHECKING:  # other engines draft without it, and start sooner
    from vlm.model.evidence import EvidenceEncoder


def judged(report: Report, model: "EvidenceEncoder", example: Example, labeller: Labeller) -> Report:
    """Add the label sets and the contradictions, without thresholds only those of the text and the values given.

    `labeller` reads the findings of the draft.
    """
    kept, spec = model.reliability, model.spec
    sets = kept.sets_of(report.probabilities)
    stands_for = findings_of_labels(spec.labels, labeller.names, spec.label_findings)
    known = report.probabilities, stands_for, kept, labeller, example["vitals"].tolist(), spec.schema
    found = find_contradictions(report.text, *known)
    return replace(report, label_sets=sets, coverage=kept.coverage if sets else None, contradictions=found)
