"""Parse units in their common spellings, `units.yaml`, and convert the values of vitals."""

import re
import unicodedata

from vlm.config import VitalConfig
from vlm.resources import load_yaml

_TABLES = load_yaml("vlm.data.vitals", "units.yaml")
_SPELLINGS: dict[str, str] = _TABLES["spellings"]
_UCUM: dict[str, str] = _TABLES["ucum"] | {unit: unit for unit in _TABLES["same_in_ucum"].split()}
_WORDS: dict[str, str] = {word: unit for unit, words in _TABLES["words"].items() for word in words.split()}


def normal_unit(text: str) -> str:
    """Normalize a unit: spaces, case, slashes, carets and either micro sign do not matter: `µg / dL` equals `ug_dl`."""
    return re.sub(r"[^\w%]", "", _lower(text))


def _lower(text: str) -> str:
    """Normalize to lower-case Latin, with one micro sign and a slash for each underscore, `per` and power of -1."""
    lower = unicodedata.normalize("NFKC", text).lower().replace("_", "/").replace("mcg", "μg")
    lower = re.sub(r"[а-яёіїєґ]+|[a-zμ]+|[^\W\da-zμа-яёіїєґ_]+", lambda match: _WORDS.get(match[0], match[0]), lower)
    lower = re.sub(r"/(d?l|ml|min)/1$", r"/\1", lower)  # from a header, which has lost its hyphens
    lower = re.sub(r"(?<=[a-zμ]) per (?=[a-zμ])", "/", lower)
    lower = re.sub(r"[ ·*.]*\b(d?l|ml|μl|min)\^?[-−]\^?1\b", r"/\1", lower)
    return re.sub(r"(?<![a-z])u(?=(?:g|mol|kat|l)(?![a-z]))", "μ", lower)


SPELLINGS = {
    normal_unit(unit): {normal_unit(word) for word in words.split()} - {normal_unit(unit)}
    for unit, words in _SPELLINGS.items()
}


def is_count(unit: str) -> bool:
    """Check whether a unit counts cells, which are integers: in `5.000 /µL` the point may separate thousands."""
    word = normal_unit("/µL")
    return normal_unit(unit) in {word, *SPELLINGS[word]}


def ucum(unit: str) -> str | None:
    """Get the UCUM code of a unit in any spelling; None for a custom unit or an ambiguous spelling."""
    if unit in _UCUM:
        return _UCUM[unit]
    word = "".join(_lower(unit).split())  # the slash stays: `min` is no rate
    spelled = {known: {_lower(known), *_lower(_SPELLINGS.get(known, "")).split()} for known in _UCUM}
    codes = {_UCUM[known] for known, words in spelled.items() if word in words}
    return codes.pop() if len(codes) == 1 else None


def ucum_conversion(vital: VitalConfig, code: str) -> tuple[float, float] | None:
    """Get the `conversion` for a UCUM code; annotations in braces do not affect the number."""
    for unit in (vital.unit, *vital.accepts):
        if ucum(unit) == code:
            return conversion(vital, unit) or (1.0, 0.0)
    bare, own = re.sub(r"\{[^}]*\}", "", code), ucum(vital.unit) or ""
    if bare in ("", "1", "[pH]") and (own == "1" or own.startswith("{")):
        return 1.0, 0.0  # a score or a pH has no unit
    return conversion(vital, bare)


def conversion(vital: VitalConfig, written: str) -> tuple[float, float] | None:
    """Get the (factor, offset) from the unit `written` to `vital.unit`; None if the unit is not accepted."""
    known = {vital.unit: (1.0, 0.0)} if vital.unit else {}
    known |= {unit: (pair[0], pair[1]) for unit, pair in vital.accepts.items()}
    if vital.feature == "slope":  # of a series, a day: `mmol/L/d`
        known = {unit.removesuffix("/d"): pair for unit, pair in known.items()}
        written = written.removesuffix("/d")
    word = normal_unit(written)
    for unit, pair in known.items():
        if word == normal_unit(unit):
            return pair
    for unit, pair in known.items():
        if word in SPELLINGS.get(normal_unit(unit), ()):
            return pair
    return None


def units_of(vital: VitalConfig) -> str:
    """Format the accepted units of a vital for a message."""
    return ", ".join(unit for unit in (vital.unit, *vital.accepts) if unit) or "none"
