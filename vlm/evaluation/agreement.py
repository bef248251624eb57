"""Compare the findings of drafts and references: true positives, hallucinations, misses, contradictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm.findings.labeller import Labeller, Mention, chest
from vlm.statistics.intervals import Statistic, mean, ratio

NO_REFERENCE = "no test case has a reference report"
LEAST_READABLE = 0.1
"""Minimum share of the references with a finding; below it, the labeller's counts mean nothing."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of drafts and references on N cases and F findings; all arrays are N × F, bool."""

    true_positive: np.ndarray
    """True positive: asserted by both."""
    hallucinated: np.ndarray
    """Hallucinated: asserted by the draft, and neither asserted nor left uncertain by the reference."""
    false_negative: np.ndarray
    """False negative: asserted by the reference, not by the draft."""
    decided: np.ndarray
    """Asserted or denied by both."""
    contradicted: np.ndarray
    """Contradicted: asserted by one and denied by the other."""
    sided: np.ndarray
    """Asserted by both, with a side in both."""
    side_contradicted: np.ndarray
    """The sides do not overlap, or each side's zone is the other's."""
    zoned: np.ndarray
    """Asserted by both, with a zone in both."""
    zone_contradicted: np.ndarray
    """The zones do not overlap."""

    @classmethod
    def of(cls, drafts: Sequence[str], references: Sequence[str], labeller: Labeller | None = None) -> "Agreement":
        """Label the draft and reference of every case and compare them; without a labeller as English chest reports."""
        labeller = labeller or chest()
        pairs = [
            (labeller.label(draft), labeller.label(given)) for draft, given in zip(drafts, references, strict=True)
        ]
        rows = [[_compare(ours.get(name), theirs.get(name)) for name in labeller.names] for ours, theirs in pairs]
        counts = np.array(rows, dtype=bool).reshape(len(rows), len(labeller.names), 9)
        return cls(*np.moveaxis(counts, 2, 0))

    def f1(self, finding: int | None = None) -> Statistic:
        """Build the F1 statistic of one finding, or the micro F1 of all findings."""
        true = self._sum(self.true_positive, finding)
        return ratio(2 * true, 2 * true + self._sum(self.hallucinated | self.false_negative, finding))

    def precision(self, finding: int | None = None) -> Statistic:
        """Build the precision statistic: the share of the draft's findings that the reference has."""
        true = self._sum(self.true_positive, finding)
        return ratio(true, true + self._sum(self.hallucinated, finding))

    def recall(self, finding: int | None = None) -> Statistic:
        """Build the recall statistic: the share of the reference's findings that the draft has."""
        true = self._sum(self.true_positive, finding)
        return ratio(true, true + self._sum(self.false_negative, finding))

    def rates(self) -> dict[str, Statistic]:
        """Build the statistics of the error rates, each over the cases or mentions where the error is possible."""
        return {
            "hallucination_rate": mean(np.asarray(self.hallucinated.any(axis=1))),  # of all drafts
            "miss_rate": ratio(self._sum(self.false_negative), self._sum(self.false_negative | self.true_positive)),
            "negation_flip_rate": ratio(self._sum(self.contradicted), self._sum(self.decided)),
            "side_flip_rate": ratio(self._sum(self.side_contradicted), self._sum(self.sided)),
            "zone_flip_rate": ratio(self._sum(self.zone_contradicted), self._sum(self.zoned)),
        }

    @staticmethod
    def _sum(counts: np.ndarray, finding: int | None = None) -> np.ndarray:
        return (counts.sum(1) if finding is None else counts[:, finding]).astype(np.float64)


def why_undefined(references: Sequence[str], labeller: Labeller | None = None) -> str:
    """Explain why finding measures are undefined on these references; empty if they are defined."""
    if not references:
        return NO_REFERENCE
    labeller = labeller or chest()
    read = sum(map(labeller.is_read, references))
    if read and read >= LEAST_READABLE * len(references):
        return ""
    found = f"a finding in only {read} of" if read else "nothing in"
    return f"the labeller reads {labeller.vocabulary.title} and found {found} {len(references)} references"


def _compare(draft: Mention | None, reference: Mention | None) -> tuple[bool, ...]:
    ours, theirs = draft.status if draft else None, reference.status if reference else None
    both = ours == theirs == "present"
    stated = ours in ("present", "absent") and theirs in ("present", "absent")
    sided = bool(both and draft and reference and draft.sides and reference.sides)
    zoned = bool(both and draft and reference and draft.zones and reference.zones)
    return (
        both,
        ours == "present" and theirs in (None, "absent"),
        theirs == "present" and ours != "present",
        stated,
        stated and ours != theirs,
        sided,
        bool(sided and draft and reference and _other_side(draft, reference)),
        zoned,
        bool(zoned and draft and reference and not draft.zones & reference.zones),
    )


def _other_side(draft: Mention, reference: Mention) -> bool:
    if not draft.sides & reference.sides:
        return True
    zoned = all(zone for mention in (draft, reference) for _, zone in mention.places)
    return zoned and draft.zones == reference.zones and not draft.places & reference.places
