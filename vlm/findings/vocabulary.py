"""Load the vocabulary of chest radiograph reports, `vocabulary.yaml`: each group of patterns as one pattern."""

from collections.abc import Sequence

from vlm.resources import load_yaml

_PATTERNS = load_yaml("vlm.findings", "vocabulary.yaml")


def _each(group: str) -> dict[str, str]:
    return {name: _any_of(patterns) for name, patterns in _PATTERNS[group].items()}


def _any_of(patterns: Sequence[str]) -> str:
    return "|".join(patterns)


FINDINGS = _each("findings")
"""Finding → pattern of a mention."""
NORMAL = _each("normal")
"""Finding → pattern of a normal statement that rules it out without naming it."""
RULED_OUT_BY_CLEAR_LUNGS: list[str] = _PATTERNS["ruled_out_by_clear_lungs"]
"""Findings denied by `the lungs are clear`."""
PRE_NEGATION, POST_NEGATION = _any_of(_PATTERNS["pre_negation"]), _any_of(_PATTERNS["post_negation"])
"""Negations of the findings that follow them in the clause, and of one that precedes them."""
PSEUDO_NEGATION = _any_of(_PATTERNS["pseudo_negation"])
"""Phrases that contain a negation word but deny no finding."""
PRE_UNCERTAINTY, POST_UNCERTAINTY = _any_of(_PATTERNS["pre_uncertainty"]), _any_of(_PATTERNS["post_uncertainty"])
TERMINATION = _any_of(_PATTERNS["termination"])
"""End of the scope of a negation or uncertainty."""
LOCATION_END = _any_of(_PATTERNS["location_end"])
"""End of the scope of a side or zone, besides the next finding."""
HISTORY = _any_of(_PATTERNS["history"])
"""Words before a finding that is asked about or remembered, not seen."""
SIDES, ZONES, IMPLIED_SIDES = _each("sides"), _each("zones"), _each("implied_sides")
"""Side or lung zone → pattern of its words; of an implied side, of parts that only this lung has."""
