"""Multi-process batch inference: one part file a rank, merged by the last to finish.

The processes do not communicate. A row's number decides its rank, and a process that finds no row missing after its
own share merges the parts. So they may be of one `accelerate launch`, on machines that share a disk, or started one
after the other; when some were killed, any number of processes can resume.
"""

import heapq
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vlm.atomic import open_private, private, replaced, writing
from vlm.data.vitals.schema import VitalsSchema
from vlm.distributed import rank, world_size
from vlm.errors import UserError
from vlm.inference.engine import Engine
from vlm.inference.line_counts import Counts, cut_to_whole_lines
from vlm.inference.many import TableJob, write_lines
from vlm.inference.rows import Row
from vlm.locks import locked, try_lock

Lines = Sequence[Mapping[str, Any]]


class RankShare(NamedTuple):
    """Rank of this process, and the number of processes."""

    rank: int = 0
    of: int = 1

    @classmethod
    def of_environment(cls) -> "RankShare":
        """Read rank and world size from the launcher's environment."""
        return cls(rank(), world_size())

    def owns(self, row: Row, batch_size: int) -> bool:
        """Check whether a row is in this share: rows of a batch stay together, since neighbours are often similar."""
        return row.number // batch_size % self.of == self.rank


@dataclass(frozen=True)
class MultiProcessJob:
    """A table that several processes draft."""

    job: TableJob
    share: RankShare

    @property
    def part(self) -> Path:
        """Part file of this process."""
        return self.job.parts / f"{self.share.rank:05}-of-{self.share.of:05}.jsonl"

    @classmethod
    def needed(cls, job: TableJob, share: RankShare) -> "MultiProcessJob | None":
        """Return None where one process writes the output itself: it is alone, and there are no parts."""
        return cls(job, share) if share.of > 1 or job.parts.is_dir() else None

    def check(self, resume: bool) -> None:
        """Raise `UserError` where there are parts that must not be overwritten, or that others still write."""
        if self.part.exists() and not resume:
            raise UserError(f"{self.job.parts}: is there already; go on with --resume, or name another --output")
        for part in self._parts():
            if not part.name.endswith(self.part.name[5:]):  # begun by another number of processes
                with part.open("rb") as file:
                    _lock(file, part)

    def run(self, engine: Engine, metadata: Mapping[str, Any]) -> Counts:
        """Draft the rows of this share that have no line yet; see `write`."""
        return self.write(partial(self.job.draft, engine), engine.model.spec.schema, metadata)

    def write(
        self, draft: Callable[[Iterator[Row]], Iterator[Lines]], schema: VitalsSchema, metadata: Mapping[str, Any]
    ) -> Counts:
        """Write the lines that `draft` makes of the rows left; then merge the parts, if no row is missing.

        Returns the counts of the output, or of this share where other processes have not finished theirs.
        """
        from tqdm import tqdm

        with locked(self.job.output, shared=True), writing(self.job.parts):
            self.job.write_metadata(metadata)  # before the folder exists, so that the folder always has its metadata
            with private():
                self.job.parts.mkdir(exist_ok=True)
            with open_private(self.part, "a") as out:
                _lock(out, self.part)
                counts, _ = cut_to_whole_lines(self.part)
                done = self._done()
                rows = _CountedRows(self.job.rows(schema), done)
                own = (row for row in rows if row.number not in done and self.share.owns(row, self.job.batch_size))
                title = f"{self.job.table.name} ({self.share.rank + 1} of {self.share.of})"
                for lines in tqdm(draft(own), unit="window", desc=title, disable=self.share.rank > 0):
                    write_lines(out, lines)
                    counts.add(lines)
                os.fsync(out.fileno())
            return self._merge(rows.count) or counts

    # ------------------------------------------------------------------------------------- merging

    def _merge(self, rows: int) -> Counts | None:
        """Merge the parts into the output, under a lock; None where rows are missing, which others are drafting."""
        try:
            lock = open_private(self.job.parts / "merge.lock", "wb")
        except FileNotFoundError:  # another process has merged them and removed the folder
            return cut_to_whole_lines(self.job.output)[0]
        with lock:
            try_lock(lock, wait=True)
            if not self.job.parts.is_dir():
                return cut_to_whole_lines(self.job.output)[0]
            if len(self._done()) < rows:
                return None
            counts, before = Counts(), -1
            with replaced(self.job.output) as merged, merged.open("wb") as out, ExitStack() as opened:
                parts = [_lines(opened.enter_context(file.open("rb"))) for file in self._sources()]
                for number, line in heapq.merge(*parts, key=lambda pair: pair[0]):
                    if number != before:  # a row in two parts is written once
                        out.write(line)
                        counts.add_written(line)
                    before = number
            shutil.rmtree(self.job.parts)
            return counts

    def _parts(self) -> list[Path]:
        return sorted(self.job.parts.glob("*-of-*.jsonl"))

    def _sources(self) -> list[Path]:
        """Return the parts, and an output that one process alone began before."""
        return [*self._parts(), *([self.job.output] if self.job.output.is_file() else [])]

    def _done(self) -> "_RowSet":
        done = _RowSet()
        for file in self._sources():
            last = b""
            with file.open("rb") as opened:
                for number, line in _lines(opened):
                    done.add(number)
                    last = line
            if last:
                done.last[json.loads(last)["row"]] = file, json.loads(last)["id"]
        return done


class _RowSet:
    """Set of row numbers, a byte each: a Python set would take 60."""

    def __init__(self) -> None:
        self._there = bytearray()
        self.last: dict[int, tuple[Path, str]] = {}
        """Number of the last row of each file → the file and the row's id."""

    def add(self, number: int) -> None:
        if number >= len(self._there):
            self._there.extend(bytes(max(number + 1 - len(self._there), 1 << 16)))
        self._there[number] = 1

    def __contains__(self, number: int) -> bool:
        return number < len(self._there) and bool(self._there[number])

    def __len__(self) -> int:
        return self._there.count(1)


class _CountedRows:
    """Iterator that counts the rows of a table; raises `UserError` if the table does not match the lines done."""

    def __init__(self, rows: Iterator[Row], done: _RowSet) -> None:
        self._rows, self._done, self.count = rows, done, 0

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            self.count += 1
            file, name = self._done.last.get(row.number, (None, row.id))
            if name != row.id:
                raise UserError(f"{file}: its last line is of row {row.number}, where the table has another case now")
            yield row


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield row number and line of each whole line; a last one that is truncated or still being written is skipped."""
    for line in file:
        if line.endswith(b"\n"):
            yield json.loads(line)["row"], line


def _lock(file: Any, name: Path) -> None:
    if not try_lock(file):
        raise UserError(f"{name}: another process is writing it; wait for it, or stop it")
