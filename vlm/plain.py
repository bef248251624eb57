"""Check, escape and shorten text and names: no control, hidden or text-reversing characters are shown."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

LONGEST_LINE = 4000
"""Most characters of a message."""


def is_clean(text: str, line_breaks: bool = False) -> bool:
    """Check whether a text is safe to show in a terminal and on a page: no control or bidirectional characters."""
    allowed = "\n\t" if line_breaks else ""
    return not any(
        unicodedata.category(letter) in ("Cc", "Cs", "Co", "Zl", "Zp")
        or unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        for letter in text
        if letter not in allowed
    )


def printable(text: str) -> str:
    """Remove the characters that `is_clean` refuses; line breaks stay."""
    return "".join(letter for letter in text if is_clean(letter, line_breaks=True))


def escaped(text: str, longest: int = LONGEST_LINE) -> str:
    """Cut a message to `longest` characters and escape what `is_clean` refuses, as `\\x1b`, to one line."""
    cut = text if len(text) <= longest else f"{text[:longest]}…"
    return "".join(x if is_clean(x) else x.encode("unicode_escape").decode() for x in cut)


def spreadsheet_cell(text: str) -> str:
    """Put an apostrophe before what a spreadsheet would compute as a formula, so that it is shown as text.

    Also after a separator within the text, at which a spreadsheet of another locale begins a cell. Source: OWASP,
    CSV Injection.
    """
    return re.sub(r"(^|[;\t\r\n])(\s*)(?=[=+\-@＝＋－＠])", r"\1\2'", text)


def shortened(text: str) -> str:
    """Escape and cut an untrusted text for a message."""
    return ascii(text if len(text) <= 60 else f"{text[:60]}…")


def telling_words(labels: Sequence[str]) -> list[str]:
    """Return of each label the words that no other has, which tell it from them, or all where it has none.

    Of `right_lung` and `left_lung` these are `right` and `left`: the mean of both words of each is nearly the same.
    """
    words = [label.split("_") for label in labels]
    holders = Counter(word for one in words for word in set(one))
    return [
        "_".join(word for word in one if holders[word] == 1) or label for label, one in zip(labels, words, strict=True)
    ]
