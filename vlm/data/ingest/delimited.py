"""Detect the encoding and separator of a text table, and refuse files of other kinds."""

import csv
import json
import re
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vlm.data.ingest.encoding import BOMS, find_encoding
from vlm.data.size_limits import LONGEST_ROW, Lines, open_bytes
from vlm.errors import UserError

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
_MAGIC = (
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; save it as .xlsx or CSV"),
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
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file with git lfs pull"),
)


@dataclass(frozen=True)
class TableFormat:
    """Detected format of a text table, with notes for the user."""

    encoding: str
    separator: str
    skip: int
    """Lines before the header: 1 for Excel's `sep=;`, else 0."""
    notes: tuple[str, ...]
    """Choices that could be wrong, each with its reason."""


def table_format(path: Path, encoding: str | None = None) -> TableFormat:
    """Detect encoding and separator of a `.csv`, `.tsv`, `.txt` or gzipped one, in one pass over its bytes.

    `encoding` overrides detection. Raises `UserError` for an empty file and for a file of another kind.
    """
    stat = path.stat()
    return _format(path, encoding, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _format(path: Path, wanted: str | None, _mtime: int, _size: int) -> TableFormat:
    try:
        with open_bytes(path) as file:
            _refuse_other_kinds(path, file.read(1 << 16), wanted)
        found = find_encoding(path, open_bytes, wanted)
        lines, is_whole = _first_lines(path, found.codec)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read the table: {error}") from None
    declared = re.fullmatch(r'"?sep=(.)"?', lines[0].strip("\r\n")) if lines else None
    if declared:
        return TableFormat(found.codec, declared[1], 1, found.notes)
    return TableFormat(found.codec, _separator(lines, is_whole, path), 0, found.notes)


def _first_lines(path: Path, encoding: str) -> tuple[list[str], bool]:
    """Read up to 60 lines or two million characters; return them and whether they are the whole file."""
    lines: list[str] = []
    with Lines(path, encoding) as text:
        for line in text:
            text.row_ends()
            lines.append(line)
            if len(lines) == 60 or text.total > 1 << 21:
                return lines, False
    return lines, True


def _refuse_other_kinds(path: Path, head: bytes, encoding: str | None) -> None:
    kind = seems_to_be(head, is_named=encoding is not None)
    if kind:
        raise UserError(f"{path}: no text table, it seems to be {kind}")
    if not head.strip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"):
        raise UserError(f"{path}: the file is empty")


def seems_to_be(head: bytes, is_named: bool = False) -> str | None:
    """Describe the file type that the first bytes show; None for text. `is_named`: the user set the encoding."""
    if head.startswith(b"PK\x03\x04"):
        if b"opendocument.spreadsheet" in head[:200]:
            return "an OpenDocument spreadsheet; save it as .xlsx or CSV"
        is_workbook = b"xl/" in head or b"[Content_" in head
        return "an Excel workbook; save it as CSV or name it .xlsx" if is_workbook else "a ZIP archive"
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if re.match(rb"\s*<(!doctype|html|\?xml|table)", head, re.I):
        return "HTML or XML; save it as CSV"
    if re.match(rb'(\xef\xbb\xbf)?\s*(\{\s*"|\[\s*[{\[])', head):
        return "JSON; name it .json, or .jsonl with one object a line"
    if is_named or any(head.startswith(bom) for bom, _ in BOMS):
        return None
    if re.search(rb"\x1b[$(][@BJ]", head):
        return "in ISO-2022-JP; save it as UTF-8, or set data.table.encoding (--encoding) to iso2022_jp"
    if max(head[::2].count(0), head[1::2].count(0)) > 0.4 * len(head) / 2:
        codec = json.detect_encoding(head)
        way_out = "" if codec == "utf-8" else f", or set data.table.encoding (--encoding) to {codec}"
        return f"UTF-16 without its byte order mark, or binary; save it as UTF-8{way_out}"
    odd = sum(head.count(byte) for byte in (*range(9), *range(14, 32)))
    return "a binary file" if odd > 2 + 0.01 * len(head) else None


def _separator(lines: list[str], is_whole: bool, path: Path) -> str:
    """Choose the separator by the share of first records as wide as the header, then by the number of cells."""
    csv.field_size_limit(LONGEST_ROW)
    natural = "\t" if ".tsv" in path.suffixes else ","
    scores: dict[str, tuple[float, bool, int, bool]] = {natural: (0.0, False, 1, True)}
    for separator in _SEPARATORS:
        try:
            records = [row for row in csv.reader(lines, delimiter=separator) if any(cell.strip() for cell in row)]
        except csv.Error:
            continue
        widths = [len(row) for row in (records if is_whole or len(records) <= 2 else records[:-1])]
        if widths and widths[0] > 1:
            share = sum(width == widths[0] for width in widths) / len(widths)
            whole = not any('"' in name for name in records[0])  # otherwise the separator split a quoted name
            scores[separator] = (share, whole, widths[0], separator == natural)
    return max(scores, key=lambda separator: scores[separator])
