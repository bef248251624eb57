"""Which words of a draft are explained, and which tokens they are made of."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from vlm.data.claims import check_numbers
from vlm.data.vitals.schema import VitalsSchema
from vlm.errors import UserError
from vlm.findings import vocabulary
from vlm.findings.labeller import mentions, sentence_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""First character and the one after the last."""

_WORD = re.compile(r"\w+(?:[-'.,/]\w+)*|[^\w\s]+")
_PLACES = [re.compile(pattern) for pattern in (*vocabulary.SIDES.values(), *vocabulary.ZONES.values())]
_QUALIFIERS = re.compile(r"(?:[a-z-]+\s+){0,3}$")
_NO_QUALIFIER = re.compile(
    r"(?:.*\b(?:a|an|the|of|in|at|on|to|for|or|and|with|is|are|was|were|there|has|have|by|from|shows?)\s+)?", re.DOTALL
)
"""What stands before the words that qualify a finding."""


def word_spans(text: str) -> list[Span]:
    """Words and marks of punctuation, in order."""
    return [match.span() for match in _WORD.finditer(text)]


def named_spans(text: str, wanted: str) -> list[Span]:
    """Where the words of `opacity, lower zone` stand, every time; raises `UserError` for one that does not."""
    spans: list[Span] = []
    for words in filter(None, (part.strip() for part in wanted.split(","))):
        spelled = r"\s+".join(map(re.escape, words.split()))
        found = [match.span() for match in re.finditer(rf"(?<!\w){spelled}(?!\w)", text, re.IGNORECASE)]
        if not found:
            said = ", ".join(dict.fromkeys(word.lower() for word in _WORD.findall(text) if word[0].isalnum()))
            raise UserError(f"--explain_words: the draft does not say {words!r}; it says: {said or 'nothing'}")
        spans.extend(found)
    return sorted(set(spans))


def decisive_spans(text: str, values: Mapping[str, float], schema: VitalsSchema) -> list[Span]:
    """What the rules read in a draft: findings with the words that qualify or deny them, sides and zones, levels.

    `values` are the vitals given. Words that stand side by side are one span.
    """
    return _spans(text, lambda sentence: [
        *_findings(sentence), *_places(sentence), *_levels(sentence, values, schema)
    ])  # fmt: skip


def finding_spans(text: str) -> list[Span]:
    """Findings alone, with the words that qualify or deny them."""
    return _spans(text, lambda sentence: [*_findings(sentence)])


def _spans(text: str, read: Callable[[str], list[Span]]) -> list[Span]:
    """What is read in each sentence of a text, in lower case, where it stands in the text."""
    found: list[Span] = []
    for start, end in sentence_spans(text):
        found.extend((start + first, start + last) for first, last in read(text[start:end].lower()))
    return _joined(text, found)


def _findings(sentence: str) -> Iterator[Span]:
    """By the labeller's own words, and back to the first word that qualifies them: `small left effusion`."""
    for words in {mention.text for mention in mentions(sentence)} - {""}:
        for match in re.finditer(r"\s+".join(map(re.escape, words.split())), sentence):
            before = _QUALIFIERS.search(sentence, 0, match.start())
            first = before.start() if before else match.start()
            skipped = _NO_QUALIFIER.match(sentence, first, match.start())
            yield (skipped.end() if skipped else first), match.end()


def _places(sentence: str) -> Iterator[Span]:
    if mentions(sentence):
        yield from (match.span() for pattern in _PLACES for match in pattern.finditer(sentence))


def _levels(sentence: str, values: Mapping[str, float], schema: VitalsSchema) -> Iterator[Span]:
    """The words and numbers that say what a vital is."""
    for said in {claim.said for claim in check_numbers(sentence, values, schema)}:
        yield from (match.span() for match in re.finditer(rf"(?<!\w){re.escape(said)}(?!\w)", sentence))


def _joined(text: str, spans: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for first, last in sorted(spans):
        if joined and not text[joined[-1][1] : first].strip():
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined


def token_spans(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[list[int], list[Span]]:
    """Token ids of a draft and the characters of each, spaces before them left away.

    Raises `UserError` for a tokenizer that does not know where its tokens stand.
    """
    if not tokenizer.is_fast:
        raise UserError(f"--explain: {type(tokenizer).__name__} does not say where its tokens stand in a text")
    read = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    spans = [(start + len(text[start:end]) - len(text[start:end].lstrip()), end) for start, end in read.offset_mapping]
    return list(read.input_ids), spans


def tokens_of(span: Span, tokens: Sequence[Span]) -> range:
    """Numbers of the tokens that share a character with a span."""
    inside = [number for number, (start, end) in enumerate(tokens) if start < span[1] and end > span[0]]
    return range(inside[0], inside[-1] + 1) if inside else range(0)
