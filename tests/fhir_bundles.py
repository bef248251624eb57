"""FHIR resources: a draft as a Bundle, what is in it, and whether it is valid; check digits of codes."""

import importlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from vlm.data.vitals.catalog import CATALOG
from vlm.data.vitals.schema import VitalsSchema, describe
from vlm.inference.fhir import Software, to_fhir
from vlm.report import Report

READY = VitalsSchema(tuple(CATALOG.values()))
ABOUT = Software("f" * 64, "pypi:llm==1/base.gguf", "0.1.0")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

PATIENT = {"resourceType": "Patient", "id": "1", "gender": "female", "birthDate": "1956-04-30"}
"""A FHIR Patient."""


def report(vitals: dict[str, Any], schema: VitalsSchema = READY, **changes: Any) -> Report:
    """A draft as the engine would make it of these vitals."""
    x, _ = schema.parse(vitals)
    shown, labels = describe(schema, x.tolist()), {"pathology": 0.98765, "left_lung": 1e-6}
    text, calibration = "Dense shadow in the <left> zone.", "probabilities calibrated on 76 patients"
    return replace(Report(text, labels, shown, ("not given: sex",), calibration), **changes)


def bundle(vitals: dict[str, Any], schema: VitalsSchema = READY, **options: Any) -> dict[str, Any]:
    return to_fhir(report(vitals, schema), schema, ABOUT, issued=NOW, **options)


def observed(made: dict[str, Any], text: str) -> dict[str, Any]:
    return next(resource for resource in of_type(made, "Observation") if resource["code"]["text"] == text)


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
