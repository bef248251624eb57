"""The indication: one text on every surface, said where it is missing or unheard of, and never in a log."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fhir_bundles import of_type, validate
from tests.forks import Forks
from vlm import ClinicalVLM
from vlm.adapter import save
from vlm.cli import build_parser
from vlm.data.vitals.catalog import CATALOG
from vlm.data.vitals.schema import VitalsSchema
from vlm.errors import UserError
from vlm.explanation.explain import explain
from vlm.inference.command import draft_case
from vlm.inference.context import LONGEST_CONTEXT
from vlm.inference.engine import ReportEngine
from vlm.inference.fhir import Software, context_of, from_fhir, to_fhir
from vlm.inference.options import check_draft_options
from vlm.report import NOTICE, Report

ABOUT = Software("f" * 64, "base", "0.1.0")
READY = VitalsSchema(tuple(CATALOG.values()))
ASKED = "Cough for 3 weeks; <b>TB?</b> \N{SNOWMAN}"


def request(*reasons: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A ServiceRequest as another system would send it."""
    return {"resourceType": "ServiceRequest", "status": "active", "intent": "order",
            "subject": {"reference": "Patient/1"}, "reasonCode": list(reasons), **changes}  # fmt: skip


def of(spec: Any, context: bool | None) -> Any:
    return replace(spec, context=context)


# ------------------------------------------------------------------------------------------------ Python


def test_predict_shows_the_context_and_many_cases_may_have_one(tiny_model: ClinicalVLM) -> None:
    vitals = {"glucose": 8}
    without, shown = (tiny_model.predict(None, vitals, 8, context=context) for context in ("", ASKED))
    assert without.text != shown.text, "the words of this model depend on its prompt"
    cases: list[Any] = [(None, vitals), (None, vitals, ASKED), (None, vitals, "")]
    many = tiny_model.predict_many(cases, max_new_tokens=8)
    assert [report.text for report in many] == [without.text, shown.text, without.text]


@pytest.mark.parametrize(
    ("trained_with", "given", "warning"),
    [
        (True, "", "no indication given; the adapter was trained with one"),
        (True, " \n", "no indication given; the adapter was trained with one"),
        (True, "Cough.", ""),
        (False, "", ""),
        (False, "Cough.", "an indication was given; the adapter names none among what it was trained with"),
        (None, "", ""),
        (None, "Cough.", ""),
    ],
)
def test_an_indication_that_is_missing_or_unheard_of_is_said(
    trained_with: bool | None, given: str, warning: str, tiny_model: ClinicalVLM
) -> None:
    tiny_model.spec = of(tiny_model.spec, trained_with)
    said = [line for line in ReportEngine(tiny_model).prepare(None, {}, given)[1] if "indication" in line]
    assert said == ([warning] if warning else [])


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ("x" * (LONGEST_CONTEXT + 1), "the context has 20,001 characters, more than 20,000"),
        ("cough \udcff", "the context is not UTF-8"),
        ("Q" * 2000, "shorten the context of the case"),
    ],
)
def test_a_context_that_cannot_be_shown_is_one_line(context: str, message: str, tiny_model: ClinicalVLM) -> None:
    with pytest.raises(UserError, match=message) as error:
        tiny_model.predict(None, {"glucose": 8}, context=context)
    assert len(str(error.value)) < 300 and "QQQQ" not in str(error.value)


