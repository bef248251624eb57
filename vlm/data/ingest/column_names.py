"""Normalise column names and find a column by name."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from vlm.errors import UserError


def listed(names: Iterable[object], most: int = 20) -> str:
    """Format names for a message: the first `most`, then the number of the others."""
    words = [str(name) for name in names]
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def tidy(name: object) -> str:
    """Strip byte order marks, quotes, line breaks and outer spaces from a header."""
    text = "" if name is None else " ".join(re.sub("[\ufeff\u200b-\u200f\u00ad]", "", str(name)).split())
    quotes = re.fullmatch(r"""(["'“„”‘’«])(.*)(["'“”‘’»])""", text)
    return quotes[2].strip() if quotes else text


def unique_header(header: Sequence[object], filled: Iterable[int], where: str) -> list[str | None]:
    """Return the column names, None for a column to drop; raises `UserError` for a duplicate name.

    A column without a name is dropped unless it is among the `filled`.
    """
    names = [tidy(name) or (f"column {place + 1}" if place in filled else None) for place, name in enumerate(header)]
    seen: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if name is not None and seen.setdefault(name, place) != place:
            raise UserError(f"{where}: row 1: column {name} stands twice, as columns {seen[name]} and {place}")
    return names


def find_column(columns: Iterable[object], wanted: str, where: str) -> str:
    """Find a column by name, ignoring case, spaces, hyphens, underscores and Unicode form.

    Raises `UserError` if there is no match, or several matches and none of them exact.
    """
    names = [str(column) for column in columns]
    if wanted in names:
        return wanted
    alike = [name for name in names if _bare(name) == _bare(wanted)]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise UserError(f"{where}: column {wanted} can be {' or '.join(alike)}; write the one that you mean")
    raise UserError(f"{where}: no column {wanted}; the table has {listed(names)}")


def has_column(columns: Iterable[object], wanted: str) -> bool:
    """Check whether any column matches as in `find_column`."""
    return any(_bare(str(column)) == _bare(wanted) for column in columns)


def _bare(name: str) -> str:
    return re.sub(r"[\s_\-.]+", "", unicodedata.normalize("NFKC", tidy(name)).casefold())
