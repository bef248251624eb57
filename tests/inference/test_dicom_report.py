"""A draft as DICOM objects: what they say, whose they are, and what is refused."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from highdicom.sr import EnhancedSR, srread
from pydicom import dcmread
from pydicom.uid import SecondaryCaptureImageStorage

from tests.dicom_files import write
from tests.dicom_studies import groups, radiograph, texts
from vlm.errors import UserError
from vlm.findings.labeller import Labeller
from vlm.inference.dicom_report import DraftedObjects, SourceImages, check_objects, label_codes, study_uid
from vlm.inference.dicom_report.drafted_objects import to_bytes
from vlm.inference.dicom_report.drawn_page import ROWS, draw_pdf, draw_pictures, page_text
from vlm.inference.fhir import Software
from vlm.inference.study_images import StudyImage
from vlm.report import NOTICE, Report, StatedFinding

ABOUT = Software("f" * 64, "SmolLM2", "0.1.0")
STATED = (
    StatedFinding("pleural_effusion", "present", ("left",), (), ("small",), "findings", 1, "Small left effusion",
                  "effusion", 0.8, "60046008", "RID34539"),
    StatedFinding("scoliosis", "uncertain", ("left", "right"), (), (), "findings", 2, "Maybe scoliosis", None, None,
                  None),
)  # fmt: skip
REPORT = Report(
    "Findings: Small left effusion. Серце не збільшене. Impression: Effusion.",
    {"effusion": 0.8123456789, "left_lung": 1e-7},
    warnings=("not given: sex",),
    calibration="probabilities calibrated on 76 patients",
    sections={"findings": "Small left effusion.", "impression": "Effusion."},
    findings=STATED,
    label_sets={"effusion": ("present",)},
    coverage=0.9,
)


def drafted(*images: Path | StudyImage, report: Report = REPORT) -> DraftedObjects:
    source = SourceImages.of([x if isinstance(x, StudyImage) else StudyImage(x) for x in images], "--dicom_out")
    return DraftedObjects.of(report, ABOUT, source, {"effusion": ("SCT", "60046008")}, "--dicom_out")


def read_again(made: DraftedObjects, folder: Path) -> EnhancedSR:
    """Write, and read as highdicom reads any report, which checks every content item."""
    return srread(made.write(folder)[0])


# ------------------------------------------------------------------------------------------ the Structured Report


def test_the_report_is_a_partial_unverified_draft_of_the_software(tmp_path: Path) -> None:
    read = read_again(drafted(radiograph(tmp_path / "a.dcm")), tmp_path / "out")
    assert type(read) is EnhancedSR and read.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert (read.CompletionFlag, read.VerificationFlag, read.PreliminaryFlag) == (
        "PARTIAL",
        "UNVERIFIED",
        "PRELIMINARY",
    )
    (observer,) = read.content.get_observer_contexts()
    device = observer.observer_identifying_attributes
    assert observer.observer_type.meaning == "Device" and "VerifyingObserverSequence" not in read
    assert (device.name, device.serial_number) == ("clinical-vlm 0.1.0", "f" * 64)
    assert (read.Manufacturer, read.SoftwareVersions) == ("clinical-vlm", "0.1.0")
    other = read_again(drafted(radiograph(tmp_path / "b.dcm")), tmp_path / "out")
    assert other.content.get_observer_contexts()[0].observer_identifying_attributes.uid == device.uid
    assert other.SOPInstanceUID != read.SOPInstanceUID


def test_it_holds_the_text_the_notes_and_every_probability(tmp_path: Path) -> None:
    read = read_again(drafted(radiograph(tmp_path / "a.dcm")), tmp_path / "out")
    said = texts(read)
    assert said[:3] == [("Comment", NOTICE), ("Finding", REPORT.text), ("Impression", "Effusion.")]
    assert ("Comment", "warning: not given: sex") in said
    assert any(text.startswith("answers that fit effusion: present; of 100 sets") for _, text in said)
    found = groups(read)
    for label, value in REPORT.probabilities.items():
        probability = found[f"label {label}"]["Probability"]
        assert probability.value == pytest.approx(value, abs=5e-7)
        assert (probability.unit.value, probability.unit.scheme_designator) == ("1", "UCUM")
        parameters = [item.value for item in probability.ContentSequence]
        assert {"0.1.0", REPORT.calibration, "base model: SmolLM2"} <= set(parameters)
    assert found["label effusion"]["Finding"].value.value == "60046008"
    own = found["label left_lung"]["Finding"].value
    assert (own.scheme_designator, own.value, own.meaning) == ("99CLINICAL_VLM", "left_lung", "left lung")
    assert read.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99CLINICAL_VLM"


def test_findings_keep_their_codes_status_side_and_sentence(tmp_path: Path) -> None:
    found = groups(read_again(drafted(radiograph(tmp_path / "a.dcm")), tmp_path / "out"))
    effusion, scoliosis = found["finding 1 pleural_effusion"], found["finding 2 scoliosis"]
    assert (effusion["Finding"].value.value, effusion["Finding"].value.scheme_designator) == ("60046008", "SCT")
    assert [effusion[name].value.meaning for name in ("Presence of property", "Laterality")] == ["Present", "Left"]
    assert effusion["Comment"].value == "Small left effusion"
    assert [scoliosis[name].value.meaning for name in ("Presence of property", "Laterality")] == [
        "Uncertain", "Bilateral"]  # fmt: skip


def test_it_is_filed_with_the_patient_and_study_of_its_images(tmp_path: Path) -> None:
    image = dcmread(radiograph(tmp_path / "new.dcm"))
    prior = dcmread(radiograph(tmp_path / "old.dcm", "1.2.3.5", "20230301"))
    made = drafted(StudyImage(tmp_path / "old.dcm", prior=True), StudyImage(tmp_path / "new.dcm"))
    read = read_again(made, tmp_path / "out")
    for one in (read, dcmread(made.write(tmp_path / "out")[1])):
        assert str(one.PatientName) == "CANARY^JÜRGEN" and one.SpecificCharacterSet == "ISO_IR 192"
        for name in ("PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
                     "StudyID", "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
            assert one[name].value == image[name].value, name
        assert "InstitutionName" not in one and "ImageComments" not in one and one.SeriesInstanceUID not in (
            image.SeriesInstanceUID, prior.SeriesInstanceUID)  # fmt: skip
    evidence = [(item[0], item[2]) for item in read.get_evidence()]
    assert sorted(evidence) == sorted((x.StudyInstanceUID, x.SOPInstanceUID) for x in (image, prior))
    assert [item[2] for item in read.get_evidence(current_procedure_only=True)] == [image.SOPInstanceUID]


def test_a_draft_without_labels_findings_or_text_is_valid_too(tmp_path: Path) -> None:
    withheld = Report("", {}, withheld="the picture is unlike those the adapter was trained on")
    read = read_again(drafted(radiograph(tmp_path / "a.dcm"), report=withheld), tmp_path / "out")
    assert list(groups(read)) == ["draft"]
    assert texts(read) == [("Comment", NOTICE), ("Comment", withheld.no_draft())]


def test_hostile_names_of_labels_and_controls_in_a_text_do_no_harm(tmp_path: Path) -> None:
    names = ["x" * 500, "a\\b\x1b[31m", "серце", "!!", "urn:oid:1", "心"]
    hostile = Report("One\x00\x1b[2J two\\three $x^{$", dict.fromkeys(names, 0.5))
    read = read_again(drafted(radiograph(tmp_path / "a.dcm"), report=hostile), tmp_path / "out")
    assert ("Finding", "One[2J two\\three $x^{$") in texts(read)
    assert len(groups(read)) == len(names)


def test_labels_have_the_code_of_their_finding_for_their_words() -> None:
    labeller = Labeller.load("chest_en")
    labels = ["effusion", "pleural_effusion", "glucose_high", "opacity_left"]
    given = {"effusion": "pleural_effusion", "opacity_left": "opacity in the left lung"}
    codes = label_codes(labels, labeller, given)
    assert codes == {"effusion": ("SCT", "60046008"), "pleural_effusion": ("SCT", "60046008")}


# --------------------------------------------------------------------------------------------------------- the PDF


def test_the_pdf_is_encapsulated_whole_and_names_nobody(tmp_path: Path) -> None:
    made = drafted(radiograph(tmp_path / "a.dcm"))
    read = dcmread(made.write(tmp_path / "out")[1])
    data = read.EncapsulatedDocument[: read.EncapsulatedDocumentLength]
    assert data.startswith(b"%PDF-") and data.rstrip().endswith(b"%%EOF") and len(read.EncapsulatedDocument) % 2 == 0
    assert (read.Modality, read.MIMETypeOfEncapsulatedDocument, read.VerificationFlag) == (
        "DOC", "application/pdf", "UNVERIFIED")  # fmt: skip
    assert read.SourceInstanceSequence[0].ReferencedSOPInstanceUID == dcmread(tmp_path / "a.dcm").SOPInstanceUID
    page = page_text(REPORT, ABOUT)
    assert page.startswith(NOTICE) and REPORT.text in page and "81.2%" in page and "clinical-vlm 0.1.0" in page
    assert "CANARY" not in page and "MRN" not in page


def test_a_long_draft_has_several_pages_and_odd_letters_cost_nothing(caplog) -> None:
    pages = draw_pdf("\n".join(f"line {number}" for number in range(3 * ROWS + 1))).count(b"/Type /Page ")
    assert pages == 4
    with caplog.at_level(logging.WARNING):
        assert draw_pdf("心 серце $\\frac{ \x00\x1b \ud800 " + "x" * 1_000).count(b"/Type /Page ") == 1
    assert not caplog.records, "no warning of a glyph that the font lacks"


# -------------------------------------------------------------------------------------- the Secondary Capture


def test_each_page_is_a_secondary_capture_of_the_study(tmp_path: Path) -> None:
    image = dcmread(radiograph(tmp_path / "a.dcm"))
    long = replace(REPORT, text="Line.\n" * 100, sections={})
    source = SourceImages.of([StudyImage(tmp_path / "a.dcm")], "--dicom_out")
    made = DraftedObjects.of(long, ABOUT, source, {}, "--dicom_out", ["sc"])
    files = made.write(tmp_path / "out")
    assert [path.name[:3] for path in files] == ["SC."] * 2 and list(made.made) == ["sc"]
    pages = [dcmread(path) for path in files]
    assert [page.InstanceNumber for page in pages] == [1, 2]
    assert len({page.SeriesInstanceUID for page in pages}) == 1 and len({page.SOPInstanceUID for page in pages}) == 2
    for page, drawn in zip(pages, draw_pictures(page_text(long, ABOUT)), strict=True):
        assert page.SOPClassUID == SecondaryCaptureImageStorage and page.BurnedInAnnotation == "YES"
        assert (page.Modality, page.ConversionType, page.PhotometricInterpretation) == ("OT", "WSD", "MONOCHROME2")
        assert "Draft by software" in page.SeriesDescription and not page.PatientOrientation
        assert (page.StudyInstanceUID, page.PatientID, str(page.PatientName)) == (
            image.StudyInstanceUID, image.PatientID, "CANARY^JÜRGEN")  # fmt: skip
        assert page.SourceImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
        assert np.array_equal(page.pixel_array, drawn) and drawn.shape == (1753, 1240)


def test_the_mark_and_the_notice_are_drawn_on_every_page() -> None:
    """Where nothing else stands: above the text, and at the foot."""
    pages = list(draw_pictures("\n".join("x" for _ in range(ROWS + 1))))
    assert len(pages) == 2
    for page in pages:
        head, foot = page[:65], page[-70:]
        assert (head < 128).sum() > 500 and (foot < 128).sum() > 500, "black letters"
        assert (page[:20] == 255).all() and (page[-30:] == 255).all(), "with a margin"
    empty = next(draw_pictures(""))
    assert np.array_equal(empty[:65], pages[0][:65]) and not np.array_equal(empty[66:], pages[0][66:])


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"StudyInstanceUID": ""}, "its StudyInstanceUID is missing"),
        ({"SeriesInstanceUID": "1.2.3 OR 1=1"}, "its SeriesInstanceUID is not valid in DICOM"),
        ({"PatientID": "MRN\\77"}, "its PatientID is not valid in DICOM"),
        ({"PatientID": "M" * 65}, "its PatientID is not valid in DICOM"),
        ({"PatientName": "CANARY\x1b[31m"}, "its PatientName is not valid in DICOM"),
        ({"SOPClassUID": "1.2.3.4.5"}, "highdicom makes no object from the headers"),
    ],
)  # fmt: skip
def test_headers_that_cannot_be_filed_are_refused_without_their_values(
    elements: dict[str, str], message: str, tmp_path: Path, recwarn
) -> None:
    radiograph(tmp_path / "a.dcm", **elements)
    with pytest.raises(UserError) as error:
        check_objects(ABOUT, SourceImages.of([StudyImage(tmp_path / "a.dcm")], "--dicom_out"), "--dicom_out")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not any(value and value in str(error.value) for value in ("MRN", "CANARY", "OR 1=1"))


def test_an_optional_element_that_is_not_valid_is_left_empty_and_said(tmp_path: Path) -> None:
    radiograph(tmp_path / "a.dcm", PatientBirthDate="1960-01-01", PatientSex="X", AccessionNumber="A" * 17)
    source = SourceImages.of([StudyImage(tmp_path / "a.dcm")], "--dicom_out")
    assert [note.split()[0] for note in source.notes] == ["PatientBirthDate", "AccessionNumber", "PatientSex"]
    read = read_again(drafted(tmp_path / "a.dcm"), tmp_path / "out")
    assert not read.PatientBirthDate and not read.PatientSex and read.PatientID == "MRN-77"


def test_images_of_another_patient_study_or_kind_are_refused(tmp_path: Path) -> None:
    a = radiograph(tmp_path / "a.dcm")
    write_png = tmp_path / "case.png"
    write_png.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    cases = [
        ([], "this case has no current image"),
        ([StudyImage(a, prior=True)], "this case has no current image"),
        ([StudyImage(write_png)], "is no DICOM file, so that there is no study to file the draft with; give the DICOM"),
        ([StudyImage(np.zeros((8, 8), np.uint8))], "is no DICOM file"),
        ([StudyImage(a), StudyImage(radiograph(tmp_path / "b", "1.2.9"))], "are of several studies"),
        ([StudyImage(a), StudyImage(radiograph(tmp_path / "c", PatientID="8"), prior=True)], "of several patients"),
    ]
    for images, message in cases:
        with pytest.raises(UserError, match=message) as error:
            SourceImages.of(images, "--dicom_out")
        assert str(error.value).startswith("--dicom_out: ") and "CANARY" not in str(error.value)


def test_hostile_headers_are_an_object_or_one_line_and_nothing_is_logged(tmp_path: Path, caplog, recwarn) -> None:
    whole = bytearray(radiograph(tmp_path / "a").read_bytes())
    rng, made = np.random.default_rng(0), 0
    with caplog.at_level(logging.DEBUG):
        for _ in range(40):
            changed = whole.copy()
            for place in rng.integers(132, len(whole) - 128, 2):
                changed[place] = rng.integers(256)
            (tmp_path / "a").write_bytes(changed)
            try:
                to_bytes(drafted(tmp_path / "a", report=Report("", {})).structured_report)
                made += 1
            except UserError as error:
                assert "\n" not in str(error) and "CANARY" not in str(error) and "MRN" not in str(error)
    said = caplog.text + "".join(str(one.message) for one in recwarn)
    assert made and "CANARY" not in said and "MRN" not in said


def test_the_study_of_a_picture_is_known_only_if_all_are_dicom_files_of_one(tmp_path: Path) -> None:
    a, b = radiograph(tmp_path / "a"), radiograph(tmp_path / "b", "1.2.9")
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert study_uid([StudyImage(a)]) == study_uid([StudyImage(a), StudyImage(b, prior=True)]) == "1.2.3.4"
    assert not study_uid([StudyImage(a), StudyImage(b)]) and not study_uid([])
    assert not study_uid([StudyImage(a), StudyImage(tmp_path / "c.png")]) and not study_uid([StudyImage(np.zeros(2))])
    assert not study_uid([StudyImage(write(tmp_path / "d"))])


def test_a_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.util import find_spec

    source = SourceImages.of([StudyImage(radiograph(tmp_path / "a"))], "--dicom_out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "highdicom" else find_spec(name))
    with pytest.raises(UserError, match=r"--dicom_out: needs highdicom; pip install 'clinical-vlm\[dicom\]'"):
        check_objects(ABOUT, source, "--dicom_out")
