"""Draft a table into JSON lines, one object a row, in constant memory; resumable.

Rows are taken a window at a time. While one window is drafted, the images of the next are read in another thread;
within a window, cases of similar prompt length are drafted together. A window is written as a whole, in the order of
the table, so an interrupted run resumes after the last whole line.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from vlm.adapter import digest
from vlm.atomic import make_folder, open_private, replace_file, writing
from vlm.data.case import Example
from vlm.data.images.find import ImageFolder
from vlm.data.images.square import decode_square
from vlm.data.images.store import EmbeddedReader, row_label
from vlm.data.ingest.read import TableOptions, read_chunks
from vlm.data.ingest.study_columns import read_days
from vlm.data.vitals.schema import VitalsSchema
from vlm.distributed import log_rank0, rank
from vlm.errors import UserError
from vlm.inference.engine import Engine
from vlm.inference.job_metadata import compare_metadata, contents_of
from vlm.inference.line_counts import Counts, count_lines, cut_to_whole_lines
from vlm.inference.rows import Row, Source, TableColumns, join_studies, spread
from vlm.inference.study_images import StudyImage
from vlm.locks import locked
from vlm.report import Report

WINDOW = 4
"""Batches in a window: enough to sort by length, few enough to hold their images."""


@dataclass
class _Prepared:
    """A row ready to be drafted, or its error."""

    row: Row
    example: Example | None = None
    warnings: tuple[str, ...] = ()
    error: str = ""
    report: Report | None = None

    def line(self) -> dict[str, Any]:
        """Return its output line."""
        place = {"row": self.row.number, "id": self.row.id}
        return place | (self.report.to_dict() if self.report else {"error": self.error})


@dataclass(frozen=True)
class TableJob:
    """A table to draft, and the output file."""

    table: Path
    output: Path
    images: Path
    columns: TableColumns = field(default_factory=TableColumns)
    batch_size: int = 32
    max_new_tokens: int | None = None
    """Longest draft, in tokens; None for the adapter's."""
    options: TableOptions = field(default_factory=TableOptions)
    findings: str = ""
    """Vocabulary of the findings; empty for the adapter's."""
    site: Path | None = None
    """File of the site's recalibration that the engine uses, if any."""
    abstain: bool = False
    """True if the engine withholds doubtful drafts."""

    @cached_property
    def image_folder(self) -> ImageFolder:
        """Folder in which image names are looked up, as in training."""
        return ImageFolder(self.images)

    @cached_property
    def embedded(self) -> EmbeddedReader:
        """Reader of the images that are embedded in the table."""
        return EmbeddedReader()

    @property
    def metadata_file(self) -> Path:
        """Metadata file beside the output, so that no run resumes with another adapter or other options."""
        return self.output.with_name(f"{self.output.name}.job.json")

    @property
    def parts(self) -> Path:
        """Folder beside the output for the part files of several processes; see `vlm.inference.parts`."""
        return self.output.with_name(f"{self.output.name}.parts")

    def check(self, adapter: Path, schema: VitalsSchema, resume: bool) -> dict[str, Any]:
        """Find every mistake that can be found before a model is loaded; returns the expected metadata.

        Raises `UserError` for a missing table, column or folder, and for an output that is there already or is
        that of another job.
        """
        columns = [str(name) for name in next(read_chunks(self.table, 1, self.options)).columns]
        found = self.columns.found_in(columns, self.table)
        if not self.images.is_dir():
            raise UserError(f"{self.images}: no such folder; set --images")
        if found.image not in columns and not any(schema.names_in(name) for name in columns):
            way_out = f"set --image_column; the adapter's vitals are {', '.join(vital.name for vital in schema.given)}"
            raise UserError(f"{self.table}: neither a column {self.columns.image} nor one of a vital; {way_out}")
        metadata = {"adapter": digest(adapter), "table": self.table.name, "columns": self.columns.to_dict(),
                    "max_new_tokens": self.max_new_tokens, "findings": self.findings, "abstain": self.abstain,
                    "site": sha256(self.site.read_bytes()).hexdigest() if self.site else None, **asdict(self.options),
                    **contents_of(self.table, self.rows(schema), self.images)}  # fmt: skip
        if self.output.parent.is_dir():
            with locked(self.output, shared=True):  # a process that drafts it alone is found before a model is loaded
                pass
        if self.output.exists() and not resume:
            raise UserError(f"{self.output}: is there already; go on with --resume, or name another --output")
        if self.output.exists() or self.parts.is_dir():
            self.compare_metadata(schema, metadata)
        return metadata

    def run(self, engine: Engine, metadata: Mapping[str, Any]) -> Counts:
        """Draft every row that has no line yet; returns how many there are. Raises `UserError` if the table changed."""
        from tqdm import tqdm

        with locked(self.output):
            if self.output.exists():  # perhaps by another process since the check
                self.compare_metadata(engine.model.spec.schema, metadata)
            self.write_metadata(metadata)
            counts, last = cut_to_whole_lines(self.output)
            rows = self.rows(engine.model.spec.schema)
            self._skip_done(rows, counts.lines, last)
            bar = tqdm(initial=counts.lines, unit="report", desc=self.table.name)
            with writing(self.output), open_private(self.output, "a") as out, bar:
                for lines in self.draft(engine, rows):
                    write_lines(out, lines)
                    counts.add(lines)
                    bar.update(len(lines))
        return counts

    def write_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Write the metadata file atomically, since other processes may be reading it."""
        with writing(self.metadata_file):
            make_folder(self.output.parent)
        writer = f"{rank()}-{os.getpid()}"  # perhaps on several machines
        replace_file(self.metadata_file, json.dumps(metadata, indent=2) + "\n", writer)

    def compare_metadata(self, schema: VitalsSchema, metadata: Mapping[str, Any]) -> None:
        """Raise `UserError` where the output was begun with anything else than `metadata`."""
        compare_metadata(self.metadata_file, self.output, metadata, partial(self.check_last_rows, schema))

    def check_last_rows(self, schema: VitalsSchema) -> None:
        """Raise `UserError` where the last whole line of the output, or of a part, belongs to another row now."""
        if self.output.is_file():
            counts, last, _ = count_lines(self.output)
            self._skip_done(self.rows(schema), counts.lines, last)
        lasts = {part: count_lines(part)[1] for part in self.parts.glob("*.jsonl")}
        ids = {last["row"]: (part, last["id"]) for part, last in lasts.items() if last}
        for row in self.rows(schema) if ids else ():
            part, id = ids.get(row.number, (None, row.id))
            if id != row.id:
                raise UserError(f"{part}: its last line is of row {row.number}, where the table has another case now")

    def draft(self, engine: Engine, rows: Iterator[Row]) -> Iterator[list[dict[str, Any]]]:
        """Yield the lines of these rows in their order, a window at a time."""
        with engine.drafting():
            for window in self._windows(engine, rows):
                self._draft(engine, window)
                yield [case.line() for case in window]
        # A name may be a patient's; the lines have them.
        log_rank0(*(f"note: {note}" for note in self.image_folder.notes(named=False)))

    def _skip_done(self, rows: Iterator[Row], lines: int, last: Mapping[str, Any]) -> None:
        done = list(islice(rows, max(lines - 1, 0), lines))
        if lines and (not done or (done[0].number, done[0].id) != (last.get("row"), last.get("id"))):
            raise UserError(f"{self.output}: line {lines} is of row {last.get('row')}, where {self.table} has another")

    def _table_rows(self, schema: VitalsSchema) -> Iterator[Row]:
        for frame in read_chunks(self.table, 1000, self.options):
            yield from self.columns.found_in(frame.columns, self.table).rows(frame, self.table, schema)

    def rows(self, schema: VitalsSchema) -> Iterator[Row]:
        """Return the cases of the table, in its order; neighbouring rows of one study are one."""
        rows = self._table_rows(schema)
        return join_studies(rows) if self.columns.study else rows

    def _windows(self, engine: Engine, rows: Iterator[Row]) -> Iterator[list[_Prepared]]:
        """Yield windows; the next is prepared in another thread while this one is drafted."""

        def prepare() -> list[_Prepared]:
            window = islice(rows, WINDOW * self.batch_size)
            return [_prepare(engine, row, self.image_folder, self.embedded) for row in window]

        with ThreadPoolExecutor(1) as reader:
            upcoming = reader.submit(prepare)
            while window := upcoming.result():
                upcoming = reader.submit(prepare)
                yield window

    def _draft(self, engine: Engine, window: Sequence[_Prepared]) -> None:
        lengths = [_prompt_length(engine, case) for case in window]
        by_length = sorted(zip(lengths, window, strict=True), key=lambda pair: pair[0])
        ready = [(case, case.example) for _, case in by_length if case.example is not None]
        prepared = [(example, case.warnings) for case, example in ready]
        reports = engine.reports(prepared, self.batch_size, self.max_new_tokens)
        for (case, _), report in zip(ready, reports, strict=True):
            case.report, case.example = report, None


def _prepare(engine: Engine, row: Row, images: ImageFolder, embedded: EmbeddedReader | None = None) -> _Prepared:
    """Read one row's inputs; whatever is raised costs this row's report only."""
    try:
        if row.fault:
            raise UserError(row.fault)
        find = partial(_find, engine, images, embedded or EmbeddedReader())
        found = [find(one) for one in (*row.images, *row.priors)]
        roles = [StudyImage("", view) for view in spread(row.views, len(row.images))]
        days = (read_days(text, "prior_days") for text in spread(row.prior_days, len(row.priors)))
        roles += [StudyImage("", "", True, None if math.isnan(one) else one) for one in days]
        named = zip(found, roles, strict=True)
        study = [role._replace(image=image) for (image, _), role in named if image is not None]
        example, warnings = engine.prepare(study, row.vitals, row.context, row.prior_report)
        return _Prepared(row, example, (*warnings, *(note for _, note in found if note)))
    except Exception as error:
        return _Prepared(row, error=_error_text(error))


def _find(engine: Engine, images: ImageFolder, embedded: EmbeddedReader, source: Source) -> tuple[Any, str]:
    """Return an image's file or, of one in the table, its square; and a note on how it was found."""
    if isinstance(source, str):
        return images.find_if_named(source)
    where = row_label(source, f"{source.file}: row {source.row + 2}")
    return decode_square(embedded.read(source, where), where, engine.model.spec.image), ""


def _prompt_length(engine: Engine, case: _Prepared) -> int:
    """Return the tokens around a case's evidence; a case whose text cannot be tokenized gets an error."""
    try:
        return engine.prompt_length(case.example) if case.example is not None else 0
    except Exception as error:
        case.example, case.error = None, _error_text(error)
        return 0


def _error_text(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"this row cannot be read: {type(error).__name__}"  # its message may be long, and quote the case


def write_lines(out: TextIO, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write and flush, so that no draft is lost; raises `UserError` if the disk is full."""
    try:
        out.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        out.flush()
    except OSError as error:
        raise UserError(f"{out.name}: cannot write: {error.strerror}; go on later with --resume") from None
