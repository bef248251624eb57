"""Count the lines of a table's drafts, and drop a truncated last one."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SPECIAL = re.compile(rb'"error": |"finished": false|"withheld": "[^"]')


@dataclass
class Counts:
    """Numbers of lines in the output so far, of those with an error in place of a report, of cut drafts, and of those
    that are withheld."""

    lines: int = 0
    errors: int = 0
    cut: int = 0
    withheld: int = 0

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Count further lines."""
        self.lines += len(lines)
        self.errors += sum("error" in line for line in lines)
        self.cut += sum(not line.get("finished", True) for line in lines)
        self.withheld += sum(bool(line.get("withheld")) for line in lines)

    def add_written(self, line: bytes) -> None:
        """Count a line of a file."""
        if _SPECIAL.search(line):  # few lines match: the others are not parsed
            self.add([json.loads(line)])
        else:
            self.lines += 1


def cut_to_whole_lines(file: Path) -> tuple[Counts, dict[str, Any]]:
    """Drop a truncated last line; returns the counts of the whole lines, and the last of them."""
    if not file.is_file():
        return Counts(), {}
    counts, last, whole = count_lines(file)
    os.truncate(file, whole)
    return counts, last


def count_lines(file: Path) -> tuple[Counts, dict[str, Any], int]:
    """Return counts of the whole lines, the last of them, and the byte where it ends; a truncated line is ignored."""
    counts, last, whole = Counts(), b"", 0
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            last, whole = line, whole + len(line)
            counts.add_written(line)
    return counts, json.loads(last) if last else {}, whole
