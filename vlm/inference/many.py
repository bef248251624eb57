"""Many reports: a table in, one JSON object a line out, in constant memory, resumable.

Rows are taken a window at a time. While one window is drafted, the images of the next are read in another thread;
within a window, cases of like prompt length are drafted together. A window is written as a whole, in the order of
the table, so a run that was cut off goes on after the last whole line.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from vlm.adapter import digest
from vlm.data.case import Example
from vlm.data.reading import read_chunks, some_of
from vlm.data.schema import VitalsSchema
from vlm.durable import make_folder, open_private, write_file, writing
from vlm.errors import UserError
from vlm.inference.engine import Engine
from vlm.inference.report import Report
from vlm.inference.stamp import compare_stamps, contents_of
from vlm.locks import locked
from vlm.processes import rank

WINDOW = 4
"""Batches in a window: enough to sort by length, few enough to hold their images."""


@dataclass(frozen=True)
class TableColumns:
    """Which column of the table is what; the vitals are found by their names."""

    image: str = "image"
    id: str | None = None
    context: str | None = None


@dataclass(frozen=True)
class Row:
    """One case of the table, not read yet."""

    number: int
    """As a spreadsheet counts it: the header is row 1."""
    id: str
    image: Path | None
    vitals: Mapping[str, Any]
    context: str


@dataclass
class _Prepared:
    """A row ready to be drafted, or what is wrong with it."""

    row: Row
    example: Example | None = None
    warnings: tuple[str, ...] = ()
    error: str = ""
    report: Report | None = None

    def line(self) -> dict[str, Any]:
        """What is written of it."""
        place = {"row": self.row.number, "id": self.row.id}
        return place | (self.report.to_dict() if self.report else {"error": self.error})


@dataclass(frozen=True)
class TableJob:
    """A table to draft, and where the drafts go."""

    table: Path
    output: Path
    images: Path
    columns: TableColumns = field(default_factory=TableColumns)
    batch_size: int = 32
    max_new_tokens: int = 96

    @property
    def stamp(self) -> Path:
        """Beside the output: what made it, so that no run goes on with another adapter or other options."""
        return self.output.with_name(f"{self.output.name}.job.json")

    @property
    def parts(self) -> Path:
        """Beside the output: where several processes write theirs; see `vlm.inference.parts`."""
        return self.output.with_name(f"{self.output.name}.parts")

    def check(self, adapter: Path, schema: VitalsSchema, resume: bool) -> dict[str, Any]:
        """Find every mistake that can be found before a model is loaded; returns what the stamp must say.

        Raises `UserError` for a missing table, column or folder, and for an output that is there already or is
        that of another job.
        """
        columns = [str(name) for name in next(read_chunks(self.table, 1)).columns]
        for name in filter(None, (self.columns.id, self.columns.context)):
            if name not in columns:
                raise UserError(f"{self.table}: no column {name}; the table has {some_of(columns)}")
        if not self.images.is_dir():
            raise UserError(f"{self.images}: no such folder; set --images")
        if self.columns.image not in columns and not any(schema.names_in(name) for name in columns):
            way_out = f"set --image_column; the adapter's vitals are {', '.join(schema.names)}"
            raise UserError(f"{self.table}: neither a column {self.columns.image} nor one of a vital; {way_out}")
        made_by = {"adapter": digest(adapter), "table": self.table.name, "columns": asdict(self.columns),
                   "max_new_tokens": self.max_new_tokens, **contents_of(self, schema)}  # fmt: skip
        if self.output.parent.is_dir():
            with locked(self.output, shared=True):  # who drafts it alone now is known before a model is loaded
                pass
        if self.output.exists() and not resume:
            raise UserError(f"{self.output}: is there already; go on with --resume, or name another --output")
        if self.output.exists() or self.parts.is_dir():
            compare_stamps(self, schema, made_by)
        return made_by

    def run(self, engine: Engine, made_by: Mapping[str, Any]) -> "Counts":
        """Draft every row that has no line yet; returns how many there are. Raises `UserError` if the table changed."""
        from tqdm import tqdm

        with locked(self.output):
            if self.output.exists():  # by another process, perhaps, since it was looked at
                compare_stamps(self, engine.model.spec.schema, made_by)
            self.write_stamp(made_by)
            counts, last = cut_to_whole_lines(self.output)
            rows = self.rows(engine.model.spec.schema)
            self._pass_over(rows, counts.lines, last)
            bar = tqdm(initial=counts.lines, unit="report", desc=self.table.name)
            with writing(self.output), open_private(self.output, "a") as out, bar:
                for lines in self.draft(engine, rows):
                    write_lines(out, lines)
                    counts.add(lines)
                    bar.update(len(lines))
        return counts

    def write_stamp(self, made_by: Mapping[str, Any]) -> None:
        """Say beside the output what makes it; as a whole, for others may be reading it."""
        staging = self.stamp.with_name(f".{self.stamp.name}.{rank()}-{os.getpid()}")  # of several machines, perhaps
        with writing(self.stamp):
            make_folder(self.output.parent)
            try:
                write_file(staging, (json.dumps(made_by, indent=2) + "\n").encode())
                staging.replace(self.stamp)
            finally:
                staging.unlink(missing_ok=True)

    def check_last_rows(self, schema: VitalsSchema) -> None:
        """Raise `UserError` where the last whole line of the output, or of a part, is of another row now."""
        if self.output.is_file():
            counts, last, _ = _whole_lines(self.output)
            self._pass_over(self.rows(schema), counts.lines, last)
        lasts = {part: _whole_lines(part)[1] for part in self.parts.glob("*.jsonl")}
        ids = {last["row"]: (part, last["id"]) for part, last in lasts.items() if last}
        for row in self.rows(schema) if ids else ():
            part, id = ids.get(row.number, (None, row.id))
            if id != row.id:
                raise UserError(f"{part}: its last line is of row {row.number}, where the table has another case now")

    def draft(self, engine: Engine, rows: Iterator[Row]) -> Iterator[list[dict[str, Any]]]:
        """The lines of these rows in their order, a window at a time."""
        with engine.drafting():
            for window in self._windows(engine, rows):
                self._draft(engine, window)
                yield [case.line() for case in window]

    def _pass_over(self, rows: Iterator[Row], lines: int, last: Mapping[str, Any]) -> None:
        done = list(islice(rows, max(lines - 1, 0), lines))
        if lines and (not done or (done[0].number, done[0].id) != (last.get("row"), last.get("id"))):
            raise UserError(f"{self.output}: line {lines} is of row {last.get('row')}, where {self.table} has another")

    def rows(self, schema: VitalsSchema) -> Iterator[Row]:
        """The rows of the table, as they stand there."""
        for frame in read_chunks(self.table, 1000):
            names = [str(name) for name in frame.columns if schema.names_in(str(name))]
            for number, cells in zip(frame.index + 2, frame.to_dict("records"), strict=True):
                image = _text(cells.get(self.columns.image))
                yield Row(
                    int(number),
                    _text(cells[self.columns.id]) if self.columns.id else f"row-{number}",
                    self.images / image if image else None,
                    {name: cells[name] for name in names},
                    _text(cells[self.columns.context]) if self.columns.context else "",
                )

    def _windows(self, engine: Engine, rows: Iterator[Row]) -> Iterator[list[_Prepared]]:
        """The next window is prepared in another thread while this one is drafted."""

        def prepare() -> list[_Prepared]:
            return [_prepare(engine, row) for row in islice(rows, WINDOW * self.batch_size)]

        with ThreadPoolExecutor(1) as reader:
            upcoming = reader.submit(prepare)
            while window := upcoming.result():
                upcoming = reader.submit(prepare)
                yield window

    def _draft(self, engine: Engine, window: Sequence[_Prepared]) -> None:
        ready = [(case, case.example) for case in window if case.example is not None]
        ready.sort(key=lambda pair: engine.prompt_length(pair[1]))
        reports = engine.reports(
            [(example, case.warnings) for case, example in ready], self.batch_size, self.max_new_tokens
        )
        for (case, _), report in zip(ready, reports, strict=True):
            case.report, case.example = report, None


@dataclass
class Counts:
    """Lines of the output so far, and those of them that hold an error in place of a report."""

    lines: int = 0
    errors: int = 0

    def add(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Count further lines."""
        self.lines += len(lines)
        self.errors += sum("error" in line for line in lines)

    def add_written(self, line: bytes) -> None:
        """Count a line as it stands in a file."""
        self.lines += 1
        self.errors += b'"error": ' in line and "error" in json.loads(line)


