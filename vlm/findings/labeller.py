"""Label reports by the rules of a vocabulary, in the manner of NegEx (Chapman et al., 2001).

A report is cut into sentences and a sentence into clauses; a finding is what its clause says of it. Rules can be
read and tested, need no download, and judge thousands of drafts in seconds; what they miss is measured on reports
coded by experts (see docs/evaluation.md).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from vlm.findings.vocabulary import DEFAULT, Patterns, Vocabulary

Status = Literal["present", "uncertain", "absent"]
STATUSES: tuple[Status, ...] = ("present", "uncertain", "absent")
"""Statuses, strongest first; if a report states several of one finding, the strongest counts."""

_SENTENCE = re.compile(r"(?<!\bdr)(?<!\d)[.!?]+(?=\s|$)|(?<=\d)\.(?=\s)|\n+|:\s|>")


Place = tuple[str, str]
"""Side and zone, "" if not stated."""


@dataclass(frozen=True)
class Mention:
    """Mention of one finding in one sentence."""

    finding: str
    status: Status
    places: frozenset[Place] = frozenset()
    """Side (`left`, `right` or nothing) and zone (`upper`, `middle`, `lower` or nothing)."""
    text: str = field(default="", compare=False)
    """Matched text; empty for a normal statement."""
    severities: tuple[str, ...] = field(default=(), compare=False)
    """Words of degree and size, such as `mild`."""

    @property
    def sides(self) -> frozenset[str]:
        """Sides of the places: `left`, `right`."""
        return frozenset(side for side, _ in self.places if side)

    @property
    def zones(self) -> frozenset[str]:
        """Zones of the places: `upper`, `middle`, `lower`."""
        return frozenset(zone for _, zone in self.places if zone)

    @property
    def is_everywhere(self) -> bool:
        """True unless it speaks of one side or one zone alone."""
        return not self.places or (len(self.sides) > 1 and not self.zones)


def sentences(report: str) -> Iterator[str]:
    """Split a report into lower-case sentences; a numbered list and a line break end one too."""
    for start, end in sentence_spans(report):
        yield " ".join(report[start:end].lower().split())


def sentence_spans(report: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each sentence, without its terminator."""
    ends = [match.span() for match in _SENTENCE.finditer(report.lower())]
    starts = [0, *(end for _, end in ends)]
    for start, end in zip(starts, [*(begin for begin, _ in ends), len(report)], strict=True):
        if report[start:end].strip():
            yield start, end


