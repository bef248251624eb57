"""Options of values over time in tables: columns with times, and one measurement a row."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SeriesColumnConfig:
    """One column with values of a vital over time."""

    vital: str
    """The vital, declared with `over_time`."""
    value: str
    """Column of the values."""
    time: str | None = None
    """Column of their times: `-2 d` before the study, a date with its time, or a number in `time_unit`."""
    at: str | None = None
    """The one time of all values of the column, such as `-24 h`; in place of `time`."""
    unit: str = ""
    """Unit of the values without one; empty: that of the vital."""


@dataclass(frozen=True)
class MeasurementsConfig:
    """A table of its own with one measurement a row, of vitals over time."""

    file: str = ""
    """Table, relative to `data.root`, of any kind that `data.table.file` may be; empty: none."""
    id: str = "id"
    """Column of the case's id, or of the patient's with `series_of: patient`."""
    name: str = "name"
    """Column of the vital's name or alias; other names are left out, with a note."""
    value: str = "value"
    """Column of the value."""
    time: str = "time"
    """Column of its time, as in `series`."""
    unit: str | None = None
    """Column of the value's unit; null without."""


Hours = Literal["", "s", "min", "h", "d", "w"]
"""Units of time; empty: a number without a unit is refused."""
