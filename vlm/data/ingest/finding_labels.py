"""Extract findings from the reference reports by rule, as additional labels of the classification head.

In a small cohort the reports say more about the image than its few labels. Learned by the head, the findings reach
the text through the label token (see `vlm.model.fusion`).
"""

from collections.abc import Sequence
from dataclasses import replace

from vlm.config import DataConfig
from vlm.data.cohort import Cohort, Columns, features
from vlm.data.storage import write_rows
from vlm.errors import UserError, nearest
from vlm.findings.labeller import Labeller, chest


def add_finding_labels(cohort: Cohort, data: DataConfig) -> Cohort:
    """Append `data.finding_labels` to the cohort's labels; unknown where there is no report.

    Raises `UserError` for a name that is no finding, or is a label already.
    """
    names = tuple(data.finding_labels)
    if not names:
        return cohort
    labeller = Labeller.load(data.findings)
    wanted = [_parse(name, labeller) for name in names]
    twice = {name for name in names if name in cohort.labels or names.count(name) > 1}
    if twice:
        raise UserError(f"data.finding_labels: {min(twice)!r} is a label already; name each one once")
    labels = (*cohort.labels, *names)
    declared = features(len(cohort.schema), len(labels), len(cohort.sections), cohort.signal is not None)
    parts = (_with_findings(part, wanted, labeller) for part in cohort.dataset.iter(10_000))
    return replace(cohort, dataset=write_rows(parts, declared), labels=labels)


def _with_findings(part: Columns, wanted: Sequence[tuple[str, str]], labeller: Labeller) -> Columns:
    """Append the findings of the reports to the labels of some rows."""
    labels = [
        [*known, *read_findings(" ".join(filter(None, sections)), wanted, labeller)]
        for known, sections in zip(part["labels"], part["sections"], strict=True)
    ]
    return {**part, "labels": labels}


def read_findings(report: str, wanted: Sequence[tuple[str, str]], labeller: Labeller | None = None) -> list[float]:
    """Label each (place, finding) of a report: 1 if asserted, 0 if not, NaN if left open.

    A finding that the report does not mention counts as 0. An empty report counts as unknown.
    """
    if not report.strip():
        return [float("nan")] * len(wanted)
    found = (labeller or chest()).label(report)
    values = []
    for place, finding in wanted:
        mention = found.get(finding)
        if mention is None or mention.status == "absent":
            values.append(0.0)
        elif mention.status == "uncertain":
            values.append(float("nan"))
        else:
            values.append(float(not place or place in mention.sides | mention.zones))
    return values


def _parse(name: str, labeller: Labeller) -> tuple[str, str]:
    """Split a name: `left_opacity` → (left, opacity); `opacity` → ("", opacity)."""
    place, _, rest = name.partition("_")
    pair = (place, rest) if place in labeller.vocabulary.places and rest else ("", name)
    if pair[1] not in labeller.names:
        near = nearest(pair[1], labeller.names, cutoff=0.0)
        way_out = f"did you mean {near!r}? A side or zone may stand before it: {', '.join(labeller.vocabulary.places)}"
        raise UserError(f"data.finding_labels: {name!r} is no finding the labeller knows; {way_out}")
    return pair
