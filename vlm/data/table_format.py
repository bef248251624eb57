"""How a text table is written: encoding, separator, and what a file is that is no table at all."""

import codecs
import csv
import gzip
import io
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from vlm.errors import UserError

LONGEST_CELL = 1 << 24
"""Characters; a longer cell is a quote that nobody closed."""
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_MAGIC = (
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; save it as CSV"),
    (b"\x1f\x8b", "a gzip file; name it .csv.gz"),
    (b"PAR1", "a Parquet file; name it .parquet"),
    (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
    (b"BZh", "a bzip2 file; unpack it first"),
    (b"\xfd7zXZ", "an xz file; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file; unpack it first"),
    (b"{\\rtf", "an RTF document"),
)


@dataclass(frozen=True)
class TableFormat:
    """What was found out about a text table, and what a reader should be told of it."""

    encoding: str
    separator: str
    skip: int
    """Lines before the header: 1 for Excel's `sep=;`, else 0."""
    has_nul: bool
    notes: tuple[str, ...]
    """Choices that could be wrong, each with its reason."""


def table_format(path: Path) -> TableFormat:
    """Find encoding and separator of a `.csv`, `.tsv`, `.txt` or gzipped one, in one pass over its bytes.

    Raises `UserError` for an empty file and for one that is something else.
    """
    stat = path.stat()
    return _format(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _format(path: Path, _mtime: int, _size: int) -> TableFormat:
    try:
        with open_bytes(path) as file:
            head = file.read(1 << 16)
            _refuse_other_kinds(path, head)
            encoding, has_nul, notes = _encoding(path, head, file)
        with io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="") as text:
            lines = list(islice(iter(lambda: text.readline(1 << 21), ""), 60))
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read the table: {error}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not in the encoding that its byte order mark states; save it as UTF-8") from None
    declared = re.fullmatch(r'"?sep=(.)"?', lines[0].strip("\r\n")) if lines else None
    if declared:
        return TableFormat(encoding, declared[1], 1, has_nul, notes)
    return TableFormat(encoding, _separator(lines, path), 0, has_nul, notes)


def open_bytes(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where it is gzipped."""
    return cast(BinaryIO, gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb"))


def _refuse_other_kinds(path: Path, head: bytes) -> None:
    kind = seems_to_be(head)
    if kind:
        raise UserError(f"{path}: no text table, it seems to be {kind}")
    if not head.strip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"):
        raise UserError(f"{path}: the file is empty")


def seems_to_be(head: bytes) -> str | None:
    """What a file's first bytes are, in words; None for text."""
    if head.startswith(b"PK\x03\x04"):
        return "an Excel workbook; save it as CSV" if b"xl/" in head or b"[Content_" in head else "a ZIP archive"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if re.match(rb"\s*<(!doctype|html|\?xml|table)", head, re.I):
        return "HTML or XML; save it as CSV"
    if re.match(rb'\s*(\{\s*"|\[\s*[{\[])', head):
        return "JSON; save it as CSV"
    if any(head.startswith(bom) for bom, _ in _BOMS):
        return None
    if max(head[::2].count(0), head[1::2].count(0)) > 0.4 * len(head) / 2:
        return "UTF-16 without its byte order mark, or binary; save it as UTF-8"
    odd = sum(head.count(byte) for byte in (*range(9), *range(14, 32)))
    return "a binary file" if odd > 2 + 0.01 * len(head) else None


def _encoding(path: Path, head: bytes, file: BinaryIO) -> tuple[str, bool, tuple[str, ...]]:
    """Encoding, whether there are NUL characters, and notes; `file` stands after `head`."""
    wanted = next((name for bom, name in _BOMS if head.startswith(bom)), "utf-8")
    names = [wanted] if wanted != "utf-8" else ["utf-8", "cp1252"]
    decoders = {name: codecs.getincrementaldecoder(name)() for name in names}
    notes: tuple[str, ...] = ()
    lines, has_nul, block = 1, False, head
    while True:
        for name in list(decoders):
            try:
                has_nul |= "\0" in decoders[name].decode(block, final=not block)
            except UnicodeDecodeError as error:
                del decoders[name]
                if name == "utf-8":
                    line = lines + error.object[: error.start].count(b"\n")
                    notes = (f"not UTF-8 (line {line})",)
                elif name != "cp1252":
                    raise
        if not block:
            break
        lines += block.count(b"\n")
        block = file.read(1 << 20)
    if not notes:
        return wanted, has_nul, ()
    chosen, words = ("cp1252", "Windows-1252") if "cp1252" in decoders else ("latin-1", "Latin-1")
    return chosen, has_nul, (f"{path}: {notes[0]}, so read as {words}; save it as UTF-8 if letters look wrong",)


def _separator(lines: list[str], path: Path) -> str:
    """The one that cuts most of the first records into as many cells as the header, and into the most of them."""
    csv.field_size_limit(LONGEST_CELL)
    natural = "\t" if ".tsv" in path.suffixes else ","
    scores: dict[str, tuple[float, int, bool]] = {natural: (0.0, 1, True)}
    for separator in _SEPARATORS:
        try:
            records = [row for row in csv.reader(lines, delimiter=separator) if any(cell.strip() for cell in row)]
        except csv.Error:
            continue
        widths = [len(row) for row in (records[:-1] if len(lines) == 60 and len(records) > 2 else records)]
        if widths and widths[0] > 1:
            share = sum(width == widths[0] for width in widths) / len(widths)
            scores[separator] = (share, widths[0], separator == natural)
    return max(scores, key=lambda separator: scores[separator])
