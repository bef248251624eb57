"""The code systems that a Bundle names, and the few codes of them that stand for themselves."""

from typing import Any

LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
NOTE = "http://hl7.org/fhir/StructureDefinition/note"
"""The extension for a note, which a DiagnosticReport has no element for before R5."""

IMAGING_STUDY = "18748-4"
"""LOINC: diagnostic imaging study. An adapter does not say of which modality and body part its images are."""
PRESSURE_PANEL, SYSTOLIC, DIASTOLIC = "85354-9", "8480-6", "8462-4"
VITAL_SIGNS = {PRESSURE_PANEL, SYSTOLIC, DIASTOLIC, "8478-0", "8867-4", "9279-1", "8310-5", "2708-6", "59408-5",
               "8302-2", "29463-7", "39156-5"}  # fmt: skip
"""LOINC codes that FHIR calls vital signs, of those that the ready-made vitals have."""


def concept(text: str, system: str = "", code: str = "") -> dict[str, Any]:
    """A CodeableConcept: the text, and the code where there is one."""
    return {"coding": [{"system": system, "code": code}], "text": text} if code else {"text": text}


def loinc(text: str, code: str) -> dict[str, Any]:
    """A CodeableConcept of LOINC, or the text alone."""
    return concept(text, LOINC, code)