def test_the_draft_with_the_context_is_what_is_explained(tiny_model: ClinicalVLM, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr("vlm.explanation.explain.explain_example", lambda _, example, *rest: seen.append(example))
    explain(tiny_model, None, {"glucose": 8}, Report("No.", {}), context=ASKED)
    assert [example["context"] for example in seen] == [ASKED]


# --------------------------------------------------------------------------------------------- the command


def test_the_command_takes_an_indication_and_writes_it_to_fhir(
    tiny_adapter: Path, tmp_path: Path, forks: Forks
) -> None:
    case = ("--max_new_tokens", "6", "--adapter", str(tiny_adapter), "--vitals", "glucose=8", "--json")
    without = forks.command(*case)
    shown = forks.command(*case, "--context", ASKED, "--fhir", str(tmp_path / "out.json"))
    assert shown.returncode == 0 and shown.stderr == "" == without.stderr
    first, second = (json.loads(result.stdout) for result in (without, shown))
    assert first["text"] != second["text"] and first["sections"] == {} == second["sections"]
    made = json.loads((tmp_path / "out.json").read_text())
    (asked,) = of_type(made, "ServiceRequest")
    assert asked["reasonCode"] == [{"text": ASKED}] and "not named" in str(asked["subject"])
    explained = forks.command(*case, "--context", ASKED, "--explain", str(tmp_path / "why.png"))
    assert json.loads(explained.stdout)["text"] == second["text"]


def test_a_wrong_context_costs_no_wait(tiny_adapter: Path, monkeypatch) -> None:
    monkeypatch.setattr(
        "vlm.inference.open_engine.make_engine", lambda *_, **__: pytest.fail("the model was loaded first")
    )
    with pytest.raises(UserError, match="the context has 20,001 characters"):
        draft_case(str(tiny_adapter), None, "", 4, None, context="x" * 20_001)
    with pytest.raises(UserError, match="--context: is for one case; name a table's column of it with --context_col"):
        check_draft_options(build_parser().parse_args(["draft", "--input", "a.csv", "--context", "Cough."]))


# ----------------------------------------------------------------------------------------------------- FHIR


def test_a_request_becomes_the_context() -> None:
    coded = {"coding": [{"system": "http://snomed.info/sct", "code": "49727002", "display": "Cough"}]}
    bundle = {"resourceType": "Bundle", "type": "collection",
              "entry": [{"resource": request(coded, {"text": "Weight loss\nfor weeks", "coding": []})}]}  # fmt: skip
    assert context_of(bundle) == ("Cough; Weight loss for weeks", ())
    assert from_fhir(bundle, READY) == ({}, ()) == from_fhir(request(), READY)
    r5 = request(reason=[{"concept": {"text": "Cough"}}, {"reference": {"reference": "Condition/1"}}])
    left_out = "left out a reason of a ServiceRequest: only its text and codes are read"
    assert context_of([r5]) == ("Cough", (left_out,))
    assert context_of([request(), request({"text": "A"}), request({"text": "A"})]) == ("A", ())


def test_what_of_a_request_is_not_read_is_said() -> None:
    nameless = {"coding": [{"code": "49727002"}]}
    void = request({"text": "Never"}, status="entered-in-error")
    text, notes = context_of([void, request(nameless, reasonReference=[{"reference": "Condition/1"}])])
    assert text == "" and notes == (
        "left out a ServiceRequest: status entered-in-error",
        "left out reasonReference of a ServiceRequest: only its text and codes are read",
        "left out a reason of a ServiceRequest: it is a code without a name",
    )
    given, notes = context_of(request({"text": "A"}), given="Mine.")
    assert given == "Mine." and notes == ("left out the reason of a ServiceRequest: a context is given",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([request({"text": "A"}), request({"text": "B"})], "obs.json: entry 2: a ServiceRequest with another reason"),
        ([request(reasonCode="cough")], "obs.json: entry 1: reasonCode is not a list of objects"),
        ([request({"coding": "x"})], "obs.json: entry 1: coding is not a list of objects"),
        ([request(reason=["x"])], "obs.json: entry 1: reason is not a list of objects"),
    ],
)
def test_a_broken_request_is_one_line(values: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        context_of(values, "obs.json")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_request_for_another_patient_is_refused() -> None:
    patient = {"resourceType": "Patient", "id": "2", "gender": "female"}
    with pytest.raises(UserError, match="of another patient"):
        from_fhir([request({"text": "A"}), patient], READY)


def test_a_bundle_names_the_request_that_it_answers_and_is_read_again() -> None:
    drafted = Report("Dense shadow.", {"pathology": 0.5}, {"glucose": 8.0})
    made = to_fhir(drafted, READY, ABOUT, subject="Patient/1", context=f" {ASKED}\x07\n")
    (asked,), (report,) = of_type(made, "ServiceRequest"), of_type(made, "DiagnosticReport")
    address = next(entry["fullUrl"] for entry in made["entry"] if entry["resource"] is asked)
    assert report["basedOn"] == [{"reference": address}] and asked["subject"] == {"reference": "Patient/1"}
    assert asked["reasonCode"] == [{"text": ASKED}]
    validate(made, ("R4B.",))
    assert from_fhir(made, READY)[0] == {"glucose": 8.0} and context_of(made) == (ASKED, ())
    unnamed = to_fhir(drafted, READY, ABOUT, context=ASKED)
    validate(unnamed, ("R4B.",))
    assert from_fhir(unnamed, READY)[0] == {"glucose": 8.0}
    plain = to_fhir(drafted, READY, ABOUT, context=" ")
    assert "ServiceRequest" not in str(plain) and "basedOn" not in str(plain)


def test_a_report_concludes_with_its_impression_beside_the_whole_text() -> None:
    import base64

    parts = {"findings": "Shadow.", "Impression": "Pneumonia."}
    text = "Findings: Shadow. Impression: Pneumonia."
    made = to_fhir(Report(text, {}, sections=parts), READY, ABOUT)
    validate(made)
    (report,) = of_type(made, "DiagnosticReport")
    (whole,) = report["presentedForm"]
    assert report["conclusion"] == "Pneumonia." and base64.b64decode(whole["data"]).decode() == text
    assert whole["title"] == NOTICE and text in report["text"]["div"]
    (report,) = of_type(to_fhir(Report("Shadow.", {}, sections={"findings": "Shadow."}), READY, ABOUT),
                        "DiagnosticReport")  # fmt: skip
    assert report["conclusion"] == "Shadow." and "presentedForm" not in report


def test_the_command_reads_the_indication_of_a_fhir_file(tiny_model, tmp_path: Path, forks: Forks) -> None:
    adapter = save(tiny_model, tmp_path / "adapter")
    (tmp_path / "case.json").write_text(json.dumps([request({"text": ASKED})]))
    case = ("--max_new_tokens", "6", "--adapter", str(adapter), "--json")
    read = forks.command(*case, "--vitals", str(tmp_path / "case.json"))
    written = forks.command(*case, "--context", ASKED)
    assert read.returncode == 0 and json.loads(read.stdout) == json.loads(written.stdout)
    assert ASKED not in read.stderr
