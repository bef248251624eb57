"""Column names: how they are tidied, and which column a user means by a name."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from vlm.errors import UserError


def some_of(columns: Iterable[object], most: int = 20) -> str:
    """Column names for a message; of very many the first ones and their number."""
    names = [str(column) for column in columns]
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def tidy(name: object) -> str:
    """A header without byte order marks, quotes, line breaks and spaces around it."""
    text = "" if name is None else " ".join(re.sub("[\ufeff\u200b-\u200f\u00ad]", "", str(name)).split())
    quotes = re.fullmatch(r"""(["'“„”‘’«])(.*)(["'“”‘’»])""", text)
    return quotes[2].strip() if quotes else text


def unique_header(header: Sequence[object], filled: Iterable[int], where: str) -> list[str | None]:
    """Names of the columns, None for one to leave out; raises `UserError` for a name that stands twice.

    A column without a name is left out unless it is among the `filled`.
    """
    names = [tidy(name) or (f"column {place + 1}" if place in filled else None) for place, name in enumerate(header)]
    seen: dict[str, int] = {}
    for place, name in enumerate(names, start=1):
        if name is not None and seen.setdefault(name, place) != place:
            raise UserError(f"{where}: row 1: column {name} stands twice, as columns {seen[name]} and {place}")
    return names


def find_column(columns: Iterable[object], wanted: str, where: str) -> str:
    """The column of this name, whatever its case, spaces, hyphens, underscores and Unicode form.

    Raises `UserError` where there is none, and where several but none exactly have that name.
    """
    names = [str(column) for column in columns]
    if wanted in names:
        return wanted
    alike = [name for name in names if _bare(name) == _bare(wanted)]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise UserError(f"{where}: column {wanted} can be {' or '.join(alike)}; write the one that you mean")
    raise UserError(f"{where}: no column {wanted}; the table has {some_of(names)}")


def has_column(columns: Iterable[object], wanted: str) -> bool:
    """Whether `find_column` finds one."""
    return any(_bare(str(column)) == _bare(wanted) for column in columns)


def _bare(name: str) -> str:
    return re.sub(r"[\s_\-.]+", "", unicodedata.normalize("NFKC", tidy(name)).casefold())
