"""Score the likelihood of a text by letter frequencies, in the languages of the legacy encodings."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import pairwise

from charset_normalizer.constant import FREQUENCIES

from vlm.resources import load_yaml

LATIN_FREQUENCIES: dict[str, str] = load_yaml("vlm.data.ingest", "letters.yaml")
"""Language of the Latin script → its non-ASCII letters, each with its frequency in a thousand."""
SCRIPT_LANGUAGES = {
    "CYRILLIC": ("Russian", "Ukrainian", "Bulgarian", "Serbian", "Kazakh"),
    "GREEK": ("Greek",),
    "ARABIC": ("Arabic", "Farsi"),
    "HEBREW": ("Hebrew",),
    "THAI": ("Thai",),
}
"""Script → languages whose letter ranks charset-normalizer has."""
IDEOGRAPHS = {
    "Chinese": ("gb2312", 0xD7, 3755, ("Chinese",)),
    "Chinese in traditional characters": ("big5", 0xC6, 5401, ("Chinese", "Japanese")),
    "Japanese": ("euc_jp", 0xCF, 3150, ("Japanese", "Japanese—", "Japanese——")),
    "Korean": ("euc_kr", 0xC8, 2350, ("Korean",)),
}
"""Language → codec, the last lead byte of its common characters, their number, and the lists of frequent ones."""
IMPLAUSIBLE = math.log(1e-6)
"""Log-likelihood of an implausible character: a letter of another script, a control or box-drawing character."""
PLAIN = -5.0
"""Log-likelihood of a sign that is usual in tables, and of a vowel mark."""
FOREIGN = -12.0
"""Log-likelihood of a non-ASCII letter of another Latin-script language."""
_WORD = re.compile(r"(?:[^\W\d_]|[\u0300-\u036f\u0591-\u05c7\u064b-\u0670\u0e31-\u0e4e])+")
_MARKS = "\u064b-\u0670\u0591-\u05c7\u0e31-\u0e4e"
_SIGN_IN_WORD = re.compile(
    rf"(?<=[^\W\d_])[^\w\s\x00-\x7f’‘´·–—，。、；：（）「」～{_MARKS}](?=[^\W\d_])|(?<![\w’])’(?=[^\W\d_])|"
    r"(?<=[a-z])[^\x00-\x7f\D]"
)
_PLAIN_SIGNS = frozenset("°µμ±²³½¼¾×·–—‘’“”„‚…«»‹›•€£§©®™¿¡ªº´\u00a0№、。，；：？！（）「」・％～《》〜￥→÷≤≥ー،؛؟¶")
_SCRIPTS = ("LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "THAI", "CJK", "HANGUL", "HIRAGANA", "KATAKANA")


def log_likelihood(text: str) -> float:
    """Compute the natural log-likelihood of a text's words in the best-fitting language.

    Every character above ASCII counts, and the ASCII letters of its word.
    """
    words = [word for word in _WORD.findall(text) if not word.isascii()]
    letters = Counter("".join(words))
    small = Counter("".join(words).lower())
    signs = Counter(letter for letter in text if not letter.isascii() and unicodedata.category(letter)[0] not in "LM")
    shape = sum(map(_odd_capitals, words)) * IMPLAUSIBLE
    scores = [_score(small, script) + shape for script in ("LATIN", *SCRIPT_LANGUAGES)]
    scores += [_ideographs(letters, language) for language in IDEOGRAPHS]
    inside = len(_SIGN_IN_WORD.findall(text))
    return max(scores) + sum(count * _sign(sign) for sign, count in signs.items()) + IMPLAUSIBLE * inside


def _sign(letter: str) -> float:
    if letter.isspace():
        return 0.0
    if unicodedata.category(letter) in ("Cc", "Co", "Cn"):
        return 3 * IMPLAUSIBLE
    return PLAIN if letter in _PLAIN_SIGNS or letter.isdecimal() else IMPLAUSIBLE


@cache
def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").removeprefix("HALFWIDTH ")
    return next((script for script in _SCRIPTS if name.startswith(script)), "")


def _score(letters: Mapping[str, int], script: str) -> float:
    """Compute the log-likelihood of letter counts in the best-fitting language of a script."""
    models = map(_latin_model, LATIN_FREQUENCIES) if script == "LATIN" else map(_rank_model, SCRIPT_LANGUAGES[script])
    return max(sum(count * _letter(letter, model, script) for letter, count in letters.items()) for model in models)


def _letter(letter: str, model: Mapping[str, float], script: str) -> float:
    if letter.isascii():
        return model[""] if script == "LATIN" else IMPLAUSIBLE  # no word mixes two scripts
    return model.get(letter, _rare(letter, script))


@cache
def _rare(letter: str, script: str) -> float:
    if script == "LATIN":  # perhaps a foreign name
        return FOREIGN if any(letter in _latin_model(language) for language in LATIN_FREQUENCIES) else IMPLAUSIBLE
    return PLAIN if unicodedata.category(letter)[0] == "M" and _script(letter) == script else IMPLAUSIBLE


def _odd_capitals(word: str) -> int:
    """Count capitals within or after small letters, a sign of a wrong encoding of a script with capitals."""
    if word.isupper() or word.islower():
        return 0
    capitals = sum(letter.isupper() and not letter.isascii() for letter in word[1:])
    return max(capitals, sum(a.islower() and b.isupper() for a, b in pairwise(word)))


@cache
def _latin_model(language: str) -> dict[str, float]:
    parts = LATIN_FREQUENCIES[language].split()
    shares = {letter: float(share) / 1000 for letter, share in zip(parts[::2], parts[1::2], strict=True)}
    return {letter: math.log(share) for letter, share in shares.items()} | {"": math.log(1 - sum(shares.values()))}


@cache
def _rank_model(language: str) -> dict[str, float]:
    """Return log-probabilities of the most frequent letters by rank; the rest of the alphabet shares 2 %."""
    letters = [letter for letter in FREQUENCIES[language] if not letter.isascii()]
    script = _script(letters[0])
    weights = {letter: math.exp(-0.12 * rank) for rank, letter in enumerate(letters)}
    whole = sum(weights.values())
    known = {letter: math.log(0.98 * weight / whole) for letter, weight in weights.items()}
    others = {chr(code) for code in range(0x370, 0xE80) if _script(chr(code)) == script and chr(code).isalpha()}
    plain = _OTHER_LETTERS.get(script)
    rest = {letter for letter in others if letter not in known and (plain is None or letter in plain)}
    return known | {letter: math.log(0.02 / max(len(rest), 1)) for letter in rest}


_OTHER_LETTERS = {"CYRILLIC": frozenset("абвгдеёжзийклмнопрстуфхцчшщъыьэюяґєіїўђјљњћџѓќѕ")}
"""Script → the letters in its encodings; scripts not listed use all letters."""


def _ideographs(letters: Mapping[str, int], language: str) -> float:
    codec, last, count, lists = IDEOGRAPHS[language]
    usual = {letter for name in lists for letter in FREQUENCIES[name]}
    return sum(times * _ideograph(letter, codec, last, count, usual) for letter, times in letters.items())


def _ideograph(letter: str, codec: str, last: int, count: int, usual: set[str]) -> float:
    if letter.isascii():
        return IMPLAUSIBLE / 2
    if letter in usual:
        return math.log(0.5 / len(usual))
    try:
        lead, *trail = letter.encode(codec)
    except UnicodeEncodeError:
        return 2 * IMPLAUSIBLE
    if not trail or _script(letter) in ("LATIN", "CYRILLIC", "GREEK"):
        return 2 * IMPLAUSIBLE
    return math.log(0.5 / count) if 0xA4 <= lead <= last else IMPLAUSIBLE + math.log(0.1)
