"""Write what a draft says of a finding as a FHIR Observation: preliminary, the word of the draft and no more."""

from typing import Any

from vlm.inference.fhir.codes import BY_MACHINE, RADLEX, SNOMED, concept, plain
from vlm.report import NOTICE, StatedFinding

Resource = dict[str, Any]


def finding_observation(stated: StatedFinding, device: Resource, time: str) -> Resource:
    """Make an Observation of one row of the table of findings; the sentence is its note.

    The codes are those of SNOMED CT and RadLex where the row has them, else a text; the value is the status in words.
    Severities are components.
    """
    words = plain(stated.finding.replace("_", " "))
    place = " ".join((*(("bilateral",) if len(stated.sides) > 1 else stated.sides), *stated.sites))
    systems = {SNOMED: stated.snomed, RADLEX: stated.radlex}
    codes = [{"system": system, "code": code} for system, code in systems.items() if code]
    degrees = [{"code": concept("severity"), "valueCodeableConcept": concept(name)} for name in stated.severities]
    return {
        "resourceType": "Observation",
        "meta": BY_MACHINE,
        "status": "preliminary",
        "code": {"coding": codes, "text": words} if codes else concept(f"{words}, as the draft states it"),
        "issued": time,
        "valueCodeableConcept": concept(stated.status),
        **({"bodySite": concept(place)} if place else {}),
        **({"component": degrees} if degrees else {}),
        "note": [{"text": text} for text in (NOTICE, plain(stated.text)) if text],
        "method": concept("Read from the words of the draft by rules"),
        "device": device,
    }
