"""Profiles that a draft claims: what their StructureDefinitions demand stands in a table here, and is met.

The table is of the differentials of US Core 7.0.0 (StructureDefinition/us-core-diagnosticreport-note) and IPS 1.1.0
(StructureDefinition/DiagnosticReport-uv-ips), read by hand. HL7's validator has not run.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.dicom_studies import radiograph
from tests.fhir_bundles import bundle, of_type, validate
from vlm import cli
from vlm.errors import UserError
from vlm.inference import options
from vlm.inference.fhir import Claim
from vlm.inference.fhir.profiles import PROFILES

LOINC = "http://loinc.org"
US_CATEGORIES = {"LP29684-5", "LP29708-2", "LP7839-6"}
"""ValueSet us-core-diagnosticreport-category: radiology, cardiology, pathology."""
STATUSES = {"registered", "partial", "preliminary", "final", "amended", "corrected", "appended", "cancelled", "unknown"}
"""ValueSet diagnostic-report-status without entered-in-error, as IPS binds it."""
CLAIM = Claim(("us-core", "ips"), "2024-03-01")


def codes(concept: dict[str, Any], system: str) -> set[str]:
    return {coding["code"] for coding in concept.get("coding", []) if coding["system"] == system}


Rules = dict[str, Callable[[dict[str, Any]], Any]]
BOTH: Rules = {
    "status 1..1, bound": lambda report: report["status"] in STATUSES,
    "code 1..1, a LOINC code": lambda report: codes(report["code"], LOINC),
    "effective[x] of a date or time (us-core-10; 1..1)": lambda report: report.get("effectiveDateTime"),
}
DEMANDS: dict[str, Rules] = {
    "us-core": {
        **BOTH,
        "category 1..*, slice us-core": lambda report: any(
            codes(one, LOINC) & US_CATEGORIES for one in report.get("category", [])
        ),
        "subject 1..1": lambda report: report.get("subject"),
        "result of Observations": lambda report: all(set(one) <= {"reference"} for one in report.get("result", [])),
        "no performer but people and organisations": lambda report: "performer" not in report,
    },
    "ips": {
        **BOTH,
        "category 1..1": lambda report: len(report.get("category", [])) == 1,
        "subject.reference 1..1": lambda report: report.get("subject", {}).get("reference"),
        "no specimen": lambda report: "specimen" not in report,
    },
}
"""Profile → what it demands of a DiagnosticReport beyond the base resource, which `validate` checks."""


def report_of(made: dict[str, Any]) -> dict[str, Any]:
    (report,) = of_type(made, "DiagnosticReport")
    return report


def unmet(report: dict[str, Any], name: str) -> list[str]:
    return [demand for demand, is_met in DEMANDS[name].items() if not is_met(report)]


@pytest.mark.parametrize("name", PROFILES)
def test_a_claimed_profile_is_met(name: str) -> None:
    made = bundle({"glucose": 8.7}, subject="Patient/1", claim=CLAIM._replace(names=(name,)), study="1.2.3")
    validate(made, ("R4B.",))
    report = report_of(made)
    assert report["meta"]["profile"] == [PROFILES[name]] and report["meta"]["security"]
    assert unmet(report, name) == []
    assert report["status"] == "preliminary" and report["imagingStudy"]


def test_each_demand_is_needed() -> None:
    """The table can fail: without a claim, and without each element, something is unmet."""
    plain, full = report_of(bundle({})), report_of(bundle({}, subject="Patient/1", claim=CLAIM))
    for name in DEMANDS:
        assert len(unmet(plain, name)) >= 2
        for element in ("category", "subject", "effectiveDateTime"):
            assert unmet({key: value for key, value in full.items() if key != element}, name)


def test_nothing_is_claimed_unless_asked_and_a_claim_has_ids_of_its_own() -> None:
    plain, claimed = bundle({}, subject="Patient/1"), bundle({}, subject="Patient/1", claim=CLAIM)
    assert "profile" not in json.dumps(plain) and "effectiveDateTime" not in json.dumps(plain)
    assert plain["entry"][0]["fullUrl"] != claimed["entry"][0]["fullUrl"]
    assert claimed == bundle({}, subject="Patient/1", claim=CLAIM)
    assert report_of(claimed)["category"][0]["coding"][0] == report_of(plain)["category"][0]["coding"][0]


def test_the_names_of_the_options_are_those_of_the_profiles() -> None:
    assert tuple(PROFILES) == options.PROFILES


# ------------------------------------------------------------------------------------------------- the command


def draft(adapter: Path, file: Path, *given: str) -> dict[str, Any]:
    words = ["draft", "--adapter", str(adapter), "--max_new_tokens", "4", "--json", "--fhir", str(file)]
    arguments = cli.build_parser().parse_args([*words, "--fhir_profile", "us-core", "ips", *given])
    options.check_draft_options(arguments)
    cli.draft_case(arguments)
    return report_of(json.loads(file.read_text()))


def test_the_day_of_the_study_is_that_of_the_image_or_the_users(tiny_adapter: Path, tmp_path: Path, capfd) -> None:
    image, file = str(radiograph(tmp_path / "a.dcm")), tmp_path / "draft.json"
    given = ("--image", image, "--fhir_subject", "Patient/1")
    assert draft(tiny_adapter, file, *given)["effectiveDateTime"] == "2024-03-01"
    told = draft(tiny_adapter, file, *given, "--fhir_effective", "2024-03-01T10:11:12+01:00")
    assert (
        told["effectiveDateTime"] == "2024-03-01T10:11:12+01:00" and unmet(told, "ips") == unmet(told, "us-core") == []
    )


def test_a_claim_that_would_not_be_true_is_refused_before_the_wait(
    tiny_adapter: Path, table_root: Path, tmp_path: Path
) -> None:
    picture = str(next((table_root / "images").iterdir()))
    undated = str(radiograph(tmp_path / "a.dcm", day="soon"))
    subject = ("--fhir_subject", "Patient/1")
    for given, message in [
        (("--image", picture), "--fhir_profile: is of a Bundle with a subject"),
        (("--image", picture, *subject), "--fhir_profile: wants the day of the study"),
        (("--image", undated, *subject), "--fhir_profile: wants the day of the study"),
        (subject, "--fhir_profile: is for the report of an image"),
        (("--image", picture, *subject, "--fhir_effective", "2024-02-30"), "is no day or time"),
        (("--image", picture, *subject, "--fhir_effective", "2024-02-03T10:00"), "is no day or time"),
    ]:
        with pytest.raises(UserError, match=message):
            draft(tiny_adapter, tmp_path / "draft.json", *given)
    assert not (tmp_path / "draft.json").exists()
