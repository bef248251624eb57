"""Make a DICOM Structured Report of a draft: a TID 1500 Measurement Report as an Enhanced SR, by highdicom.

Partial, preliminary and unverified. Each label is a measurement group with its probability, each finding that the draft
states one with its presence. The text of the draft and the notes for its reader are qualitative evaluations.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from vlm.inference.dicom_report.equipment import equipment, stamp
from vlm.inference.fhir import Software
from vlm.inference.fhir.codes import plain
from vlm.inference.fhir.documents import impression, reader_notes
from vlm.report import NOTICE, Report, StatedFinding

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept, EnhancedSR, MeasurementsAndQualitativeEvaluations
    from pydicom import Dataset

PRIVATE = "99CLINICAL_VLM"
"""Designator of our own coding scheme: findings and labels without a public code, by their names."""
PRESENCE = {"present": ("52101004", "Present"), "absent": ("272519000", "Absent"),
            "uncertain": ("64957009", "Uncertain")}  # fmt: skip
"""Status of a finding → its SNOMED CT code."""
SIDES = {"left": ("7771000", "Left"), "right": ("24028007", "Right"), "both": ("51440002", "Bilateral")}
LABEL, FINDING, DRAFT = "label", "finding", "draft"
"""Beginnings of the tracking identifiers."""
_DEVICES = UUID("3f0b1c56-0a53-4f0e-8d5c-0d1f3a0e7c11")  # an arbitrary constant: the UIDs of devices derive from it
Code = tuple[str, str]
"""Designator of a coding scheme, and a code of it."""


def structured_report(
    report: Report, about: Software, images: "Sequence[Dataset]", codes: Mapping[str, Code], time: datetime
) -> "EnhancedSR":
    """Make the Structured Report; `images` are those of `SourceImages`, the first names the study.

    `codes` are those of the labels that have one. Raises `ValueError` as highdicom does for content that is not valid.
    """
    from highdicom.sr import CodedConcept, EnhancedSR, MeasurementReport, ObservationContext, TextContentItem
    from pydicom.uid import generate_uid

    groups = [_label(label, value, report, about, codes.get(label), images)
              for label, value in report.probabilities.items()]  # fmt: skip
    groups += [_finding(number, row, images) for number, row in enumerate(report.findings, 1)]
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(about)),
        procedure_reported=CodedConcept("18748-4", "LN", "Diagnostic Imaging Report"),
        imaging_measurements=groups or [_group(DRAFT, images)],
        language_of_content_item_and_descendants=_language(),
    )
    texts = [TextContentItem(CodedConcept(code, "DCM", meaning), text, "CONTAINS")
             for code, meaning, text in _texts(report)]  # fmt: skip
    content[0].ContentSequence.append(_evaluations(texts))
    document = EnhancedSR(
        evidence=images,
        content=content,
        series_instance_uid=generate_uid(prefix=None),
        series_number=1,
        sop_instance_uid=generate_uid(prefix=None),
        instance_number=1,
        is_complete=False,
        is_final=False,
        is_verified=False,
        coding_schemes=[_scheme()],
        **equipment(about),
    )
    stamp(document, time)
    return document


def _texts(report: Report) -> list[tuple[str, str, str]]:
    """List (DICOM code, its meaning, text): the notice, the draft, its impression, and the notes for the reader."""
    sets = [f"answers that fit {label}: {report.set_words(label)}; {report.set_meaning()}"
            for label in report.label_sets]  # fmt: skip
    listed = [
        ("121106", "Comment", NOTICE),
        ("121071", "Finding", report.text),
        ("121073", "Impression", impression(report)),
    ]
    listed += [("121106", "Comment", note) for note in (*reader_notes(report), *sets)]
    return [(code, meaning, plain(text)) for code, meaning, text in listed if plain(text)]


def _evaluations(items: Sequence[Any]) -> Any:
    """Make the container of TID 1500 for what is said of the study as a whole; highdicom has no class for it."""
    from highdicom.sr import CodedConcept, ContainerContentItem, ContentSequence

    name = CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
    container = ContainerContentItem(name, relationship_type="CONTAINS")
    container.ContentSequence = ContentSequence(items)
    return container


def _label(
    label: str, value: float, report: Report, about: Software, code: Code | None, images: "Sequence[Dataset]"
) -> "MeasurementsAndQualitativeEvaluations":
    """Make the group of a label: the finding it stands for, and its probability, a number without unit."""
    from highdicom.sr import AlgorithmIdentification, CodedConcept, Measurement

    versions = [f"adapter (SHA-256): {about.adapter}", f"base model: {about.base}"]
    told = [*versions, report.calibration or "calibration not stated"]
    algorithm = AlgorithmIdentification("clinical-vlm", about.version, parameters=[plain(text) for text in told])
    probability = Measurement(
        CodedConcept("122157", "DCM", "Probability"),
        round(float(value), 6),
        CodedConcept("1", "UCUM", "no units"),
        algorithm_id=algorithm,
    )
    return _group(f"{LABEL} {label}", images, finding_type=_concept(label, code), measurements=[probability])


def _finding(number: int, row: StatedFinding, images: "Sequence[Dataset]") -> "MeasurementsAndQualitativeEvaluations":
    """Make the group of a finding that the draft states: whether it is there, on which side, and the sentence."""
    from highdicom.sr import CodedConcept, QualitativeEvaluation, TextContentItem

    def evaluation(name: Code, meaning: str, value: tuple[str, str]) -> Any:
        return QualitativeEvaluation(CodedConcept(name[1], name[0], meaning), CodedConcept(value[0], "SCT", value[1]))

    code = ("SCT", row.snomed) if row.snomed else ("RADLEX", row.radlex) if row.radlex else None
    said = [evaluation(("DCM", "121052"), "Presence of property", PRESENCE[row.status])]
    side = "both" if len(row.sides) > 1 else "".join(row.sides)
    if side in SIDES:
        said.append(evaluation(("SCT", "272741003"), "Laterality", SIDES[side]))
    tracked = f"{FINDING} {number} {row.finding}"
    group = _group(tracked, images, finding_type=_concept(row.finding, code), qualitative_evaluations=said)
    if sentence := plain(row.text):
        comment = TextContentItem(CodedConcept("121106", "DCM", "Comment"), sentence, "CONTAINS")
        group[0].ContentSequence.append(comment)
    return group


def _group(identifier: str, images: "Sequence[Dataset]", **content: Any) -> "MeasurementsAndQualitativeEvaluations":
    from highdicom.sr import MeasurementsAndQualitativeEvaluations, SourceImageForMeasurementGroup, TrackingIdentifier
    from pydicom.uid import generate_uid

    sources = [SourceImageForMeasurementGroup(one.SOPClassUID, one.SOPInstanceUID) for one in images]
    tracking = TrackingIdentifier(generate_uid(prefix=None), plain(identifier))
    return MeasurementsAndQualitativeEvaluations(tracking_identifier=tracking, source_images=sources, **content)


def _concept(name: str, code: Code | None) -> "CodedConcept":
    """Make the coded concept of a finding or label: its public code, or else its name in our own scheme."""
    from highdicom.sr import CodedConcept

    words = plain(name.replace("_", " ").replace("\\", "/"))
    own = re.sub(r"\W+", "_", name).strip("_") or "unnamed"
    scheme, value = code or (PRIVATE, own)
    return CodedConcept(value, scheme, words if len(words) <= 64 else f"{words[:63]}…")


def _observer(about: Software) -> Any:
    """Make the context of the observer: this software with this adapter, under a UID that is always the same."""
    from highdicom.sr import CodedConcept, DeviceObserverIdentifyingAttributes, ObserverContext

    uid = f"2.25.{uuid5(_DEVICES, f'{about.version} {about.adapter}').int}"
    device = DeviceObserverIdentifyingAttributes(
        uid=uid,
        name=f"clinical-vlm {about.version}",
        manufacturer_name="clinical-vlm",
        model_name=f"base model: {plain(about.base)}",
        serial_number=about.adapter,
    )
    return ObserverContext(CodedConcept("121007", "DCM", "Device"), device)


def _language() -> Any:
    """Say that the language is not known: an adapter writes that of its training reports, and does not name it."""
    from highdicom.sr import CodedConcept, LanguageOfContentItemAndDescendants

    return LanguageOfContentItemAndDescendants(CodedConcept("und", "RFC5646", "Undetermined"))


def _scheme() -> Any:
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    return CodingSchemeIdentificationItem(PRIVATE, name="Labels and findings of clinical-vlm, by their names")
