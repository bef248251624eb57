"""Parse cells: text → number, category or missing; anything else is an error with its location."""

import math
import numbers
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from vlm.config import VitalConfig
from vlm.data.embedded import EmbeddedImage
from vlm.data.vitals.synonyms import FEMALE, MALE, NO, OTHER, YES, is_missing_word, plain_word
from vlm.data.vitals.units import conversion, is_count, units_of
from vlm.errors import UserError

LARGEST = (2 - 2**-23) * 2.0**127
"""Largest 32-bit float, the model's number type."""
_CATEGORY_PAIRS = ((FEMALE, MALE), (YES, NO))
"""Pairs of synonym sets, read if a vital has one category of each side; 0 and 1 alone mean nothing."""
_PLAIN = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?", re.ASCII)
_DIGITS = r"(?:\d+(?:[.,']\d+| \d{3}(?!\d))*[.,]?|[.,]\d+)(?:[eE][+-]?\d+)?"
_CELL = re.compile(
    rf"(?P<bound><=?|>=?|[≤≥~≈])? ?(?P<sign>[+-]?) ?(?P<low>{_DIGITS})(?: ?(?:-|to) ?(?P<high>{_DIGITS}))?"
    r"(?P<plus>\+?) ?(?P<unit>.*)"
)
_GROUPED = re.compile(r"([1-9]\d{0,2}(?:(?P<group>[.,' ])\d{3})(?:(?P=group)\d{3})*)(?:(?P<point>[.,])(\d*))?")
_FLAG = re.compile(r"(?: ?(?:\*+|!+|[↑↓]+|[(\[](?:HH|LL|H|L|\*)[)\]])|(?<=[\d +])(?:HH|LL|H|L))$")
_DATE = re.compile(
    r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}|\d{1,2}[- ]?(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)", re.IGNORECASE
)
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_SAME = str.maketrans(
    {**dict.fromkeys("·∙⋅‧٫", "."), **dict.fromkeys("−‐‑‒–—―﹣", "-"), **dict.fromkeys("’‘`´", "'"), "،": ","}
)
_SLASHES = str.maketrans("⁄∕", "//")
LONGEST = 100
"""Largest length of a cell to parse as a value, characters."""


def read_value(vital: VitalConfig, cell: Any, where: str, unit: str = "") -> float:
    """Parse one cell of a vital: its number in `vital.unit`, the index of its category, or NaN if missing.

    `unit` is the header's; a unit in the cell itself takes precedence. Raises `UserError` for anything else.
    """
    if isinstance(cell, str) and not vital.categories and not unit and _PLAIN.fullmatch(cell):
        return float(cell)
    if vital.categories:
        return _read_category(vital, cell, where)
    return math.nan if is_missing(cell) else _read_number(vital, cell, where, unit)


def is_missing(cell: Any) -> bool:
    """Check whether a cell is empty or holds a word for a missing value."""
    if isinstance(cell, str):
        return len(cell) <= LONGEST and is_missing_word(clean(cell))
    return (
        cell is None
        or type(cell).__name__ in ("NAType", "NaTType")  # pandas' missing values, without its slow import
        or (isinstance(cell, numbers.Real | Decimal) and cell != cell)
    )


def clean(text: str) -> str:
    """Normalize digits, points, dashes and spaces; strip Excel's text markers."""
    text = _SUPERSCRIPT.sub(lambda match: "^" + unicodedata.normalize("NFKC", match.group()), text)
    text = unicodedata.normalize("NFKC", text.translate(_SAME)).translate(_SAME)
    letters = (letter for letter in text if unicodedata.category(letter) != "Cf")
    text = "".join(str(unicodedata.decimal(letter)) if letter.isdecimal() else letter for letter in letters)
    text = " ".join(text.split())
    if text.startswith('="') and text.endswith('"'):
        text = text[2:-1]
    return text.removeprefix("'").strip()


def quoted(cell: Any) -> str:
    """Quote a cell for an error message, truncated."""
    if isinstance(cell, bytes | EmbeddedImage | list | dict | tuple):  # may be an image
        return f"a {_name(cell)}"
    text = repr(cell if isinstance(cell, str) else str(cell))
    return text if len(text) <= 42 else f"{text[:40]}…'"


