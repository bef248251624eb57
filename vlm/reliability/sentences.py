"""Give each sentence of a draft the probability that it is right, from the labels that stand for what it says.

The head's calibrated probabilities of all that a sentence says are multiplied. On validation drafts, whose reports are
known, the product is bent to the share of such sentences that were right (Platt scaling, 1999), from the product itself
where there are few.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlm.data.claims import check_numbers, given_values
from vlm.data.vitals.schema import VitalsSchema
from vlm.errors import UserError
from vlm.findings.labeller import Labeller, Mention
from vlm.findings.structure import numbered_sentences

FEWEST_DRAFTS = 20
"""Fewest validation patients with a draft for a fit."""
CERTAIN = 1e-6
"""Least and, taken from 1, largest probability of what a sentence says."""
PRIOR_INTERCEPT, PRIOR_SLOPE = 1.0, 0.5
"""Standard deviations of the intercept about 0, and of the slope's logarithm about 0, before any draft was seen."""


class Sentence(NamedTuple):
    """What the labels and the vitals say of one sentence."""

    number: int
    """Number in the draft, from 1."""
    text: str
    labels: dict[str, float]
    """Label → the probability that the sentence is right about it."""
    vitals: tuple[str, ...]
    """Vitals of which it says a number or a level that fits the value given."""

    @property
    def log_odds(self) -> float:
        """Log odds that everything said is right, as if the labels were independent; NaN without labels."""
        if not self.labels:
            return math.nan
        log = sum(math.log(min(max(p, CERTAIN), 1 - CERTAIN)) for p in self.labels.values())
        return log - math.log(-math.expm1(log))


@dataclass(frozen=True)
class SentenceFit:
    """Hold how log odds become the confidence of a sentence, and below which confidence a draft is unsure."""

    intercept: float
    slope: float
    unsure_below: float
    """Confidence of a draft below which `share` of the validation drafts lie."""
    share: float
    drafts: int
    """Number of validation drafts."""

    def __post_init__(self) -> None:
        inside = abs(self.intercept) <= 50 and 0 < self.slope <= 50 and 0 <= self.unsure_below <= 1
        if not (inside and 0 <= self.share <= 1 and self.drafts > 0):  # NaN fails every comparison
            raise UserError(f"reliability.sentences: {self} is out of range")

    def confidence(self, sentence: Sentence) -> float | None:
        """Compute the probability that a sentence is right; None where no label stands for what it says."""
        if not sentence.labels:
            return None
        return 1 / (1 + math.exp(-min(max(self.intercept + self.slope * sentence.log_odds, -30), 30)))

    def is_unsure(self, confidence: float | None) -> bool:
        """Check whether a draft of this confidence is among the least sure; one without any is not."""
        return confidence is not None and confidence < self.unsure_below

    def of_draft(self, sentences: Iterable[Sentence]) -> float | None:
        """Compute the probability that all sentences are right, as if independent; None where none has a confidence."""
        known = [value for value in map(self.confidence, sentences) if value is not None]
        return math.prod(known) if known else None


def read_sentences(
    parts: Iterable[tuple[str, str]],
    labeller: Labeller,
    statements: Mapping[str, Mention],
    probabilities: Mapping[str, float],
    vitals: Sequence[float],
    schema: VitalsSchema,
) -> list[Sentence]:
    """Read what each sentence of a draft rests on.

    `parts` are (name of the section, text); `statements` map a label to what a text says where it is present; `vitals`
    are the m values given, NaN where missing.
    """
    given = given_values(vitals, schema)
    found = []
    for number, _, text in numbered_sentences(parts):
        labels = _right_about(labeller.mentions(text), statements, probabilities)
        fit = [claim for claim in check_numbers(text, given, schema) if claim.consistent]
        names = (name for claim in fit for name in claim.vital.split(" and ") if name in given)
        found.append(Sentence(number, text, labels, tuple(dict.fromkeys(names))))
    return found


