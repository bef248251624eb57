"""Label chest radiograph reports by rules, in the manner of NegEx (Chapman et al., 2001).

A report is cut into sentences and a sentence into clauses; a finding is what its clause says of it. Rules can be
read and tested, need no download, and judge thousands of drafts in seconds; what they miss is measured on reports
coded by experts (see docs/evaluation.md).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from vlm.findings import vocabulary

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
    """Matched text."""

    @property
    def sides(self) -> frozenset[str]:
        """Sides of the places: `left`, `right`."""
        return frozenset(side for side, _ in self.places if side)

    @property
    def zones(self) -> frozenset[str]:
        """Zones of the places: `upper`, `middle`, `lower`."""
        return frozenset(zone for _, zone in self.places if zone)


def _each(patterns: dict[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(pattern) for name, pattern in patterns.items()}


_FINDINGS = {name: re.compile(rf"(?<![\w-])(?:{pattern})") for name, pattern in vocabulary.FINDINGS.items()}
_NORMAL, _SIDES, _ZONES = map(_each, (vocabulary.NORMAL, vocabulary.SIDES, vocabulary.ZONES))
_IMPLIED_SIDES = _each(vocabulary.IMPLIED_SIDES)
_PRE_NEGATION, _POST_NEGATION = re.compile(vocabulary.PRE_NEGATION), re.compile(vocabulary.POST_NEGATION)
_PRE_UNCERTAINTY, _POST_UNCERTAINTY = re.compile(vocabulary.PRE_UNCERTAINTY), re.compile(vocabulary.POST_UNCERTAINTY)
_PSEUDO_NEGATION, _HISTORY = re.compile(vocabulary.PSEUDO_NEGATION), re.compile(vocabulary.HISTORY)
_TERMINATION, _LOCATION_END = re.compile(vocabulary.TERMINATION), re.compile(vocabulary.LOCATION_END)
_SEPARATOR = re.compile(r",|\band\b|\bwith\b|\bor\b")
_ANY = re.compile("|".join(f"(?:{p})" for p in (*vocabulary.FINDINGS.values(), *vocabulary.NORMAL.values())))


def mentions(report: str) -> list[Mention]:
    """Find all mentions of findings in a report, sentence by sentence."""
    found: list[Mention] = []
    for sentence in sentences(report):
        if _ANY.search(sentence):
            found.extend(_sentence_mentions(sentence))
    return found


def label(report: str) -> dict[str, Mention]:
    """Merge mentions by finding: the strongest status, with the sides and zones stated at that status."""
    merged: dict[str, Mention] = {}
    for mention in mentions(report):
        known = merged.get(mention.finding)
        if known is None or STATUSES.index(mention.status) < STATUSES.index(known.status):
            merged[mention.finding] = mention
        elif mention.status == known.status:
            merged[mention.finding] = replace(known, places=known.places | mention.places)
    return merged


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


def _sentence_mentions(sentence: str) -> Iterator[Mention]:
    found = [(name, match) for name, pattern in _FINDINGS.items() for match in pattern.finditer(sentence)]
    spans = [match.span() for _, match in found]
    for name, match in found:
        begin, finish = match.span()
        start, end = _clause(sentence, begin, finish)
        if not _HISTORY.search(sentence, start, begin):
            status = _status(sentence, start, begin, finish, end)
            yield Mention(name, status, _places(sentence, begin, finish, spans), match.group())
    named = {name for name, _ in found}
    for name, pattern in _NORMAL.items():
        if name not in named and pattern.search(sentence):
            for ruled_out in vocabulary.RULED_OUT_BY_CLEAR_LUNGS if name == "opacity" else (name,):
                yield Mention(ruled_out, "absent")


def _clause(sentence: str, start: int, end: int) -> tuple[int, int]:
    """Find the clause of the sentence that contains the word at start:end."""
    first, last = 0, len(sentence)
    for match in _TERMINATION.finditer(sentence):
        if match.end() <= start:
            first = match.end()
        elif match.start() >= end:
            last = match.start()
            break
    return first, last


def _status(sentence: str, start: int, begin: int, finish: int, end: int) -> Status:
    pseudo = [match.span() for match in _PSEUDO_NEGATION.finditer(sentence, start, end)]

    def denies(pattern: re.Pattern[str], low: int, high: int) -> bool:
        return any(
            not any(a <= match.start() < b for a, b in pseudo) for match in pattern.finditer(sentence, low, high)
        )

    if denies(_PRE_NEGATION, start, finish) or denies(_POST_NEGATION, finish, end):
        return "absent"
    uncertain = _PRE_UNCERTAINTY.search(sentence, start, begin) or _POST_UNCERTAINTY.search(sentence, finish, end)
    return "uncertain" if uncertain else "present"


def _places(sentence: str, begin: int, finish: int, others: list[tuple[int, int]]) -> frozenset[Place]:
    """Find a finding's sides and zones: between the previous finding and it, else up to the next finding."""
    before = max((end for start, end in others if end <= begin), default=0)
    after = min((start for start, end in others if start >= finish), default=len(sentence))
    for match in _LOCATION_END.finditer(sentence):
        if before < match.end() <= begin:
            before = match.end()
        elif finish <= match.start() < after:
            after = match.start()
    ours, rest = sentence[before:finish], sentence[finish:after]
    if after < len(sentence):  # text after the last separator belongs to the next finding
        rest = rest[: max((match.start() for match in _SEPARATOR.finditer(rest)), default=len(rest))]
    sides, zones = _sides(ours) or _sides(rest), _zones(ours) or _zones(rest)
    return frozenset((side, zone) for side in sides or {""} for zone in zones or {""} if side or zone)


def _sides(text: str) -> set[str]:
    """Find the named sides, else the side implied by a part that only one lung has."""
    sides = {name for name, pattern in _SIDES.items() if pattern.search(text)}
    if "both" in sides:
        return {"left", "right"}
    return sides or {name for name, pattern in _IMPLIED_SIDES.items() if pattern.search(text)}


def _zones(text: str) -> set[str]:
    return {name for name, pattern in _ZONES.items() if pattern.search(text)}
