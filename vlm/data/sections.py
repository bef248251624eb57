"""Name the sections of a report: write them as headings into the target, and split a draft at those headings.

A heading is the section's name with a capital letter and a colon, such as `Findings:`.
"""

import re
from collections.abc import Iterator, Sequence

from vlm.config import SectionConfig
from vlm.data.vitals.schema import check_names
from vlm.errors import UserError

MOST_SECTIONS = 64
CONCLUSIONS = ("impression", "conclusion")
"""Names of the section that concludes a report."""


def section_name(section: SectionConfig) -> str:
    """Return the name of a section; without one its column's, `exam_findings` as `exam findings`."""
    return section.name.strip() or " ".join(re.split(r"[\W_]+", section.column)).strip().lower() or section.column


def section_names(sections: Sequence[SectionConfig]) -> tuple[str, ...]:
    """List the distinct names of sections in their order; raises `UserError` for one that makes no heading."""
    names = tuple(dict.fromkeys(map(section_name, sections)))
    check_section_names(names, "data.table.report: name")
    return names


def check_section_names(names: Sequence[str], where: str) -> None:
    """Raise `UserError` for names that make no headings, and for two that differ by capital letters alone."""
    check_names(names, where, MOST_SECTIONS)
    for name in names:
        if ":" in name or name != " ".join(name.split()):
            raise UserError(f"{where}: {name!r:.60}: a heading has no colon, and single spaces between its words")
    if len({heading(name).casefold() for name in names}) < len(names):
        raise UserError(f"{where}: two sections have one name")


def check_distinct(sections: Sequence[SectionConfig]) -> None:
    """Raise `UserError` for two sections of one table with the same name."""
    names = list(map(section_name, sections))
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise UserError(f"data.table.report: two sections are named {twice[0]!r:.60}; set their `name`")


def heading(name: str) -> str:
    """Make the heading of a section: `Findings:`."""
    return f"{name[:1].upper()}{name[1:]}:"


def join_sections(texts: Sequence[str | None], sections: Sequence[SectionConfig], headings: bool) -> str:
    """Join the texts of a report, empty ones left out, each under its heading if there are `headings`."""
    parts = [(section_name(section), text) for section, text in zip(sections, texts, strict=True) if text]
    return " ".join(_headed(name, text) if headings else text for name, text in parts)


def _headed(name: str, text: str) -> str:
    """Put a heading before a text, which may bring it along in other letters."""
    own = re.compile(rf"\s*{re.escape(name)}\s*:\s*", re.IGNORECASE)
    return f"{heading(name)} {text[found.end() :] if (found := own.match(text)) else text}"


def split_sections(text: str, names: Sequence[str]) -> dict[str, str]:
    """Split a draft at the headings of these sections: name → text, as they stand in it.

    Text before the first heading is of no section, and a heading without text makes none. The texts under a repeated
    heading are joined.
    """
    found: dict[str, str] = {}
    for name, part in section_parts(text, names):
        if name and part:
            found[name] = f"{found[name]} {part}" if name in found else part
    return found


def strip_headings(text: str, names: Sequence[str]) -> str:
    """Remove the headings of these sections from a draft."""
    return " ".join(part for _, part in section_parts(text, names) if part) if names else text


def section_parts(text: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) in the order of a draft; the name is empty for text before the first heading."""
    known = {heading(name): name for name in names}
    spelled = "|".join(re.escape(one) for one in sorted(known, key=len, reverse=True))
    pieces = re.split(rf"(?:^|(?<=\s))({spelled})(?=\s|$)", text) if known else [text]
    yield "", pieces[0].strip()
    for found, part in zip(pieces[1::2], pieces[2::2], strict=True):
        yield known[found], part.strip()
