"""Read the indication from a FHIR ServiceRequest: the text or the codes' names of its reasons."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm.errors import UserError

VOID = ("revoked", "entered-in-error")
"""States of a request that stands for nothing."""
Resource = Mapping[str, Any]


def indication_of(requests: Sequence[tuple[str, Resource]], given: str = "") -> tuple[str, list[str]]:
    """Return the context of (place, ServiceRequest) pairs, and warnings on what was left out.

    `given` is the user's own context, which stands before theirs. Raises `UserError` that names the place for broken
    reasons, and for two requests with different ones.
    """
    notes: list[str] = []
    found: dict[str, str] = {}
    for place, request in requests:
        if request.get("status") in VOID:
            notes.append(f"left out a ServiceRequest: status {request['status']}")
            continue
        if request.get("reasonReference"):
            notes.append("left out reasonReference of a ServiceRequest: only its text and codes are read")
        if reason := "; ".join(_reasons(request, place, notes)):
            found.setdefault(reason, place)
    if given.strip():
        return given, [*notes, *(["left out the reason of a ServiceRequest: a context is given"] if found else [])]
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise UserError(f"{second}: a ServiceRequest with another reason than {first}; give one, or the context itself")
    return next(iter(found), ""), notes


def _reasons(request: Resource, place: str, notes: list[str]) -> Iterator[str]:
    """Yield the words of each reason: `reasonCode` up to R4B, the concept of `reason` since R5."""
    concepts = [*_items(request, "reasonCode", place)]
    for reason in _items(request, "reason", place):
        if isinstance(reason.get("concept"), dict):
            concepts.append(reason["concept"])
        else:
            notes.append("left out a reason of a ServiceRequest: only its text and codes are read")
    for concept in concepts:
        words = [concept.get("text"), *(coding.get("display") for coding in _items(concept, "coding", place))]
        text = next((word for word in words if isinstance(word, str) and word.strip()), "")
        if text:
            yield " ".join(text.split())
        else:
            notes.append("left out a reason of a ServiceRequest: it is a code without a name")


def _items(values: Resource, key: str, place: str) -> list[dict[str, Any]]:
    found = values.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise UserError(f"{place}: {key} is not a list of objects")
    return found
