"""Read the rows of a table as cases, before their images and vitals are read."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from vlm.data.embedded import EmbeddedImage
from vlm.data.images.find import image_cell, text_cell
from vlm.data.ingest.column_names import find_column, has_column
from vlm.data.vitals.schema import VitalsSchema


@dataclass(frozen=True)
class TableColumns:
    """Names of the table's columns; the vitals are found by their names."""

    image: str = "image"
    id: str | None = None
    context: str | None = None

    def found_in(self, names: Iterable[object], table: Path) -> "TableColumns":
        """Return the columns as the table spells them; raises `UserError` for a column that it does not have."""
        image = find_column(names, self.image, str(table)) if has_column(names, self.image) else self.image
        others = (find_column(names, name, str(table)) if name else None for name in (self.id, self.context))
        return TableColumns(image, *others)

    def rows(self, frame: pd.DataFrame, table: Path, schema: VitalsSchema) -> Iterator["Row"]:
        """Yield the rows of a frame of the table with these columns."""
        columns = map(str, frame.columns)
        names = [name for name in columns if schema.names_in(name) or schema.is_study_time(name)]
        for number, cells in zip(frame.index + 2, frame.to_dict("records"), strict=True):
            yield Row(
                int(number),
                text_cell(cells[self.id]) if self.id else f"row-{number}",
                image_cell(cells.get(self.image), f"{table}: row {number}: column {self.image}"),
                {name: cells[name] for name in names},
                text_cell(cells[self.context]) if self.context else "",
            )


@dataclass(frozen=True)
class Row:
    """One case of the table, not read yet."""

    number: int
    """Number as a spreadsheet counts it: the header is row 1."""
    id: str
    image: str | EmbeddedImage
    """Its name in the image folder, empty where there is none; or the image in the table."""
    vitals: Mapping[str, Any]
    context: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Row":
        """Make a row from the dict of `asdict`."""
        image = values["image"]
        return cls(**{**values, "image": EmbeddedImage(**image) if isinstance(image, dict) else image})
