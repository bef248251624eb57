"""Detect the encoding of a text table: UTF-8, a byte order mark, or the legacy encoding of highest likelihood.

A legacy encoding is taken only if its decoding of the table's words is far more likely than every other. Otherwise
the user is asked.
"""

import codecs
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vlm.data.ingest.letters import log_likelihood
from vlm.errors import UserError

BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
CANDIDATES = {
    "cp1252": "Windows-1252", "cp1250": "Windows-1250", "cp1251": "Windows-1251", "cp1253": "Windows-1253",
    "cp1254": "Windows-1254", "cp1255": "Windows-1255", "cp1256": "Windows-1256", "cp1257": "Windows-1257",
    "cp874": "Windows-874", "gb18030": "GB 18030", "cp932": "Shift-JIS", "cp949": "EUC-KR", "big5": "Big5",
    "euc_jp": "EUC-JP", "koi8_r": "KOI8-R", "koi8_u": "KOI8-U", "cp866": "DOS 866", "cp1125": "DOS 1125",
    "iso8859_15": "ISO 8859-15", "iso8859_2": "ISO 8859-2", "iso8859_5": "ISO 8859-5", "iso8859_6": "ISO 8859-6",
    "iso8859_7": "ISO 8859-7",
    "iso8859_9": "ISO 8859-9", "iso8859_8": "ISO 8859-8", "cp850": "DOS 850", "cp437": "DOS 437",
    "cp852": "DOS 852", "mac_roman": "Mac Roman", "mac_cyrillic": "Mac Cyrillic",
}  # fmt: skip
"""Codec → its usual name; if two codecs decode a table alike, the first is taken."""
_NO_TEXT = ("idna", "punycode", "unicode_escape", "raw_unicode_escape")
MOST_SAMPLE = 1 << 16
"""Bytes of distinct words to sample."""
LONGEST_WORD = 4096
LEAST_LOG_RATIO = 6.0
"""Smallest natural-log likelihood ratio of the best codec to any other: 400 times."""
LEAST_RATIO_SHARE = 0.05
"""The same threshold as a share of the log-likelihood of the words that two codecs decode differently."""
CP1252_PRIOR = 3.0
"""Log prior added for Windows-1252."""
UTF8_SHARE = 0.2
"""Share of well-formed UTF-8 among the bytes of non-ASCII words that no other encoding reaches by chance."""
PLAUSIBLE_BYTE = -6.0
"""Smallest mean log-likelihood, in another encoding, of words that are valid UTF-8 too."""
LEAST_PLAUSIBLE_BYTE = -9.0
"""Mean log-likelihood of a byte above 127 below which even the best decoding is not text."""
_UNIT = re.compile(
    rb"[\d.,<>~(\[+-]*"
    rb"(?:\xb0[CcFf]?|\xba[CcFf]|\xb5(?:g|mol|kat|[lLmM])|[\xb1\xd7]\d*|\d\xb7\d+|[mc]?m[\xb2\xb3])[\x20-\x7e\xb2\xb3\xb7\xb9]*"
)
"""A number or unit with a sign that all Windows encodings of alphabets share."""
_WORD = re.compile(rb'[^\s,;"]*[\x80-\xff][^\s,;"]*')
_WAY_OUT = "save the table as UTF-8, or set data.table.encoding (--encoding)"


@dataclass(frozen=True)
class Encoding:
    """Detected encoding, with a note if it was chosen by likelihood."""

    codec: str
    notes: tuple[str, ...] = ()


def check_codec(name: str) -> str:
    """Return Python's name of a text encoding; raises `UserError` if it is not one."""
    try:
        found = codecs.lookup(name)
        if not found._is_text_encoding or found.name.replace("-", "_") in _NO_TEXT:
            raise LookupError
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        near = "such as utf-8, cp1252, cp1251, gb18030, shift_jis, euc_kr"
        raise UserError(
            f"data.table.encoding: {name!a:.60} is no encoding; name one that Python knows, {near}"
        ) from None
    return found.name


def find_encoding(path: Path, opened: Callable[[Path], BinaryIO], wanted: str | None = None) -> Encoding:
    """Detect the encoding of a text file, or check `wanted` if the user names one.

    Raises `UserError` for a file that is not in `wanted`, for damaged UTF-8, and for an ambiguous encoding.
    """
    with opened(path) as file:
        head = file.read(4)
    marked = next((name for bom, name in BOMS if head.startswith(bom)), "utf-8")
    codec = check_codec(wanted) if wanted else marked
    if wanted and marked != "utf-8":
        if not marked.startswith(codec[:6]):
            found = marked.removesuffix("-sig").upper()
            raise UserError(f"{path}: begins with the byte order mark of {found}, which is not {wanted}; leave "
                            "data.table.encoding (--encoding) away")  # fmt: skip
        codec = marked
    fault = _first_fault(path, opened, codec)
    if fault is None:
        return Encoding(codec)
    if wanted:
        raise UserError(f"{path}: line {fault} is not in {wanted}, which data.table.encoding (--encoding) names")
    if marked != "utf-8":
        raise UserError(f"{path}: not in the encoding that its byte order mark states; save it as UTF-8")
    return _by_likelihood(path, opened, fault)