@dataclass(frozen=True)
class Labeller:
    """Read the findings of reports by the rules of one vocabulary."""

    vocabulary: Vocabulary

    @classmethod
    def load(cls, name: str = DEFAULT) -> "Labeller":
        """Load by the name of a vocabulary or its file; raises as `Vocabulary.load` does."""
        return cls(Vocabulary.load(name))

    @classmethod
    def of_adapter(cls, name: str) -> "Labeller":
        """Load the vocabulary that an adapter names; one that names none has a labeller that finds nothing."""
        return cls.load(name) if name else cls(Vocabulary.empty())

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the findings."""
        return self.vocabulary.findings

    def label(self, report: str) -> dict[str, Mention]:
        """Merge mentions by finding: the strongest status, with the sides and zones stated at that status."""
        merged: dict[str, Mention] = {}
        for mention in self.mentions(report):
            known = merged.get(mention.finding)
            if known is None or STATUSES.index(mention.status) < STATUSES.index(known.status):
                merged[mention.finding] = mention
            elif mention.status == known.status:
                merged[mention.finding] = replace(known, places=known.places | mention.places)
        return merged

    def mentions(self, report: str) -> list[Mention]:
        """Find all mentions of findings in a report, sentence by sentence."""
        found: list[Mention] = []
        for sentence in sentences(report):
            if self.vocabulary.any_finding.search(sentence):
                found.extend(self._sentence_mentions(sentence))
        return found

    def is_read(self, report: str) -> bool:
        """Check whether anything is found in a report that is not plainly in another language.

        The words of findings also occur in other languages, whose negations the vocabulary does not know.
        """
        text, lists = report.lower(), self.vocabulary.lists
        foreign = len(lists["other_words"].findall(text)) > len(lists["own_words"].findall(text))
        return bool(self.label(report)) and not foreign

    def _sentence_mentions(self, sentence: str) -> Iterator[Mention]:
        named = self.vocabulary.named
        found = [(name, match) for name, pattern in named["findings"].items() for match in pattern.finditer(sentence)]
        spans = [match.span() for _, match in found]
        for name, match in found:
            begin, finish = match.span()
            start, end = self._clause(sentence, begin, finish)
            if not self.vocabulary.lists["history"].search(sentence, start, begin):
                status = self._status(sentence, start, begin, finish, end)
                ours, rest = self._scope(sentence, begin, finish, spans)
                severities = self._severities(ours, rest, len(ours) - (finish - begin))
                yield Mention(name, status, self._places(ours, rest), match.group(), severities)
        stated = {name for name, _ in found}
        for name, pattern in named["normal"].items():
            if name not in stated and pattern.search(sentence):
                for ruled_out in self.vocabulary.rules_out[name]:
                    yield Mention(ruled_out, "absent")

    def _clause(self, sentence: str, start: int, end: int) -> tuple[int, int]:
        """Find the clause of the sentence that contains the word at start:end."""
        first, last = 0, len(sentence)
        for match in self.vocabulary.lists["termination"].finditer(sentence):
            if match.end() <= start:
                first = match.end()
            elif match.start() >= end:
                last = match.start()
                break
        return first, last

    def _status(self, sentence: str, start: int, begin: int, finish: int, end: int) -> Status:
        lists = self.vocabulary.lists
        pseudo = [match.span() for match in lists["pseudo_negation"].finditer(sentence, start, end)]

        def denies(pattern: re.Pattern[str], low: int, high: int) -> bool:
            return any(
                not any(a <= match.start() < b for a, b in pseudo) for match in pattern.finditer(sentence, low, high)
            )

        if denies(lists["pre_negation"], start, finish) or denies(lists["post_negation"], finish, end):
            return "absent"
        doubted = lists["pre_uncertainty"].search(sentence, start, begin)
        return "uncertain" if doubted or lists["post_uncertainty"].search(sentence, finish, end) else "present"

    def _scope(self, sentence: str, begin: int, finish: int, others: list[tuple[int, int]]) -> tuple[str, str]:
        """Cut the text of a finding: from the previous one to its own end, and from there up to the next one."""
        lists = self.vocabulary.lists
        before = max((end for start, end in others if end <= begin), default=0)
        after = min((start for start, end in others if start >= finish), default=len(sentence))
        for match in lists["location_end"].finditer(sentence):
            if before < match.end() <= begin:
                before = match.end()
            elif finish <= match.start() < after:
                after = match.start()
        ours, rest = sentence[before:finish], sentence[finish:after]
        if after < len(sentence):  # text after the last separator belongs to the next finding
            rest = rest[: max((match.start() for match in lists["separators"].finditer(rest)), default=len(rest))]
        return ours, rest

    def _places(self, ours: str, rest: str) -> frozenset[Place]:
        """Find a finding's sides and zones in its words and those before it, else in those after it."""
        sides, zones = self._sides(ours) or self._sides(rest), self._zones(ours) or self._zones(rest)
        return frozenset((side, zone) for side in sides or {""} for zone in zones or {""} if side or zone)

    def _severities(self, ours: str, rest: str, begin: int) -> tuple[str, ...]:
        """Find the degrees and sizes of a finding that begins at `begin`, in the order of the vocabulary.

        An `and` ends their scope, other than a place's. A comma does so only after the finding: `small, left effusion`
        is small, `effusion, mild scoliosis` is not mild.
        """
        separators, named = self.vocabulary.lists["separators"], self.vocabulary.named["severities"]
        start = max((match.end() for match in separators.finditer(ours, 0, begin) if match.group() != ","), default=0)
        end = next((match.start() for match in separators.finditer(rest)), len(rest))
        found = _matching(named, ours[start:]) or _matching(named, rest[:end])
        return tuple(name for name in named if name in found)

    def _sides(self, text: str) -> set[str]:
        """Find the named sides, else the side implied by a part that only one side has."""
        sides = _matching(self.vocabulary.named["sides"], text)
        if "both" in sides:
            return {"left", "right"}
        return sides or _matching(self.vocabulary.named["implied_sides"], text)

    def _zones(self, text: str) -> set[str]:
        return _matching(self.vocabulary.named["zones"], text)


def _matching(patterns: Patterns, text: str) -> set[str]:
    return {name for name, pattern in patterns.items() if pattern.search(text)}


@lru_cache(1)
def chest() -> Labeller:
    """Return the labeller of English chest reports, the default."""
    return Labeller.load(DEFAULT)
