"""Flag sentences of a draft that deny each other, the probabilities, or the vitals that were given."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from vlm.data.claims import check_numbers, given_values
from vlm.data.vitals.schema import VitalsSchema
from vlm.findings.labeller import Labeller, Mention, sentence_spans
from vlm.reliability.label_sets import ABSENT, PRESENT, LabelThresholds
from vlm.reliability.thresholds import Reliability
from vlm.report import Contradiction

LIKELY, UNLIKELY = 0.8, 0.2
"""Least and largest probability that are taken as a verdict, of a label without thresholds for both classes."""
LONGEST_SENTENCE = 300
"""Most characters of a sentence that a flag quotes."""
_PARTIAL = re.compile(r"\b(?:other|otherwise|another|new|additional|further|second|more|rest|remain(?:der|ing)|also|"
                      r"elsewhere|prior|previous(?:ly)?|old|multiple|several|no (?:large|significant)\w*|"
                      r"resol(?:ved|ution|ving)|cleared|follow[ -]?up|later)\b")  # fmt: skip
"""Words by which a sentence speaks of a part of a finding, of one more of its kind, or of another time."""


class Statement(NamedTuple):
    """What one sentence says of one finding."""

    place: int
    """Number of the sentence."""
    sentence: str
    mention: Mention
    partial: bool
    """True if it speaks of a part of the finding, of another of its kind, or of another time."""

    @property
    def name(self) -> str:
        """The finding in words."""
        return self.mention.finding.replace("_", " ")


def find_contradictions(
    draft: str,
    probabilities: Mapping[str, float],
    stands_for: Mapping[str, str],
    reliability: Reliability,
    labeller: Labeller,
    vitals: Sequence[float],
    schema: VitalsSchema,
) -> tuple[Contradiction, ...]:
    """Find the contradictions of a draft, in the order of its sentences.

    `probabilities` are calibrated, by label; `stands_for` maps a label to the finding that a text says of it; `vitals`
    are the m values given, NaN where missing. A draft in a language that is not the vocabulary's is compared with the
    vitals alone.
    """
    sentences = [" ".join(draft[start:end].split()) for start, end in sentence_spans(draft)]
    found = [(place, flag) for place, text in enumerate(sentences) for flag in _against_vitals(text, vitals, schema)]
    if labeller.is_read(draft):
        said = [
            Statement(place, text, mention, _is_partial(text, mention, labeller))
            for place, text in enumerate(sentences)
            for mention in dict.fromkeys(labeller.mentions(text))
            if mention.status != "uncertain"
        ]
        found += _against_probabilities(said, probabilities, stands_for, reliability)
        found += _between_sentences(said)
    flags = dict.fromkeys(flag for _, flag in sorted(found, key=lambda pair: pair[0]))
    return tuple(flags)


Flags = Iterator[tuple[int, Contradiction]]
"""Number of the sentence, and its flag."""


def _against_vitals(sentence: str, vitals: Sequence[float], schema: VitalsSchema) -> Iterator[Contradiction]:
    """Yield a flag for each number or threshold word that does not fit the value given."""
    for claim in check_numbers(sentence, given_values(vitals, schema), schema):
        if not claim.consistent:
            yield _flag(sentence, "vital", f"says {claim.vital} {claim.stated}; given: {claim.given}")


def _against_probabilities(
    said: Sequence[Statement],
    probabilities: Mapping[str, float],
    stands_for: Mapping[str, str],
    reliability: Reliability,
) -> Flags:
    """Yield a flag where a sentence asserts what the head holds unlikely, or denies what it holds likely."""
    for label, finding in stands_for.items():
        if label not in probabilities:
            continue
        p = probabilities[label]
        verdict = _verdict(p, reliability.label_sets.get(label))
        for one in said:
            if one.mention.finding != finding or one.mention.status == verdict or not verdict:
                continue
            if one.mention.status == ABSENT and (one.partial or not one.mention.is_everywhere):
                continue
            word, held = ("asserts", "unlikely") if verdict == ABSENT else ("denies", "likely")
            why = f"{word} {one.name}, which the head holds {held} ({label.replace('_', ' ')} {p:.1%})"
            yield one.place, _flag(one.sentence, "probability", why)


def _verdict(probability: float, thresholds: LabelThresholds | None) -> str:
    """Return the answer that the head holds: the only one in the label's set; empty if there is none.

    Where the set cannot leave out both answers, a high or low probability counts.
    """
    answers = thresholds.answers(probability) if thresholds is not None else ()
    if len(answers) == 1 or (thresholds is not None and thresholds.by_class):
        return answers[0] if len(answers) == 1 else ""
    return PRESENT if probability >= LIKELY else ABSENT if probability <= UNLIKELY else ""


def _between_sentences(said: Sequence[Statement]) -> Flags:
    """Yield a flag for the later of two sentences that contradict each other about one finding."""
    for first, later in combinations(said, 2):
        a, b = first.mention, later.mention
        if a.finding != b.finding or first.place == later.place or first.partial or later.partial:
            continue
        if a.status == b.status == PRESENT:
            for here, there in ((a.sides, b.sides), (a.zones, b.zones)):
                if here and there and not here & there:
                    why = f"places {later.name} {_listed(there)}, another sentence {_listed(here)}"
                    yield later.place, _flag(later.sentence, "place", why)
        elif a.status != b.status and _overlap(*((a, b) if a.status == ABSENT else (b, a))):
            word = "asserts" if b.status == PRESENT else "denies"
            other = "denies" if b.status == PRESENT else "asserts"
            yield later.place, _flag(later.sentence, "denial", f"{word} {later.name}, which another sentence {other}")


def _is_partial(sentence: str, mention: Mention, labeller: Labeller) -> bool:
    """Check for words that limit a statement; a normal statement ("the right lung is clear") by one side too."""
    text = sentence.lower()
    if _PARTIAL.search(text):
        return True
    sides = {name for name, pattern in labeller.vocabulary.named["sides"].items() if pattern.search(text)}
    return not mention.text and len(sides) == 1 and sides != {"both"}


def _overlap(denial: Mention, assertion: Mention) -> bool:
    """Check whether a denial holds where the finding is asserted."""
    if denial.is_everywhere:
        return True
    pairs = ((denial.sides, assertion.sides), (denial.zones, assertion.zones))
    return all(not denied or bool(denied & stated) for denied, stated in pairs)


def _listed(names: frozenset[str]) -> str:
    return " and ".join(sorted(names)).replace("_", " ")


def _flag(sentence: str, kind: str, why: str) -> Contradiction:
    return Contradiction(sentence[:LONGEST_SENTENCE], kind, why)
