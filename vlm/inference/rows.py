"""Read the rows of a table as cases, before their images and vitals are read."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from vlm.data.embedded import EmbeddedImage
from vlm.data.images.find import image_cell, text_cell
from vlm.data.ingest.column_names import find_column, has_column
from vlm.data.vitals.schema import VitalsSchema

Source = str | EmbeddedImage
"""Name of an image in the image folder, or the image in the table."""


@dataclass(frozen=True)
class TableColumns:
    """Names of the table's columns; the vitals are found by their names."""

    image: str = "image"
    id: str | None = None
    context: str | None = None
    view: str | None = None
    study: str | None = None
    """Column of the study's id, for one row an image: neighbouring rows of one study are one case."""
    prior: str | None = None
    """Column of the images of an earlier study."""
    prior_days: str | None = None
    prior_report: str | None = None
    separator: str | None = None
    """What separates several names in a cell; None: a text names one image."""

    @property
    def of_studies(self) -> list[str]:
        """List the options that only an adapter of several images takes."""
        names = ("view", "study", "prior", "prior_days", "separator")
        return [name for name in names if getattr(self, name) is not None]

    def to_dict(self) -> dict[str, str | None]:
        """Return the columns that are set, for metadata; those of earlier versions always."""
        return {name: value for name, value in asdict(self).items() if value or name in ("image", "id", "context")}

    def found_in(self, names: Iterable[object], table: Path) -> "TableColumns":
        """Return the columns as the table spells them; raises `UserError` for a column that it does not have."""
        image = find_column(names, self.image, str(table)) if has_column(names, self.image) else self.image
        others = {column.name: getattr(self, column.name) for column in fields(self)}
        found = {name: find_column(names, column, str(table)) for name, column in others.items()
                 if column and name not in ("image", "separator")}  # fmt: skip
        return replace(self, image=image, **found)

    def rows(self, frame: pd.DataFrame, table: Path, schema: VitalsSchema) -> Iterator["Row"]:
        """Yield the rows of a frame of the table with these columns, each a case of its own."""
        told = map(str, frame.columns)
        names = [name for name in told if schema.names_in(name) or schema.is_study_time(name)]
        for number, cells in zip(frame.index + 2, frame.to_dict("records"), strict=True):
            where = f"{table}: row {number}: column"
            images, priors = self._images(cells, self.image, where), self._images(cells, self.prior, where)
            words = self._words(cells, self.view, images), self._words(cells, self.prior_days, priors)
            texts = {name: text_cell(cells[column]) if (column := getattr(self, name)) else ""
                    for name in ("id", "context", "prior_report", "study")}  # fmt: skip
            yield Row(
                int(number),
                texts["id"] if self.id else texts["study"] or f"row-{number}",
                images,
                priors,
                {name: cells[name] for name in names},
                texts["context"],
                *words,
                texts["prior_report"],
                texts["study"],
                self._fault(images, priors, *words),
            )

    def _fault(self, images: Sequence[Any], priors: Sequence[Any], views: Sequence[str], days: Sequence[str]) -> str:
        """Describe words that do not pair with their images; empty if they do."""
        for column, words, of in ((self.view, views, images), (self.prior_days, days, priors)):
            if len(words) not in (0, 1, len(of)):
                return f"column {column}: {len(words)} for {len(of)} images; write one each, or one for all"
        return ""

    def _words(self, cells: Mapping[Any, Any], column: str | None, images: Sequence[Any]) -> tuple[str, ...]:
        return tuple(map(text_cell, self._several(cells[column]))) if column and images else ()

    def _images(self, cells: Mapping[Any, Any], column: str | None, where: str) -> tuple[Source, ...]:
        several = self._several(cells.get(column)) if column else []
        return tuple(image for one in several if (image := image_cell(one, f"{where} {column}")))

    def _several(self, cell: Any) -> list[Any]:
        """Split a cell: a list where a separator is set too, or a text with it."""
        if self.separator is None:
            return [cell]
        return cell if isinstance(cell, list) else text_cell(cell).split(self.separator) if cell is not None else []


@dataclass(frozen=True)
class Row:
    """One case of the table, not read yet."""

    number: int
    """Number as a spreadsheet counts it: the header is row 1."""
    id: str
    images: tuple[Source, ...]
    priors: tuple[Source, ...]
    """Images of an earlier study."""
    vitals: Mapping[str, Any]
    context: str
    views: tuple[str, ...] = ()
    """View of each image, one for all, or none."""
    prior_days: tuple[str, ...] = ()
    """Days of each earlier image to this study, one for all, or none."""
    prior_report: str = ""
    study: str = ""
    fault: str = ""
    """Why the row cannot be read."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Row":
        """Make a row from the dict of `asdict`."""
        images = {name: tuple(EmbeddedImage(**one) if isinstance(one, dict) else one for one in values[name])
                  for name in ("images", "priors")}  # fmt: skip
        words = {name: tuple(values[name]) for name in ("views", "prior_days")}
        return cls(**{**values, **images, **words})


def join_studies(rows: Iterable[Row]) -> Iterator[Row]:
    """Join neighbouring rows of one study into a case; what they disagree in is its fault."""
    seen: set[int] = set()
    for study, together in groupby(rows, key=lambda row: row.study or row.number):
        some = list(together)
        row = _joined(some) if len(some) > 1 else some[0]
        if isinstance(study, str):
            if hash(study) in seen:
                row = replace(row, fault=f"study {study!r:.60}: its rows are not together; sort the table by study")
            seen.add(hash(study))
        yield row


def _joined(rows: Sequence[Row]) -> Row:
    """Join the rows of a study: their images, and texts and vitals in which they agree or are empty."""
    first, faults = rows[0], []
    texts: dict[str, Any] = {}
    for name in ("context", "prior_report"):
        given = list(dict.fromkeys(text for row in rows if (text := getattr(row, name))))
        texts[name] = next(iter(given), "")
        faults += [name] if len(given) > 1 else []
    vitals = dict(first.vitals)
    for name in vitals:
        given = list(dict.fromkeys(text for row in rows if (text := text_cell(row.vitals[name]))))
        faults += [name] if len(given) > 1 else []
        vitals[name] = next((row.vitals[name] for row in rows if text_cell(row.vitals[name])), vitals[name])
    parts: dict[str, Any] = {
        "images": tuple(image for row in rows for image in row.images),
        "priors": tuple(image for row in rows for image in row.priors),
        "views": _each(rows, "views", "images"),
        "prior_days": _each(rows, "prior_days", "priors"),
    }
    differ = f"rows {first.number} to {rows[-1].number}, of one study, differ in {', '.join(faults)}" if faults else ""
    fault = next((row.fault for row in rows if row.fault), differ)
    return replace(first, **parts, **texts, vitals=vitals, fault=fault)


def _each(rows: Sequence[Row], words: str, images: str) -> tuple[str, ...]:
    """Return one word for each image of several rows; empty where a row has none."""
    found: list[str] = []
    for row in rows:
        found += spread(getattr(row, words), len(getattr(row, images)))
    return tuple(found) if any(found) else ()


def spread(words: Sequence[str], count: int) -> Sequence[str]:
    """Return one word for each of `count` images: those given, one for all, or empty ones."""
    return words if len(words) == count else [words[0] if len(words) == 1 else ""] * count
