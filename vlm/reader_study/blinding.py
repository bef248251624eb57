"""Blind the readers: one text for sources that wrote the same, a random order for each reader, and secret codes."""

import secrets
from collections.abc import Sequence

import numpy as np

from vlm.plain import printable
from vlm.reader_study.study_file import Layout, Page, StudyCase, Text

_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
"""Letters of a code, without those that look alike; twelve of them are 59 bits."""


def merge_same(texts: Sequence[tuple[str, str]]) -> list[Text]:
    """Merge the texts of (source, text) that differ in white space at most."""
    merged: dict[str, Text] = {}
    for source, text in texts:
        clean = printable(text).strip()
        merged.setdefault(" ".join(clean.split()), Text(clean, [])).sources.append(source)
    return list(merged.values())


def shuffled_pages(cases: Sequence[StudyCase], layout: Layout, seed: int, reader: int) -> list[Page]:
    """Shuffle the pages of one reader: each text alone, or the texts of each case in a random order."""
    rng = np.random.default_rng([seed, reader])
    orders = [rng.permutation(len(case.texts)).tolist() for case in cases]
    pages = [Page(place, order) for place, order in enumerate(orders)]
    if layout == "single":
        pages = [Page(page.case, [text]) for page in pages for text in page.texts]
    return [pages[place] for place in rng.permutation(len(pages))]


def new_code() -> str:
    """Make a code for one reader, such as `k7wq-x2mf-9rbd`."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(3))
