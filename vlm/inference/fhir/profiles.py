"""Claim published profiles for the DiagnosticReport of a draft: those whose demands it meets, and no more."""

from typing import Any, NamedTuple

from vlm.inference.fhir.codes import LOINC

PROFILES = {
    "us-core": "http://hl7.org/fhir/us/core/StructureDefinition/us-core-diagnosticreport-note|7.0.0",
    "ips": "http://hl7.org/fhir/uv/ips/StructureDefinition/DiagnosticReport-uv-ips|1.1.0",
}
"""Name → canonical address: HL7's US Core for Report and Note Exchange, and International Patient Summary."""
RADIOLOGY = "LP29684-5"
"""LOINC: radiology, a category of US Core."""


class Claim(NamedTuple):
    """Profiles to claim, and what they demand that no draft knows."""

    names: tuple[str, ...]
    effective: str
    """Day or time of the study, as FHIR writes it."""


def claimed(report: dict[str, Any], claim: Claim) -> dict[str, Any]:
    """Return the DiagnosticReport of an image with these profiles and what they demand.

    Both want a category, a code, a subject and the time of the study. The category keeps its one concept, since IPS
    allows no second; US Core's code stands in it beside that of HL7.
    """
    (category,) = report["category"]
    codings = [*category["coding"], {"system": LOINC, "code": RADIOLOGY}]
    return {
        **report,
        "meta": {**report["meta"], "profile": [PROFILES[name] for name in claim.names]},
        "category": [{**category, "coding": codings}],
        "effectiveDateTime": claim.effective,
    }
