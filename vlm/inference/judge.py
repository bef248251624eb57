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


UNLIKE = "the picture is unlike those the adapter was trained on"


def judged(report: Report, model: "EvidenceEncoder", example: Example, labeller: Labeller, distance: float) -> Report:
    """Add label sets, contradictions, and a warning for a picture at a large `distance` from those of training.

    Without thresholds only the contradictions of the text and the values given are added. `labeller` reads the findings
    of the draft.
    """
    kept, spec = model.reliability, model.spec
    sets = kept.sets_of(report.probabilities)
    stands_for = findings_of_labels(spec.labels, labeller.names, spec.label_findings)
    known = report.probabilities, stands_for, kept, labeller, example["vitals"].tolist(), spec.schema
    found = find_contradictions(report.text, *known)
    unlike = example["has_image"] and 0 < kept.unlike_above < distance
    warnings = (*report.warnings, *([UNLIKE] if unlike else []))
    covered = kept.coverage if sets else None
    return replace(report, warnings=warnings, label_sets=sets, coverage=covered, contradictions=found)
