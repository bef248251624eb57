"""Write a draft as a FHIR Bundle: the report, its input values, the probabilities, and the software that made it."""

import base64
import json
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from vlm.config import VitalConfig
from vlm.data.sections import CONCLUSIONS
from vlm.data.vitals.schema import VitalsSchema
from vlm.data.vitals.units import ucum
from vlm.inference.fhir.codes import (
    BY_MACHINE,
    DIASTOLIC,
    IMAGING_STUDY,
    NOBODY,
    NOTE,
    PRESSURE_PANEL,
    SYSTOLIC,
    TERMINOLOGY,
    UCUM,
    VITAL_SIGNS,
    concept,
    imaging_study,
    loinc,
    plain,
)
from vlm.inference.fhir.finding_observations import finding_observation
from vlm.inference.fhir.profiles import Claim, claimed
from vlm.report import NOTICE, Report
from vlm.version import __version__

Resource = dict[str, Any]
RELIABILITY = ("label_sets", "coverage", "contradictions", "sentences", "confidence", "withheld")
"""Fields of a report that say how far to rely on it."""
_IDS = UUID("5c0c7a5e-6b8d-4d86-9f5e-2f6d1a3b9c47")  # an arbitrary constant: the ids of all Bundles are derived from it
_UNTOLD, _OPTIONAL = ("format", "images"), ("sections", "findings", *RELIABILITY)
"""Fields of a report that its ids do not depend on, and those on which they depend if they are not empty."""


class Software(NamedTuple):
    """Software that made the draft."""

    adapter: str
    """Digest of the adapter's weights and config."""
    base: str
    """Name of the base model; of a local folder, its name alone."""
    version: str = __version__
    """Version of clinical-vlm."""

    @classmethod
    def of(cls, folder: Path) -> "Software":
        """Read it from the adapter in a folder; raises `UserError` if its config cannot be read."""
        from vlm.adapter import digest, read_config
        from vlm.weights import public_name

        return cls(digest(folder), public_name(read_config(folder).model.llm.base))