def _prepare(engine: Engine, row: Row) -> _Prepared:
    """An unreadable row costs its own report, not those of the others."""
    try:
        return _Prepared(row, *engine.prepare(row.image, row.vitals, row.context))
    except UserError as error:
        return _Prepared(row, error=str(error))


def write_lines(out: TextIO, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write and flush, so that what is drafted is not lost; raises `UserError` if the disk is full."""
    try:
        out.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        out.flush()
    except OSError as error:
        raise UserError(f"{out.name}: cannot write: {error.strerror}; go on later with --resume") from None


def cut_to_whole_lines(file: Path) -> tuple[Counts, dict[str, Any]]:
    """Drop a last line that was cut off; returns what is there, and its last line."""
    if not file.is_file():
        return Counts(), {}
    counts, last, whole = _whole_lines(file)
    os.truncate(file, whole)
    return counts, last


def _whole_lines(file: Path) -> tuple[Counts, dict[str, Any], int]:
    """How many lines there are, the last of them, and the byte where it ends; one that was cut off is none."""
    counts, last, whole = Counts(), b"", 0
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            last, whole = line, whole + len(line)
            counts.add_written(line)
    return counts, json.loads(last) if last else {}, whole


def _text(cell: object) -> str:
    return "" if cell is None or cell != cell else str(cell).strip()
