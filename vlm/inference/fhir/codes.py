"""Code systems of a Bundle, and the few codes used by themselves."""

import re
from typing import Any

from vlm.report import NOTICE

LOINC = "http://loinc.org"
UCUM = "http://unitsofmeasure.org"
SNOMED = "http://snomed.info/sct"
RADLEX = "http://radlex.org"
DICOM_UID = "urn:dicom:uid"
TERMINOLOGY = "http://terminology.hl7.org/CodeSystem"
BY_MACHINE = {
    "security": [{"system": f"{TERMINOLOGY}/v3-ObservationValue", "code": "AIAST",
                  "display": "Artificial Intelligence asserted"}],
    "tag": [{"display": NOTICE}],
}  # fmt: skip
"""`meta` of a resource that the software made."""
NOTE = "http://hl7.org/fhir/StructureDefinition/note"
"""Extension for a note; DiagnosticReport has no element for one before R5."""

NOBODY = {"display": "not named"}
"""Subject of a ServiceRequest of ours, where one is required and none is known."""
IMAGING_STUDY = "18748-4"
"""LOINC: diagnostic imaging study. An adapter does not know the modality and body part of its images."""
PRESSURE_PANEL, SYSTOLIC, DIASTOLIC = "85354-9", "8480-6", "8462-4"
VITAL_SIGNS = {PRESSURE_PANEL, SYSTOLIC, DIASTOLIC, "8478-0", "8867-4", "9279-1", "8310-5", "2708-6", "59408-5",
               "8302-2", "29463-7", "39156-5"}  # fmt: skip
"""LOINC codes of the ready-made vitals that FHIR counts as vital signs."""


def concept(text: str, system: str = "", code: str = "") -> dict[str, Any]:
    """Make a CodeableConcept: the text, and the code where there is one."""
    return {"coding": [{"system": system, "code": code}], "text": text} if code else {"text": text}


def loinc(text: str, code: str) -> dict[str, Any]:
    """Make a CodeableConcept of LOINC, or of the text alone."""
    return concept(text, LOINC, code)


def imaging_study(uid: str) -> dict[str, Any]:
    """Refer to an imaging study by its DICOM UID: any server finds it, whatever its own id for it."""
    return {"type": "ImagingStudy", "identifier": {"system": DICOM_UID, "value": f"urn:oid:{uid}"}}


def plain(text: str) -> str:
    """Remove what FHIR forbids in a text: control characters, and space around it."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]", "", text).strip()
