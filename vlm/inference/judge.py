"""Add to a report how far to rely on it, by the thresholds that the adapter keeps."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlm.data.case import Example
from vlm.data.sections import section_parts
from vlm.findings.labeller import Labeller
from vlm.findings.structure import findings_of_labels, statements_of_labels
from vlm.reliability.contradictions import find_contradictions
from vlm.reliability.sentences import read_sentences
from vlm.report import JudgedSentence, Report

if TYPE_CHECKING:  # other engines draft without it, and start sooner
    from vlm.model.evidence import EvidenceEncoder


UNLIKE = "the picture is unlike those the adapter was trained on"


def judged(
    report: Report,
    model: "EvidenceEncoder",
    example: Example,
    labeller: Labeller,
    distance: float,
    abstain: bool = False,
) -> Report:
    """Add label sets, confidences of sentences, contradictions, and warnings; withhold a doubtful draft if asked to.

    A picture at a large `distance` from those of training is warned of, and a draft among the least sure. With
    `abstain` no draft is given in either case. Without thresholds only the contradictions of the text and the values
    given are added. `labeller` reads the findings of the draft.
    """
    kept, spec = model.reliability, model.spec
    sets = kept.sets_of(report.probabilities)
    stands_for = findings_of_labels(spec.labels, labeller.names, spec.label_findings)
    known = report.probabilities, stands_for, kept, labeller, example["vitals"].tolist(), spec.schema
    found = find_contradictions(report.text, *known)
    report = replace(report, label_sets=sets, coverage=kept.coverage if sets else None, contradictions=found)
    report = _with_confidence(report, model, example, labeller)
    doubts = [UNLIKE] if example["has_image"] and 0 < kept.unlike_above < distance else []
    if kept.sentences is not None and kept.sentences.is_unsure(report.confidence):
        doubts.append(f"the draft is less sure than {1 - kept.sentences.share:.0%} of those of the validation cases")
    report = replace(report, warnings=(*report.warnings, *doubts))
    return _withheld(report, doubts) if abstain and doubts else report


def _with_confidence(report: Report, model: "EvidenceEncoder", example: Example, labeller: Labeller) -> Report:
    """Add the confidence of each sentence and of the draft, if the adapter knows how sure its sentences are."""
    fit, spec = model.reliability.sentences, model.spec
    if fit is None:
        return report
    statements = statements_of_labels(spec.labels, labeller, spec.label_findings)
    parts = section_parts(report.text, spec.sections)
    read = read_sentences(parts, labeller, statements, report.probabilities, example["vitals"].tolist(), spec.schema)
    rows = tuple(JudgedSentence(one.number, one.text, fit.confidence(one), tuple(one.labels), one.vitals)
                 for one in read)  # fmt: skip
    return replace(report, sentences=rows, confidence=fit.of_draft(read))


def _withheld(report: Report, doubts: list[str]) -> Report:
    """Take the text of a draft out of its report, and say why."""
    nothing: dict[str, Any] = {"text": "", "sections": {}, "findings": (), "sentences": (), "contradictions": ()}
    return replace(report, **nothing, withheld="; ".join(doubts))