def _right_about(
    mentions: Sequence[Mention], statements: Mapping[str, Mention], probabilities: Mapping[str, float]
) -> dict[str, float]:
    """List the labels that the mentions of a sentence speak of, each with the probability that they are right."""
    right: dict[str, float] = {}
    for label, said in statements.items():
        of_it = [one for one in mentions if one.finding == said.finding and one.status != "uncertain"]
        if label not in probabilities or not of_it:
            continue
        present = [one for one in of_it if one.status == "present"]
        if any(_says(one, said) for one in present):
            right[label] = probabilities[label]
        elif any(_says_another_place(one, said) for one in present) or (not present and not said.places):
            right[label] = 1 - probabilities[label]
    return right


def _says(mention: Mention, said: Mention) -> bool:
    """Check whether a mention says the statement of a label, and perhaps more."""
    return said.sides <= mention.sides and said.zones <= mention.zones


def _says_another_place(mention: Mention, said: Mention) -> bool:
    """Check whether a mention names places, but not that of the label's statement."""
    named = (not said.sides or bool(mention.sides)) and (not said.zones or bool(mention.zones))
    return bool(said.places) and named and not _says(mention, said)


def is_wrong(sentence: str, reference: str, labeller: Labeller) -> bool | None:
    """Check a sentence by the reference report: a finding asserted that is not there, or denied that is, or elsewhere.

    Sides and zones must be the reference's where both name some. None if the sentence states no finding.
    """
    said = [one for one in labeller.mentions(sentence) if one.status != "uncertain"]
    if not said:
        return None
    there: dict[str, list[Mention]] = {}
    for one in labeller.mentions(reference):
        if one.status == "present":
            there.setdefault(one.finding, []).append(one)
    return any(_is_wrong(one, there.get(one.finding, [])) for one in said)


def _is_wrong(said: Mention, there: Sequence[Mention]) -> bool:
    if (said.status == "present") != bool(there):
        return said.status == "present" or said.is_everywhere
    if said.status == "absent":
        return False
    sides, zones = (frozenset().union(*(getattr(one, kind) for one in there)) for kind in ("sides", "zones"))
    return any(a and b and a != b for a, b in ((said.sides, sides), (said.zones, zones)))


def fit_sentences(
    drafts: Sequence[Sequence[tuple[Sentence, bool | None]]], patients: Sequence[str], share: float
) -> tuple[SentenceFit | None, str]:
    """Fit to the sentences of validation drafts, each with whether it is wrong; returns a line on the fit as well.

    Maximum a posteriori, so that few wrong sentences leave the product of probabilities nearly as it is.
    """
    from scipy.optimize import minimize

    known = [(one.log_odds, wrong) for draft in drafts for one, wrong in draft if one.labels and wrong is not None]
    if (count := len({name for name, draft in zip(patients, drafts, strict=True) if draft})) < FEWEST_DRAFTS:
        return None, f"confidence of sentences: none ({count} validation patients with a draft, {FEWEST_DRAFTS} needed)"
    if not known:
        return None, "confidence of sentences: none (no sentence of a draft says what a label stands for)"
    x, wrong = np.array([odds for odds, _ in known]), np.array([wrong for _, wrong in known], dtype=np.float64)

    def loss(values: np.ndarray) -> float:
        intercept, log_slope = values
        z = intercept + np.exp(log_slope) * x
        prior = (intercept / PRIOR_INTERCEPT) ** 2 + (log_slope / PRIOR_SLOPE) ** 2
        return float(np.sum(np.logaddexp(0, z) - (1 - wrong) * z) + prior / 2)

    intercept, log_slope = minimize(loss, np.zeros(2), method="L-BFGS-B", bounds=[(-10, 10), (-3, 3)]).x
    fit = SentenceFit(float(intercept), float(np.exp(log_slope)), 0.0, share, len(drafts))
    sure = [value for draft in drafts if (value := fit.of_draft([one for one, _ in draft])) is not None]
    fit = SentenceFit(fit.intercept, fit.slope, float(np.quantile(sure, share)), share, len(drafts))
    made = f"{len(known)} sentences of {len(drafts)} validation drafts, {int(wrong.sum())} wrong"
    below = f"the least sure {share:.0%} of drafts lie below {fit.unsure_below:.1%}"
    return fit, f"confidence of sentences: from {made}; {below}"
