"""Text that can be shown: nothing in it controls a terminal, hides or reverses what stands around it."""

import unicodedata

LONGEST_LINE = 4000
"""Characters of a message."""


def is_clean(text: str, line_breaks: bool = False) -> bool:
    """Whether a text can be shown in a terminal and on a page: nothing controls, hides or reverses it."""
    allowed = "\n\t" if line_breaks else ""
    return not any(
        unicodedata.category(letter) in ("Cc", "Cs", "Co", "Zl", "Zp")
        or unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
        for letter in text
        if letter not in allowed
    )


def printable(text: str) -> str:
    """A text without the characters that `is_clean` refuses, line breaks kept."""
    return "".join(letter for letter in text if is_clean(letter, line_breaks=True))


def escaped(text: str, longest: int = LONGEST_LINE) -> str:
    """A message cut to `longest` characters, one line, with `\\x1b` in place of what `is_clean` refuses."""
    cut = text if len(text) <= longest else f"{text[:longest]}…"
    return "".join(x if is_clean(x) else x.encode("unicode_escape").decode() for x in cut)


def shortened(text: str) -> str:
    """A stranger's text in a message: escaped and cut."""
    return ascii(text if len(text) <= 60 else f"{text[:60]}…")
