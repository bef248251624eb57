"""Parse units in their common spellings, and convert the values of vitals."""

import re
import unicodedata

from vlm.config import VitalConfig

_SPELLINGS = {
    "°C": "Celsius degC degreesC deg_C oC 摄氏度 град градусов grados grad gradi graus",
    "°F": "Fahrenheit degF degreesF oF",
    "%": "percent pct prozent процентов процент",
    "fraction": "ratio share proportion 0-1",
    "years": "y yr yrs year yo yearsold yrsold "
    "jahre jahr j. ans an años año anni lat rok let anos roku ára yaş 岁 歲 歳 才 세 살 سنة г "
    "jahrealt jaar år év éves yaşında ετών έτη metų gads gadi godina god. vuotta",
    "months": "m mo mos mth mths month monate monat mois meses mesi 月 个月 か月 ヶ月 カ月 ヵ月 個月 개월",
    "weeks": "w wk wks week wochen woche semaines 周 週",
    "days": "d day tage tag jours jour días giorni dni 天 日",
    "mmHg": "torr 毫米汞柱",
    "/min": "bpm 1/min min-1 permin perminute /minute beats/min beats/minute breaths/min breaths/minute rpm "
    "/m 次/min 回/min schläge/min уд/min вдохов/min дых/min в/min раз/min уд.в.min уд.в.1.min lpm spm",
    "cm": "centimetre centimetres centimeter centimeters",
    "m": "metre metres meter meters",
    "in": "inch inches",
    "kg": "kgs kilo kilos kilogram kilograms",
    "lb": "lbs pound pounds",
    "g": "gram grams",
    "10^9/L": "x10^9/L 10e9/L x10e9/L 1e9/L G/L Giga/L Gpt/L /nL K/µL K/mm3 10^3/µL x10^3/µL 10e3/µL x10e3/µL "
    "10^3/mm3 x10^3/mm3 thou/µL thousand/µL Tsd/µL 1000/µL",
    "/µL": "1/µL cells/µL /mm3 cells/mm3 1/mm3",
    "U/L": "IU/L UI/L units/L",
    "mg/dL": "mg%",
    "g/dL": "g%",
    "points": "point pts /10",
}
"""Unit → its other spellings. One spelling may stand for two units (`m`, `G/L`): the vital decides."""

_UCUM = {
    "": "1",
    "fraction": "1",
    "points": "{score}",
    "level": "{level}",
    "°C": "Cel",
    "°F": "[degF]",
    "years": "a",
    "months": "mo",
    "weeks": "wk",
    "days": "d",
    "in": "[in_i]",
    "lb": "[lb_av]",
    "mmHg": "mm[Hg]",
    "mEq/L": "meq/L",
    "10^9/L": "10*9/L",
    "µg/mL": "ug/mL",
    "µg/L": "ug/L",
    "µmol/L": "umol/L",
    "µkat/L": "ukat/L",
    "/µL": "/uL",
}
_UCUM |= {unit: unit for unit in ("%", "/min", "cm", "m", "kg", "g", "kg/m2", "kPa", "mmol/L", "mg/dL", "g/dL", "g/L",
                                  "mg/L", "ng/L", "ng/mL", "pg/mL", "U/L")}  # fmt: skip
"""Unit → its code in the Unified Code for Units of Measure (UCUM), used in data exchange."""


def normal_unit(text: str) -> str:
    """Normalize a unit: spaces, case, slashes, carets and either micro sign do not matter: `µg / dL` equals `ug_dl`."""
    return re.sub(r"[^\w%]", "", _lower(text))


_WORDS = {
    "ммоль": "mmol", "мкмоль": "μmol", "нмоль": "nmol", "мг": "mg", "мкг": "μg", "нг": "ng", "пг": "pg", "г": "g",
    "кг": "kg", "л": "l", "дл": "dl", "мл": "ml", "мкл": "μl", "мм": "mm", "рт": "h", "ст": "g", "см": "cm", "м": "m",
    "кпа": "kpa", "мэкв": "meq", "ед": "u", "ме": "iu", "мкат": "mkat", "мккат": "μkat",
    "мин": "min", "с": "c", "ф": "f", "х": "x", "е": "u", "років": "years", "роки": "years", "рік": "years",
    "литр": "l", "литра": "l", "грамм": "g", "гр": "g", "килограмм": "kg", "кл": "cells", "минуту": "min",
    "ударов": "уд",
    "лет": "years", "год": "years", "года": "years", "мес": "months", "месяц": "months", "месяца": "months",
    "месяцев": "months", "нед": "weeks", "недель": "weeks", "недели": "weeks", "дн": "days", "дней": "days",
    "дня": "days", "день": "days", "сут": "days", "тыс": "k", "баллов": "points", "балла": "points",
    "liter": "l", "litre": "l", "liters": "l", "litres": "l", "deciliter": "dl", "decilitre": "dl", "gm": "g",
    "gr": "g", "mcmol": "μmol", "mkmol": "μmol", "mkg": "μg", "micromol": "μmol", "millimol": "mmol", "thou": "k",
    "old": "",
    "毫摩尔": "mmol", "微摩尔": "μmol", "毫克": "mg", "微克": "μg", "纳克": "ng", "克": "g", "千克": "kg", "公斤": "kg",
    "升": "l", "分升": "dl", "毫升": "ml", "微升": "μl", "厘米": "cm", "公分": "cm", "米": "m", "分": "min",
    "分钟": "min", "分鐘": "min",
}  # fmt: skip
"""Translation of each word of a unit, written out or in another script: `мм рт. ст.` is mm Hg, `毫摩尔/升` mmol/L."""


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
