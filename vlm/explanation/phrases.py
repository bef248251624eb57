"""Select the words of a draft to explain, and find their tokens."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from vlm.data.claims import check_numbers
from vlm.data.vitals.schema import VitalsSchema
from vlm.errors import UserError
from vlm.findings.labeller import Labeller, chest, sentence_spans

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""Start and end character; the end is exclusive."""

_WORD = re.compile(r"\w+(?:[-'.,/]\w+)*|[^\w\s]+")
_QUALIFIERS = re.compile(r"(?:[a-z-]+\s+){0,3}$")
_NO_QUALIFIER = re.compile(
    r"(?:.*\b(?:a|an|the|of|in|at|on|to|for|or|and|with|is|are|was|were|there|has|have|by|from|shows?)\s+)?", re.DOTALL
)
"""Words before the ones that qualify a finding."""


def word_spans(text: str) -> list[Span]:
    """Return the spans of words and punctuation marks, in order."""
    return [match.span() for match in _WORD.finditer(text)]


def named_spans(text: str, wanted: str) -> list[Span]:
    """Find every occurrence of the words of `opacity, lower zone`; raises `UserError` for one that does not occur."""
    spans: list[Span] = []
    for words in filter(None, (part.strip() for part in wanted.split(","))):
        spelled = r"\s+".join(map(re.escape, words.split()))
        found = [match.span() for match in re.finditer(rf"(?<!\w){spelled}(?!\w)", text, re.IGNORECASE)]
        if not found:
            stated = ", ".join(dict.fromkeys(word.lower() for word in _WORD.findall(text) if word[0].isalnum()))
            raise UserError(f"--explain_words: the draft does not say {words!r}; it says: {stated or 'nothing'}")
        spans.extend(found)
    return sorted(set(spans))


def decisive_spans(
    text: str, values: Mapping[str, float], schema: VitalsSchema, labeller: Labeller | None = None
) -> list[Span]:
    """Find the words that the rules read in a draft: findings, their qualifiers and negations, sides, zones, levels.

    `values` are the vitals given. Adjacent words are one span.
    """
    reader = labeller or chest()
    return _spans(text, lambda sentence: [
        *_findings(sentence, reader), *_places(sentence, reader), *_levels(sentence, values, schema)
    ])  # fmt: skip


def finding_spans(text: str) -> list[Span]:
    """Find the findings alone, with the words that qualify or negate them."""
    return _spans(text, lambda sentence: [*_findings(sentence, chest())])


def _spans(text: str, read: Callable[[str], list[Span]]) -> list[Span]:
    """Apply `read` to each sentence of a text, in lower case, and return the spans in the text."""
    found: list[Span] = []
    for start, end in sentence_spans(text):
        found.extend((start + first, start + last) for first, last in read(text[start:end].lower()))
    return _joined(text, found)


def _findings(sentence: str, labeller: Labeller) -> Iterator[Span]:
    """Find findings by the labeller's words, back to the first word that qualifies them: `small left effusion`."""
    for words in {mention.text for mention in labeller.mentions(sentence)} - {""}:
        for match in re.finditer(r"\s+".join(map(re.escape, words.split())), sentence):
            before = _QUALIFIERS.search(sentence, 0, match.start())
            first = before.start() if before else match.start()
            skipped = _NO_QUALIFIER.match(sentence, first, match.start())
            yield (skipped.end() if skipped else first), match.end()


def _places(sentence: str, labeller: Labeller) -> Iterator[Span]:
    if labeller.mentions(sentence):
        named = labeller.vocabulary.named
        patterns = [*named["sides"].values(), *named["zones"].values()]
        yield from (match.span() for pattern in patterns for match in pattern.finditer(sentence))


def _levels(sentence: str, values: Mapping[str, float], schema: VitalsSchema) -> Iterator[Span]:
    """Find the words and numbers that state a vital."""
    for stated in {claim.stated for claim in check_numbers(sentence, values, schema)}:
        yield from (match.span() for match in re.finditer(rf"(?<!\w){re.escape(stated)}(?!\w)", sentence))


def _joined(text: str, spans: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for first, last in sorted(spans):
        if joined and not text[joined[-1][1] : first].strip():
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined


def token_spans(tokenizer: "PreTrainedTokenizerBase", text: str) -> tuple[list[int], list[Span]]:
    """Tokenize a draft; returns token ids and the characters of each, without the spaces before them.

    Raises `UserError` for a tokenizer without offset mapping.
    """
    if not tokenizer.is_fast:
        raise UserError(f"--explain: {type(tokenizer).__name__} does not say where its tokens stand in a text")
    read = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    spans = [(start + len(text[start:end]) - len(text[start:end].lstrip()), end) for start, end in read.offset_mapping]
    return list(read.input_ids), spans


def tokens_of(span: Span, tokens: Sequence[Span]) -> range:
    """Return the indices of the tokens that share a character with a span."""
    inside = [number for number, (start, end) in enumerate(tokens) if start < span[1] and end > span[0]]
    return range(inside[0], inside[-1] + 1) if inside else range(0)
