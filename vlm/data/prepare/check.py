"""Run every check of one table, in order."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from vlm.config import SplitConfig, VitalConfig
from vlm.data.embedded import EmbeddedImage
from vlm.data.images.find import ImageFolder
from vlm.data.ingest.column_names import find_column
from vlm.data.ingest.read import TableOptions, read_table, reading_notes
from vlm.data.ingest.study_columns import several_names
from vlm.data.prepare.columns import Roles, find_roles
from vlm.data.prepare.leaks import check_leaks, check_shares, check_splits, splits_of
from vlm.data.prepare.notice import LEVELS, Level, Notice
from vlm.data.prepare.pictures import Pair, Picture, check_pictures, find_pairs, read_pictures
from vlm.data.prepare.row_checks import (
    check_constants,
    check_ids,
    check_licences,
    check_numbers,
    check_words,
    count_labels,
    count_missing,
    read_numbers,
)
from vlm.data.prepare.shortcuts import check_shortcuts
from vlm.data.vitals.values import is_missing
from vlm.errors import UserError


@dataclass(frozen=True)
class CheckOptions:
    """User options of a check; columns that are not named are recognised."""

    images: Path | None = None
    columns: dict[str, str | None] = field(default_factory=dict)
    """Role → column."""
    labels: Sequence[str] = ()
    vitals: Sequence[VitalConfig] = ()
    split: SplitConfig = field(default_factory=SplitConfig)
    reports: Sequence[str] = ()
    """Columns of the reference report."""
    uncertain: str | None = None
    """Meaning of -1 in a label; see `data.table.uncertain`."""
    reading: TableOptions = field(default_factory=TableOptions)
    further_images: Sequence[str] = ()
    """Columns of further images of a study, earlier ones among them."""
    image_separator: str | None = None
    """What separates several names in a cell; see `data.table.image_separator`."""


@dataclass(frozen=True)
class CheckResult:
    """Notices of a check, with the data for its HTML page."""

    table: Path
    frame: pd.DataFrame
    roles: Roles
    notices: tuple[Notice, ...]
    numbers: dict[str, np.ndarray]
    """Column of a vital → N numbers."""
    pictures: tuple[Picture, ...]
    pairs: tuple[Pair, ...]

    @property
    def worst(self) -> str:
        """Most serious level: `error`, `warning` or `note`."""
        levels = {notice.level for notice in self.notices}
        return next((level for level in LEVELS if level in levels), "note")


def check_table(table: Path, options: CheckOptions) -> CheckResult:
    """Run every check; raises `UserError` if the table cannot be read or a named column or folder is not there."""
    frame = read_table(table, options.reading)
    if frame.empty:
        raise UserError(f"{table}: the table has no rows")
    if options.images is not None and not options.images.is_dir():
        raise UserError(f"{options.images}: no such folder of images")
    roles = find_roles(frame, options.columns, options.labels, options.vitals, options.reports, options.uncertain,
                       str(table))  # fmt: skip
    patients = (frame[roles.patient].fillna("").astype(str) if roles.patient else frame.index.astype(str)).to_numpy(
        object
    )
    read = {column: read_numbers(frame[column], vital, roles.units[column]) for column, vital in roles.vitals.items()}
    numbers, broken = {name: x for name, (x, _) in read.items()}, {name: rows for name, (_, rows) in read.items()}
    images = ImageFolder(options.images) if options.images is not None else None
    pictures, lost = _pictures(frame, roles, images, options)
    pairs = find_pairs(pictures)
    splits = splits_of(frame, roles, patients, options.split)
    notices = [
        *_notices("warning", "reading", reading_notes(table, options.reading), table),
        *_notices("error", "unreadable_label", roles.faults, table),
        *_notices("warning", "labels", roles.warnings, table),
        *check_splits(frame, roles, table),
        *check_constants(frame, roles, numbers, splits),
        *count_labels(frame, roles, patients),
        *count_missing(frame, roles),
        *check_numbers(roles, numbers, broken),
        *check_ids(frame, roles),
        *check_licences(frame, roles, table),
        *check_words(frame, roles),
        *check_pictures(pictures, lost, pairs, patients, "; ".join(images.notes(named=False)) if images else ""),
        *check_leaks(frame, roles, patients, splits, pairs),
        *check_shares(roles, patients, options.split),
        *check_shortcuts(frame, roles, patients),
    ]
    notices.sort(key=lambda notice: LEVELS.index(notice.level))
    return CheckResult(table, frame, roles, tuple(notices), numbers, tuple(pictures), tuple(pairs))


def _notices(level: Level, check: str, messages: Sequence[str], table: Path) -> list[Notice]:
    """Wrap messages of the training readers as notices."""
    return [Notice(level, check, message.removeprefix(f"{table}: ")) for message in messages]


def _pictures(
    frame: pd.DataFrame, roles: Roles, images: ImageFolder | None, options: CheckOptions
) -> tuple[list[Picture], dict[int, str]]:
    """Read all images of each row, current and earlier ones."""
    columns = [find_column(frame.columns, name, "table") for name in options.further_images]
    names: list[tuple[int, str | EmbeddedImage]] = []
    for column in filter(None, (roles.image, *columns)):
        for row, given in enumerate(frame[column]):
            cells = several_names(given, options.image_separator)
            for cell in cells:
                if isinstance(cell, EmbeddedImage):
                    names.append((row, cell))
                elif images is not None and not is_missing(cell):
                    names.append((row, str(cell).strip()))
    return read_pictures(names, images)