def _first_fault(path: Path, opened: Callable[[Path], BinaryIO], codec: str) -> int | None:
    """Find the first line that does not decode, None if all do; reads a block at a time."""
    decoder, lines = codecs.getincrementaldecoder(codec)(), 1
    with opened(path) as file:
        while True:
            block = file.read(1 << 20)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                return lines + error.object[: error.start].count(b"\n")
            if not block:
                return None
            lines += text.count("\n")


def _by_likelihood(path: Path, opened: Callable[[Path], BinaryIO], fault: int) -> Encoding:
    words = _words(path, opened)
    readings = _readings(list(words))
    utf8 = [word for word, well_formed in words.items() if well_formed]
    many = sum(map(len, utf8)) > UTF8_SHARE * sum(map(len, words))
    if many or (utf8 and not (readings and _is_plausible(utf8, readings[0][0], PLAUSIBLE_BYTE))):
        raise UserError(f"{path}: line {fault} is not UTF-8, though other lines are; mend it, or {_WAY_OUT}")
    if not readings or not _is_plausible(list(words), readings[0][0]):
        raise UserError(f"{path}: line {fault} is not UTF-8, and in no encoding that we know its words are a text; "
                        f"{_WAY_OUT}")  # fmt: skip
    (codec, best), *others = readings
    near = [codec, *(other for other, score in others if not _is_likelier(list(words), codec, other, best - score))]
    if len(near) > 1:
        *first, last = (CANDIDATES[codec] for codec in near)
        raise UserError(f"{path}: line {fault} is not UTF-8, and its letters could be {', '.join(first)} or {last}; "
                        f"{_WAY_OUT} to one of {', '.join(near)}")  # fmt: skip
    name = CANDIDATES[codec]
    return Encoding(codec, (f"{path}: not UTF-8 (line {fault}), so read as {name} (codec {codec}), in which its "
                            "letters make words; set data.table.encoding if they look wrong",))  # fmt: skip


def _is_likelier(words: list[bytes], codec: str, other: str, difference: float) -> bool:
    """Check whether a codec is likelier than another by both thresholds, `LEAST_LOG_RATIO` and `LEAST_RATIO_SHARE`."""
    if difference < LEAST_LOG_RATIO:
        return False
    odd = b" ".join(word for word in words if word.decode(codec) != word.decode(other, "replace"))
    return difference >= LEAST_RATIO_SHARE * -log_likelihood(odd.decode(codec))


def _is_plausible(words: list[bytes], codec: str, least: float = LEAST_PLAUSIBLE_BYTE) -> bool:
    data = b" ".join(word for word in words if not _UNIT.fullmatch(word))
    return log_likelihood(data.decode(codec)) >= least * sum(byte > 127 for byte in data)


def _words(path: Path, opened: Callable[[Path], BinaryIO]) -> dict[bytes, bool]:
    """Collect distinct words with a byte above 127 until the sample is full, each with whether it is UTF-8."""
    words: dict[bytes, bool] = {}
    size, rest = 0, b""
    with opened(path) as file:
        while size < MOST_SAMPLE and (block := file.read(1 << 20)):
            block = rest + block
            cut = max(block.rfind(b"\n"), block.rfind(b" "), block.rfind(b",")) + 1
            rest = block[cut:][-LONGEST_WORD:]
            for word in _WORD.findall(block[:cut] or block):
                if word not in words and len(word) <= LONGEST_WORD and size < MOST_SAMPLE:
                    words[word] = _is_utf8(word)
                    size += len(word)
    for word in _WORD.findall(rest):
        words.setdefault(word, _is_utf8(word))
    return words


def _is_utf8(word: bytes) -> bool:
    try:
        word.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _readings(words: list[bytes]) -> list[tuple[str, float]]:
    """Return (codec, log-likelihood) of each distinct valid decoding of the words, the likeliest first."""
    letters = [word for word in words if not _UNIT.fullmatch(word)]
    if not letters:
        return [("cp1252", 0.0)]
    data, found, seen = b" ".join(letters), [], set()
    for codec in CANDIDATES:
        try:
            text = data.decode(codec)
        except UnicodeDecodeError:
            continue
        key = zlib.crc32(text.encode("utf-32", "surrogatepass"))
        if key not in seen:
            seen.add(key)
            found.append((codec, log_likelihood(text) + (CP1252_PRIOR if codec == "cp1252" else 0)))
    return sorted(found, key=lambda one: -one[1])
