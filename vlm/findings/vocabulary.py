"""Load a vocabulary: the words by which reports of one field and language name findings, deny, doubt and place them.

`chest_en.yaml` and its neighbours come with the package; a user's own file has the same layout.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from vlm.errors import UserError, nearest
from vlm.plain import shortened

DEFAULT = "chest_en"
LARGEST_FILE, MOST_FINDINGS = 1 << 20, 500
"""Largest file, bytes, and most findings of a vocabulary."""
LISTS = (
    "pre_negation", "post_negation", "pseudo_negation", "pre_uncertainty", "post_uncertainty", "termination",
    "location_end", "separators", "history", "own_words", "other_words",
)  # fmt: skip
"""Groups that are lists of patterns."""
NAMED = ("findings", "normal", "sides", "implied_sides", "zones", "severities")
"""Groups that map a name to its patterns."""
CODES = {
    "snomed": (r"[1-9]\d{5,17}", "it has 6 to 18 digits"),  # SNOMED CT
    "radlex": (r"RID[1-9]\d{0,5}", "it is RID and 1 to 6 digits"),  # RadLex, of the RSNA
}
"""Key of a code system → pattern of its codes, and their form in words."""
Patterns = dict[str, re.Pattern[str]]


@dataclass(frozen=True)
class Vocabulary:
    """Compiled patterns, each a regular expression that is matched inside one sentence, in lower case."""

    name: str
    """Name of a vocabulary that comes with the package, or of the file."""
    title: str
    """What it reads, such as `English chest reports`."""
    named: Mapping[str, Patterns]
    """Group → name → pattern; see `NAMED`."""
    lists: Mapping[str, re.Pattern[str]]
    """Group → pattern; see `LISTS`."""
    rules_out: Mapping[str, tuple[str, ...]]
    """Finding → findings that its normal statement denies; itself where it stands for no others."""
    codes: Mapping[str, Mapping[str, Patterns]]
    """Key of `CODES` → finding → code → pattern of the words that the code stands for."""

    @classmethod
    def load(cls, name: str) -> "Vocabulary":
        """Load a vocabulary by its name in the package or as a `.yaml` file, once.

        Raises `UserError` for an unknown name, and for a file of another layout, with the key.
        """
        return _load(name)

    @classmethod
    def empty(cls) -> "Vocabulary":
        """Make a vocabulary by which nothing is found."""
        return cls("", "", {group: {} for group in NAMED}, {group: _compiled([]) for group in LISTS}, {}, {})

    def code(self, system: str, finding: str, words: str) -> str | None:
        """Return the code of a system (a key of `CODES`) that stands for these words of a finding, or None.

        A normal statement has no words of its own: it denies the finding as its first code names it.
        """
        codes = self.codes.get(system, {}).get(finding, {})
        return next((code for code, pattern in codes.items() if not words or pattern.search(words)), None)

    @cached_property
    def findings(self) -> tuple[str, ...]:
        """Names of the findings."""
        return tuple(self.named["findings"])

    @cached_property
    def places(self) -> tuple[str, ...]:
        """Names of the sides and zones."""
        return tuple(name for name in (*self.named["sides"], *self.named["zones"]) if name != "both")

    @cached_property
    def any_finding(self) -> re.Pattern[str]:
        """Match any mention or normal statement."""
        return _compiled([p.pattern for group in ("findings", "normal") for p in self.named[group].values()])


def shipped() -> list[str]:
    """List the names of the vocabularies that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in files("vlm.findings").iterdir() if ".yaml" in path.name)


@lru_cache(16)
def _load(name: str) -> Vocabulary:
    if name in shipped():
        text, where = files("vlm.findings").joinpath(f"{name}.yaml").read_text(encoding="utf-8"), name
    elif Path(name).suffix in (".yaml", ".yml"):
        text, where = _read(Path(name)), name
    else:
        near = nearest(name, shipped())
        hint = f"did you mean {near}?" if near else f"name a .yaml file, or {', '.join(shipped())}"
        raise UserError(f"data.findings: no vocabulary is named {shortened(name)}; {hint}")
    try:
        values = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{where}: no YAML: {str(error).splitlines()[0]}") from None
    return _parse(values, name, where)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: larger than {LARGEST_FILE >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read the vocabulary: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not in UTF-8") from None


def _parse(values: Any, name: str, where: str) -> Vocabulary:
    if not isinstance(values, dict) or not values.get("findings"):
        raise UserError(f"{where}: a vocabulary maps `findings` to names with their patterns")
    known = {"title", "rules_out", *CODES, *LISTS, *NAMED}
    for key in values:
        if key not in known:
            near = nearest(str(key), known)
            raise UserError(f"{where}: unknown key {shortened(str(key))}" + (f"; did you mean {near}?" if near else ""))
    named = {group: _named(values.get(group) or {}, where, group) for group in NAMED}
    if len(named["findings"]) > MOST_FINDINGS:
        raise UserError(f"{where}: findings: {MOST_FINDINGS} at most")
    lists = {group: _pattern(values.get(group) or [], f"{where}: {group}") for group in LISTS}
    rules_out = {finding: (finding,) for finding in named["normal"]}
    for finding, others in (values.get("rules_out") or {}).items():
        rules_out[finding] = tuple(others)
    for finding in (*rules_out, *(other for others in rules_out.values() for other in others)):
        if finding not in named["findings"]:
            raise UserError(f"{where}: normal: {shortened(str(finding))} is none of the findings")
    codes = {system: _codes(values.get(system) or {}, system, named["findings"], where) for system in CODES}
    return Vocabulary(name, str(values.get("title", name))[:200], named, lists, rules_out, codes)


def _codes(values: Any, system: str, findings: Patterns, where: str) -> dict[str, Patterns]:
    """Parse `finding: code`, or `finding: {code: patterns}` where the finding has words that the code does not mean."""
    found: dict[str, Patterns] = {}
    form, in_words = CODES[system]
    if not isinstance(values, dict):
        raise UserError(f"{where}: {system}: maps findings to codes")
    for finding, codes in values.items():
        if finding not in findings:
            raise UserError(f"{where}: {system}: {shortened(str(finding))} is none of the findings")
        named = codes if isinstance(codes, dict) else {codes: ["."]}
        for code in named:
            if not re.fullmatch(form, str(code), re.ASCII):
                raise UserError(f"{where}: {system}.{finding}: {shortened(str(code))} is no code; {in_words}")
        found[finding] = _named({str(code): words for code, words in named.items()}, where, f"{system}.{finding}")
    return found


def _named(values: Any, where: str, group: str) -> Patterns:
    if not isinstance(values, dict):
        raise UserError(f"{where}: {group}: maps names to lists of patterns")
    at_word = group == "findings"
    return {str(name): _pattern(found, f"{where}: {group}.{name}", at_word) for name, found in values.items()}


def _pattern(patterns: Any, where: str, at_word: bool = False) -> re.Pattern[str]:
    """Compile a list of patterns into one; a finding begins at a word."""
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise UserError(f"{where}: a list of patterns, each a text")
    for pattern in patterns:
        try:
            empty = re.compile(pattern).match("") is not None
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"{where}: {shortened(pattern)} is no regular expression: {error}") from None
        if empty:
            raise UserError(f"{where}: {shortened(pattern)} matches nothing at all, so it stands everywhere")
    return _compiled(patterns, r"(?<![\w-])" if at_word else "")


def _compiled(patterns: Iterable[str], before: str = "") -> re.Pattern[str]:
    """Join patterns by `or`; without any, nothing matches."""
    return re.compile(f"{before}(?:{'|'.join(patterns) or '(?!)'})")
