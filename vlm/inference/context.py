"""Check the context of a case, such as its indication, and say where an adapter would not expect it."""

import re

from vlm.data.case import CaseSpec
from vlm.errors import UserError

LONGEST_CONTEXT = 20_000
"""Longest text in a prompt, characters, of a context and of an earlier report."""


def check_context(text: str, what: str = "context") -> None:
    """Raise `UserError` for a text of book length, and for one with bytes that are no letters."""
    if len(text) > LONGEST_CONTEXT:
        raise UserError(f"the {what} has {len(text):,} characters, more than {LONGEST_CONTEXT:,}")
    if re.search(r"[\ud800-\udfff]", text):
        raise UserError(f"the {what} is not UTF-8")


def context_doubts(spec: CaseSpec, context: str) -> list[str]:
    """Warn of an indication that is missing, or that an adapter was not trained with."""
    if spec.context and not context.strip():
        return ["no indication given; the adapter was trained with one"]
    if spec.context is False and context.strip():
        return ["an indication was given; the adapter names none among what it was trained with"]
    return []