def to_fhir(
    report: Report,
    schema: VitalsSchema,
    about: Software,
    image: bool = True,
    subject: str | None = None,
    issued: datetime | None = None,
    context: str = "",
    study: str = "",
    claim: Claim | None = None,
) -> Resource:
    """Make a Bundle of type `collection`: DiagnosticReport, Observations, Device and Provenance.

    With a `context` there is a ServiceRequest too, whose reason it is; its elements are those of R4 and R4B. `study` is
    the DICOM UID of the study that the report is on, which it refers to by the element of R4 and R4B. A `claim` is of
    profiles; it needs an image and a subject.

    All of it is preliminary. `image` says whether the case had one, `subject` is a reference such as `Patient/123`;
    without it the Bundle names nobody. The same report gives the same Bundle, ids included, but for `issued`
    (default: now). A probability is an Observation of the software, never a Condition; a missing value is left out.
    """
    time = (issued or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    values, context = report.to_dict(), plain(context)
    told = {name: value for name, value in values.items() if name not in _UNTOLD and (value or name not in _OPTIONAL)}
    made_of = [told, list(about), image, subject, *([context] if context else [])]
    made_of += [{"study": study}] if study else []
    made_of += [claim._asdict()] if claim else []
    root = uuid5(_IDS, json.dumps(made_of, sort_keys=True))

    def address(part: str) -> str:
        return f"urn:uuid:{uuid5(root, part)}"

    device = {"reference": address("device"), "display": f"clinical-vlm {about.version}"}
    given = dict(_vitals(report, schema))
    estimated = {f"probability of {label}": _probability(label, value, report, device, time)
             for label, value in report.probabilities.items()}  # fmt: skip
    stated = {f"finding {number}": finding_observation(row, device, time)
              for number, row in enumerate(report.findings, 1)}  # fmt: skip
    results = [{"reference": address(part)} for part in (*given, *estimated, *stated)]
    made = [{"reference": address(part)} for part in ("report", *estimated, *stated)]
    resources = {"report": _report(report, image, results, time), **given, **estimated, **stated}
    if claim:
        resources["report"] = claimed(resources["report"], claim)
    if study:
        resources["report"]["imagingStudy"] = [imaging_study(study)]
    if context:
        resources["report"]["basedOn"] = [{"reference": address("request")}]
        resources["request"] = _request(context)
    if subject:
        resources = {part: {**resource, "subject": {"reference": subject}} for part, resource in resources.items()}
    resources |= {"device": _device(about), "provenance": _provenance(made, device, time)}
    entries = [{"fullUrl": address(part), "resource": resource} for part, resource in resources.items()]
    return {"resourceType": "Bundle", "meta": BY_MACHINE, "type": "collection", "timestamp": time, "entry": entries}


def _report(report: Report, image: bool, results: list[Resource], time: str) -> Resource:
    code = loinc("Draft of a diagnostic imaging report", IMAGING_STUDY) if image else concept("Draft of a report")
    notes = [NOTICE, *reader_notes(report)]
    text = plain(report.text)
    paragraphs = "".join(f"<p>{escape(plain(line), quote=False)}</p>" for line in (NOTICE, text, *notes[1:]) if line)
    return {
        "resourceType": "DiagnosticReport",
        "meta": BY_MACHINE,
        "text": {"status": "generated", "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{paragraphs}</div>'},
        "extension": [{"url": NOTE, "valueAnnotation": {"text": plain(note)}} for note in notes],
        "status": "preliminary",
        **({"category": [concept("Radiology", f"{TERMINOLOGY}/v2-0074", "RAD")]} if image else {}),
        "code": code,
        "issued": time,
        **({"result": results} if results else {}),
        **_conclusion(report, text),
    }


def reader_notes(report: Report) -> list[str]:
    """List what the reader of a draft should know: why there is none, doubtful sentences, contradictions, warnings."""
    notes = [report.no_draft()] if report.withheld else []
    notes += [f"sentence: {one}" for one in report.sentences if one.confidence is not None]
    notes += [f"contradiction: {one}" for one in report.contradictions]
    return notes + [f"warning: {warning}" for warning in report.warnings]


def _conclusion(report: Report, text: str) -> Resource:
    """Conclude with the impression if the draft has one, beside the whole text; else with the text."""
    if not (concluded := impression(report)):
        return {"conclusion": text} if text else {}
    data = base64.b64encode(text.encode()).decode()
    whole = {"contentType": "text/plain; charset=utf-8", "data": data, "title": NOTICE}
    return {"conclusion": concluded, "presentedForm": [whole]}


def impression(report: Report) -> str:
    """Return the section that concludes a draft; empty where it has none."""
    names = {name.lower(): plain(part) for name, part in report.sections.items()}
    return next((names[name] for name in CONCLUSIONS if names.get(name)), "")


def _request(context: str) -> Resource:
    """Make the ServiceRequest for the report, whose reason is the context; its state is not known to us."""
    return {"resourceType": "ServiceRequest", "status": "unknown", "intent": "order", "subject": NOBODY,
            "reasonCode": [concept(context)]}  # fmt: skip


def _vitals(report: Report, schema: VitalsSchema) -> list[tuple[str, Resource]]:
    """Make (name, Observation) of each value; systolic and diastolic pressure are one."""
    shown = [vital for vital in schema.given if vital.name in report.vitals]
    pressure = {vital.loinc: vital for vital in shown if vital.loinc in (SYSTOLIC, DIASTOLIC)}
    if len(pressure) < 2:
        pressure = {}
    found = [(vital.name, _observation(_coded(vital, report.vitals[vital.name]), vital.loinc))
             for vital in shown if vital not in pressure.values()]  # fmt: skip
    if pressure:
        parts = [_coded(pressure[code], report.vitals[pressure[code].name]) for code in (SYSTOLIC, DIASTOLIC)]
        panel = {"code": loinc("blood pressure", PRESSURE_PANEL), "component": parts}
        found.append(("blood pressure", _observation(panel, PRESSURE_PANEL)))
    return found


def _coded(vital: VitalConfig, value: Any) -> Resource:
    code = loinc(vital.name, vital.loinc)
    if vital.categories:
        return {"code": code, "valueCodeableConcept": concept(str(value))}
    return {"code": code, "valueQuantity": _quantity(value, vital.unit, ucum(vital.unit))}


def _quantity(value: float, unit: str, code: str | None) -> Resource:
    """Make a Quantity: a number with its unit as people write it, and its UCUM code where it has one."""
    number = int(value) if float(value).is_integer() else value
    return {"value": number} | ({"unit": unit} if unit else {}) | ({"system": UCUM, "code": code} if code else {})


def _observation(content: Resource, code: str = "") -> Resource:
    """Make an Observation as given by the user: preliminary, since unverified. The time of measurement is unknown."""
    kind = [concept("Vital Signs", f"{TERMINOLOGY}/observation-category", "vital-signs")]
    category = {"category": kind} if code in VITAL_SIGNS else {}
    return {"resourceType": "Observation", "status": "preliminary", **category, **content}


def _probability(label: str, value: float, report: Report, device: Resource, time: str) -> Resource:
    content = {
        "meta": BY_MACHINE,
        "code": concept(f"Probability of {label}, estimated by software"),
        "issued": time,
        "valueQuantity": _quantity(round(value, 6), "probability", "1"),
        "note": [{"text": NOTICE}, *_set_note(label, report)],
        "method": concept(f"Multi-label head on image and vitals; {report.calibration or 'calibration not stated'}"),
        "device": device,
    }
    return _observation(content)


def _set_note(label: str, report: Report) -> list[Resource]:
    """Make the note on the answers that fit a label, if it has a set."""
    words = report.set_words(label)
    return [{"text": f"answers that fit: {words}; {report.set_meaning()}"}] if words else []


def _device(about: Software) -> Resource:
    """Make a Device without its name and type, whose elements differ between R4 and R5."""
    versions = {"clinical-vlm": about.version, "adapter (SHA-256)": about.adapter, "base model": about.base}
    return {
        "resourceType": "Device",
        "modelNumber": "clinical-vlm",
        "version": [{"type": concept(kind), "value": value} for kind, value in versions.items()],
        "note": [{"text": NOTICE}],
    }


def _provenance(made: list[Resource], device: Resource, time: str) -> Resource:
    author = concept("Author", f"{TERMINOLOGY}/provenance-participant-type", "author")
    return {"resourceType": "Provenance", "target": made, "recorded": time, "agent": [{"type": author, "who": device}]}
