"""FHIR resources: found in a Bundle and validated, and check digits of codes."""

import importlib
import json
from typing import Any

PATIENT = {"resourceType": "Patient", "id": "1", "gender": "female", "birthDate": "1956-04-30"}
"""A FHIR Patient."""


def of_type(made: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in made["entry"] if entry["resource"]["resourceType"] == kind]


def validate(made: dict[str, Any], releases: tuple[str, ...] = ("R4B.", "")) -> None:
    """Against the models of both releases: unknown elements, wrong types, wrong cardinality and missing ones fail.

    The reason of a ServiceRequest is R4's: R5 renamed it.
    """
    for release in releases:
        for resource in (made, *(entry["resource"] for entry in made["entry"])):
            kind = resource["resourceType"]
            model = getattr(importlib.import_module(f"fhir.resources.{release}{kind.lower()}"), kind)
            model.model_validate_json(json.dumps(resource))


def loinc_check_digit(number: str) -> str:
    """Mod 10 (Luhn), as LOINC codes end in it."""
    digits = [int(d) * (2 if place % 2 == 0 else 1) for place, d in enumerate(reversed(number))]
    return str(-sum(d // 10 + d % 10 for d in digits) % 10)