def _read_category(vital: VitalConfig, cell: Any, where: str) -> float:
    whole = isinstance(cell, numbers.Real) and not isinstance(cell, bool) and float(cell).is_integer()
    word = plain_word(clean(str(int(cell) if whole else cell)[: LONGEST + 1]))
    words = [plain_word(clean(category)) for category in vital.categories]
    if word in words:
        return float(words.index(word))
    if is_missing(cell):
        return math.nan
    for pair in _CATEGORY_PAIRS:
        sides = [[index for index, name in enumerate(words) if name in side] for side in pair]
        if all(len(side) == 1 for side in sides):
            for names, side in zip(pair, sides, strict=True):
                if word in names or word.rstrip(".") in names:
                    return float(side[0])
            if pair == (FEMALE, MALE) and word in OTHER:
                others = [index for index, name in enumerate(words) if name in OTHER]
                return float(others[0]) if len(others) == 1 else math.nan
    raise UserError(f"{where}: {quoted(cell)} is none of {', '.join(vital.categories)}")


def _read_number(vital: VitalConfig, cell: Any, where: str, unit: str) -> float:
    if isinstance(cell, bool) or not isinstance(cell, str | numbers.Real | Decimal):
        raise UserError(f"{where}: {quoted(cell)} is {_kind(cell)}, not a number{_in_unit(vital)}")
    if isinstance(cell, str):
        return _read_text(vital, cell, where, unit)
    try:
        number = float(cell)
    except OverflowError:
        number, cell = math.inf, "inf"
    return _finite(_convert(vital, number, unit, where), cell, where)


def _read_text(vital: VitalConfig, cell: str, where: str, unit: str) -> float:
    text = clean(cell[: LONGEST + 1])
    if text.lower().lstrip("+-") in ("inf", "infinity", "∞"):
        raise UserError(f"{where}: {quoted(cell)} is not a finite number")
    while _FLAG.search(text):
        text = _FLAG.sub("", text)
    text = re.sub(r"^(?:(?:\*+|HH?|LL?) |[↑↓]+ ?)(?=\d)", "", text)
    match = _CELL.fullmatch(text)
    if match is None or len(cell) > LONGEST or _DATE.match(text) or not _is_unit(match["unit"]):
        kind = "looks like a date, not" if _DATE.match(text) else "is not"
        raise UserError(f"{where}: {quoted(cell)} {kind} a number{_in_unit(vital)}")
    unit = unit if match["unit"] in ("", "°") else match["unit"]
    low = _choose(vital, match["sign"], match["low"], unit, cell, where)
    if match["high"] is None:
        return low
    high = _choose(vital, "", match["high"], unit, cell, where)
    odd = match["sign"] or match["bound"] or match["plus"] or re.match(r"0\d", match["low"])
    if odd or low > high:
        raise UserError(f"{where}: {quoted(cell)} is no range; write the lower number first, such as 91-92")
    return _finite(low / 2 + high / 2, cell, where)


def _choose(vital: VitalConfig, sign: str, digits: str, unit: str, cell: str, where: str) -> float:
    """Choose the one plausible reading of a comma or point; if several are implausible, the decimal."""
    readings = _readings(digits, is_count(unit))
    found = [_finite(_convert(vital, float(sign + reading), unit, where), cell, where) for reading in readings]
    if not found:
        raise UserError(f"{where}: {quoted(cell)} is not a number{_in_unit(vital)}")
    fitting = [value for value in found if is_plausible(vital, value)]
    if len(fitting) > 1:
        one, other = readings
        raise UserError(f"{where}: {quoted(cell)} can be read as {one} or {other}; write one of these")
    return (fitting or found)[0]


def _readings(digits: str, whole: bool = False) -> list[str]:
    """List readings: `1,234` → 1.234 and 1234; `6,4`, `1 234` and (unless `whole`) `1.234` one; `1.2.3` none."""
    body, _, power = digits.lower().partition("e")
    found = []
    if re.fullmatch(r"\d*[.,]?\d*", body):
        found.append(body.replace(",", "."))
    match = _GROUPED.fullmatch(body)
    if match and match["group"] != match["point"] and not (match["group"] == "." and found and not whole):
        found.append(re.sub(r"\D", "", match[1]) + (f".{match[4]}" if match[4] else ""))
    return [f"{text}e{power}" if power else text for text in found]


def _convert(vital: VitalConfig, number: float, unit: str, where: str) -> float:
    if not unit:
        return number
    pair = conversion(vital, unit)
    if pair is None:
        raise UserError(f"{where}: unit {unit} is none of those that {vital.name} takes: {units_of(vital)}")
    return number if pair == (1.0, 0.0) else pair[0] * number + pair[1]


def _finite(number: float, cell: Any, where: str) -> float:
    if not math.isfinite(number):
        raise UserError(f"{where}: {quoted(cell)} is not a finite number")
    return number


