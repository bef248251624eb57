"""Score the likelihood of a text by letter frequencies, in the languages of the legacy encodings."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import pairwise

from charset_normalizer.constant import FREQUENCIES

LATIN_FREQUENCIES = {
    "French": "é 15 à 5 è 3 ê 2 ç 1 î .5 û .6 ù .6 ô .3 â .5 ë .1 ï .1 œ .2",
    "German": "ü 10 ä 6 ö 4.4 ß 3",
    "Spanish": "ó 8 í 7 á 5 é 4.3 ñ 3 ú 1.7 ü .1",
    "Portuguese": "ã 7.3 ç 5.3 é 4 í 2 á 3 ê 3 ó 3 õ 2 ú 1.5 à .8 â .6 ô .6",
    "Italian": "à 6 è 3 ò 2 ù 2 é .3 ì .5",
    "Catalan": "é 3 à 6 ó 5 è 3 í 3 ç 1 ò 2 ú 1 ï .5 ü .3",
    "Dutch": "é .3 ë .8 ï .3 ü .1 ö .1",
    "Swedish": "ä 18 å 13 ö 13 é .3",
    "Danish": "å 11 ø 10 æ 9 é .2",
    "Finnish": "ä 36 ö 4.5 å .1",
    "Icelandic": "ð 44 á 18 í 16 þ 15 ó 10 æ 9 ö 8 é 6 ú 6 ý 2",
    "Turkish": "ı 51 ü 19 ş 18 ç 12 ğ 11 ö 8 â .2 î .1 i̇ 5",
    "Polish": "ł 21 ę 11 ą 10 ó 9 ż 8 ś 7 ć 4 ń 2 ź .6",
    "Czech": "í 32 á 22 ě 16 é 13 ř 12 ý 11 ž 10 č 9.5 š 8 ů 7 ú 1 ť .4 ň .4 ó .3 ď .3",
    "Slovak": "á 16 í 13 ý 11 č 10 é 8 ž 8 ú 8 š 7 ť 7 ľ 3.5 ď 2 ň 1.5 ô 1.5 ä 1 ó 1 ĺ .1 ŕ .1",
    "Hungarian": "á 37 é 33 ó 11 ö 10 ő 9 í 6 ü 6 ú 3.5 ű 2.5",
    "Romanian": "ă 17 î 9 ţ 9 ş 9 ș 9 ț 9 â 6",
    "Croatian": "č 11 š 10 ć 7 ž 6 đ 2.5",
    "Lithuanian": "ė 16 ų 13 š 11 ž 8 į 6 č 5 ū 5 ą 6 ę 2",
    "Latvian": "ā 39 ī 19 ē 17 š 9 ņ 6 ū 6 ļ 4 č 2 ķ 2 ģ 1.5 ž 2",
    "Estonian": "ä 9 õ 9 ü 5 ö 3 š .2 ž .1",
}
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
