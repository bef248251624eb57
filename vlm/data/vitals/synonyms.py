"""Load synonyms in several languages, `synonyms.yaml`: yes and no, the sexes, missing values."""

import re
import unicodedata

from vlm.resources import load_yaml


def plain_word(text: str) -> str:
    """Normalize to lower case and one Unicode form; strip spaces, quotes and byte order marks."""
    word = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return word.strip("\u200b\ufeff'\"")


def _words(text: str) -> frozenset[str]:
    """Collect the words of a text, normalized by `plain_word`; underscores join words of several parts."""
    return frozenset(plain_word(word.replace("_", " ")) for word in text.split())


_TEXTS = load_yaml("vlm.data.vitals", "synonyms.yaml")
MISSING = _words(_TEXTS["missing"]) | {""}
YES, NO, UNCERTAIN = (_words(_TEXTS[name]) for name in ("yes", "no", "uncertain"))
FEMALE, MALE, OTHER = (_words(_TEXTS[name]) for name in ("female", "male", "other"))
_SQUEEZED = {re.sub("[. ]", "", word) for word in MISSING}


def is_missing_word(text: str) -> bool:
    """Check whether a text is one of `MISSING`, in any case, with or without points: `N.A.`, `k. A.`."""
    word = plain_word(text)
    return word in MISSING or re.sub("[. ]", "", word) in _SQUEEZED