def _is_unit(text: str) -> bool:
    """Check whether the rest of a cell can be a unit: no second number, no sentence."""
    return len(text) <= 20 and not re.match(r"[-+:;,.'=<>@]", text)


def _kind(cell: Any) -> str:
    if isinstance(cell, bool):
        return "true or false"
    return "a date" if hasattr(cell, "isoformat") else f"of type {_name(cell)}"


def _name(cell: Any) -> str:
    """Get the name of a cell's type; for a subclass of a built-in type, the built-in name."""
    if isinstance(cell, EmbeddedImage):
        return "bytes"
    return next((kind.__name__ for kind in (bytes, list, dict) if isinstance(cell, kind)), type(cell).__name__)


def _in_unit(vital: VitalConfig) -> str:
    return f" ({vital.unit})" if vital.unit else ""


def is_plausible(vital: VitalConfig, value: float) -> bool:
    """Check whether a value is plausible for a living patient; a missing value and a category always are."""
    low, high = vital.plausible or (-LARGEST, LARGEST)
    return math.isnan(value) or (abs(value) <= LARGEST and low <= value <= high)


def suspected_unit(vital: VitalConfig, implausible: Sequence[float]) -> str | None:
    """Find the accepted unit in which most of these numbers would be plausible, if there is one."""
    for unit, (factor, offset) in vital.accepts.items():
        fitting = sum(is_plausible(vital, factor * value + offset) for value in implausible)
        if (factor, offset) != (1, 0) and fitting > len(implausible) / 2:
            return unit
    return None


def split_pressure(cell: Any, where: str) -> tuple[Any, Any]:
    """Split `125/80 mmHg` → (`125 mmHg`, `80 mmHg`); a missing value gives two.

    Another separator or a word is accepted if the first number is the larger. A mean pressure in brackets must lie
    between the two.
    """
    if is_missing(cell):
        return "", ""
    text = _FLAG.sub("", clean(str(cell)[: LONGEST + 1].translate(_SLASHES)))
    text = re.sub(r"^(?:bp|ад|rr|ta|nibp|blood pressure)[ :=]*(?=\d)", "", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=\d) ?([^\W\d]+)(?= ?/ ?\d+ ?\1$)", "", text)  # 120 mmHg / 80 mmHg
    is_plain = text.count("/") == 1 and not re.search(rf"[(\[]|{_MEAN}", text, re.IGNORECASE)
    parts = text.split("/") if is_plain else _parts_of_pressure(text)
    if len(parts) != 2:
        raise UserError(
            f"{where}: {quoted(cell)} is no blood pressure; write systolic/diastolic in mmHg, such as 125/80"
        )
    high, low = (re.fullmatch(r" ?(\d{2,3})(?:[.,]\d+)?\b.*", part) for part in parts)
    if high and low and int(high[1]) < int(low[1]):
        raise UserError(f"{where}: {quoted(cell)}: the systolic is below the diastolic; write such as 125/80")
    unit = re.fullmatch(r" ?[\d.,]+ ?([^\W\d].*)", parts[1])
    return (f"{parts[0]} {unit[1]}" if unit else parts[0]).strip(), parts[1].strip()


_MEAN = "map|mad|mbp|сад|срад"
_TWO = re.compile(
    r"(\d{2,3}(?:[.,]\d+)?) ?(?:[/\\|:x×х-]|over|auf|zu|to|на|sur|su|por|(?<= )(?=\d)) ?(\d{2,3}(?:[.,]\d+)?)"
    rf"( ?[^\W\d][^\d()/]*?)??(?:[ ,;]*(?:[(\[](?:{_MEAN})?|(?:{_MEAN}))[ :=]*"
    rf"(\d{{2,3}}(?:[.,]\d+)?)( ?[^\W\d][^()\[\]]*)?[)\]]?)?"
    r"( ?[^\W\d][^\d()/]*)?", re.IGNORECASE
)  # fmt: skip


def _parts_of_pressure(text: str) -> list[str]:
    """Split a cell not written as 125/80 into systolic and diastolic, each with its unit; empty if it cannot."""
    match = _TWO.fullmatch(text)
    if not match:
        return []
    high, low, mean = (float(match[group].replace(",", ".")) if match[group] else math.nan for group in (1, 2, 4))
    if high <= low or not (math.isnan(mean) or low <= mean <= high):
        return []
    unit = (match[3] or match[6] or "").strip()
    return [match[1], f"{match[2]} {unit}".strip()]
