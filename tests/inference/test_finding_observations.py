"""Observations of what a draft says of findings: their code, place and degree, and no more than the draft says."""

from typing import Any

from tests.fhir_bundles import ABOUT, NOW, READY, bundle, observed, of_type, report, validate
from vlm.findings.labeller import chest
from vlm.findings.structure import stated_findings
from vlm.inference.fhir import from_fhir, to_fhir
from vlm.report import NOTICE

SMALL = "Small effusion at both bases. No pneumonia\x1b."


def made_of(text: str) -> dict[str, Any]:
    """The valid Bundle of a draft, with one vital that the user gave."""
    drafted = report({"glucose": 8.7}, text=text, findings=stated_findings([("", text)], chest(), {}, {}))
    made = to_fhir(drafted, READY, ABOUT, issued=NOW, subject="Patient/1")
    validate(made)
    return made


def test_a_finding_is_an_observation_with_its_code_place_and_degree() -> None:
    effusion = observed(made_of(SMALL), "pleural effusion")
    assert effusion["code"]["coding"] == [
        {"system": "http://snomed.info/sct", "code": "60046008"},
        {"system": "http://radlex.org", "code": "RID34539"},
    ]
    assert effusion["valueCodeableConcept"] == {"text": "present"} and effusion["status"] == "preliminary"
    assert effusion["bodySite"] == {"text": "bilateral lower"} and effusion["subject"] == {"reference": "Patient/1"}
    assert effusion["component"] == [{"code": {"text": "severity"}, "valueCodeableConcept": {"text": "small"}}]
    assert effusion["meta"]["security"][0]["code"] == "AIAST" and NOTICE in effusion["note"][0]["text"]


def test_one_code_alone_is_the_only_coding() -> None:
    made = made_of("Basal atelectasis. Cardiomegaly.")
    assert observed(made, "atelectasis")["code"]["coding"] == [{"system": "http://radlex.org", "code": "RID28493"}]
    assert observed(made, "cardiomegaly")["code"]["coding"] == [{"system": "http://snomed.info/sct", "code": "8186001"}]


def test_a_finding_without_a_code_is_said_to_be_the_words_of_the_draft() -> None:
    lung = observed(made_of(SMALL), "consolidation, as the draft states it")
    assert lung["valueCodeableConcept"] == {"text": "absent"} and "coding" not in lung["code"], "pneumonia has no code"
    assert lung["note"][1] == {"text": "No pneumonia"}


def test_the_software_wrote_the_findings_and_no_vital_is_read_from_them() -> None:
    made = made_of(SMALL)
    addresses = {entry["fullUrl"]: entry["resource"] for entry in made["entry"]}
    ours = [addresses[target["reference"]] for target in of_type(made, "Provenance")[0]["target"]]
    for text in ("pleural effusion", "consolidation, as the draft states it"):
        assert observed(made, text) in ours
    assert from_fhir(made, READY)[0] == {"glucose": 8.7}
    assert of_type(made, "Observation")[:1] == of_type(bundle({"glucose": 8.7}, subject="Patient/1"), "Observation")[:1]
