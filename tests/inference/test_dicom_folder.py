"""A folder of DICOM files as one case: roles by its headers, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from tests.dicom_files import CANARY, RAMP, write
from tests.studies import save_study_adapter
from vlm.data.images.dicom import DEFLATED
from vlm.data.images.image import ImageSpec, decode_image, to_square
from vlm.errors import UserError
from vlm.inference.command import draft_case
from vlm.inference.dicom_folder import MOST_FILES, study_from_dicom
from vlm.inference.study_images import StudyImage

OLD, NEW = "1.2.3.1", "1.2.3.2"


def radiograph(path: Path, study: str, day: str, view: str = "PA", **elements: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, Modality="DX", StudyInstanceUID=study, StudyDate=day, ViewPosition=view, **elements)


def test_the_newest_study_is_current_and_earlier_ones_are_priors(tmp_path: Path) -> None:
    radiograph(tmp_path / "ST0" / "a", OLD, "20240201", "PA")
    radiograph(tmp_path / "ST1" / "b.dcm", NEW, "20240302", "LL")
    radiograph(tmp_path / "ST1" / "c.dcm", NEW, "20240302", "AP")
    (tmp_path / "README.txt").write_text("Export of the 2nd of March")
    write(tmp_path / "scan.dcm", Modality="CT", StudyInstanceUID=NEW)
    write(tmp_path / "DICOMDIR", Modality="")
    images, notes = study_from_dicom(tmp_path)
    assert [(Path(x.image).name, x.view, x.prior, x.days) for x in images] == [
        ("b.dcm", "lateral", False, None), ("c.dcm", "AP", False, None), ("a", "PA", True, 30.0)]  # fmt: skip
    assert any("1 files are no radiographs (modality CT)" in note for note in notes)
    assert any("1 files are not images in DICOM" in note for note in notes) and len(notes) == 2
    pixels = to_square(decode_image(Path(images[0].image).read_bytes(), "b"), ImageSpec(size=32))
    assert pixels.shape == (32, 32), "its pixels are read as those of any file"


def test_images_are_kept_as_the_adapter_takes_them(tmp_path: Path) -> None:
    for number, day in enumerate(("20240101", "20240201", "20240301")):
        for view in ("PA", "SWIMMERS"):
            radiograph(tmp_path / f"{day}-{view}", f"1.2.{number}", day, view)
    images, notes = study_from_dicom(tmp_path, most=3, views=["PA", "lateral"])
    assert [(x.view, x.days) for x in images] == [("PA", None), ("", None), ("PA", 29.0)]
    said = "; ".join(notes)
    assert "3 further images were left out; 3 are read" in said and "3 images have a view that the adapter" in said


def test_studies_of_one_day_are_ordered_by_their_times_or_refused(tmp_path: Path) -> None:
    radiograph(tmp_path / "a", OLD, "20240301", StudyTime="080000.5")
    radiograph(tmp_path / "b", NEW, "20240301", AcquisitionTime="200000")
    images, _ = study_from_dicom(tmp_path)
    assert [(Path(x.image).name, x.days) for x in images] == [("b", None), ("a", 0.5)]
    radiograph(tmp_path / "b", NEW, "20240301")
    with pytest.raises(UserError, match="two studies of one time; which is the current one is not known"):
        study_from_dicom(tmp_path)


def test_the_same_image_twice_counts_once(tmp_path: Path) -> None:
    for name in ("a", "copy"):
        radiograph(tmp_path / name, NEW, "20240301", SOPInstanceUID="1.2.9")
    images, notes = study_from_dicom(tmp_path)
    assert [Path(x.image).name for x in images] == ["a"] and "1 files hold an image that another holds" in notes[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: radiograph(f / "b", NEW, "20240301", PatientID="SECRET-7"), "files of 2 patients"),
        (lambda f: radiograph(f / "b", OLD, ""), "2 studies, one of them without its date or UID"),
        (lambda f: radiograph(f / "b", OLD, "20240101", syntax=DEFLATED), "b: deflated, which may inflate without"),
        (lambda f: radiograph(f / "b", OLD, "20241399"), "2 studies, one of them without its date or UID"),
        (lambda f: radiograph(f / "b", OLD, "18240301"), "days are more than 40,000"),
        (lambda f: [(f / f"{n}.txt").touch() for n in range(MOST_FILES)], f"more than {MOST_FILES} files"),
        (lambda f: (f / "b").write_bytes(radiograph(f / "b", NEW, "20240301").read_bytes()[:200]), "no radiograph|"),
    ],
)
def test_what_is_not_one_study_is_refused_without_an_identity(make, message: str, tmp_path: Path) -> None:
    radiograph(tmp_path / "a", NEW, "20240301")
    make(tmp_path)
    if message.endswith("|"):  # a file cut short names no modality, and is left out
        _, notes = study_from_dicom(tmp_path)
        assert "modality unknown" in notes[0]
        return
    with pytest.raises(UserError) as error:
        study_from_dicom(tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert "SECRET" not in str(error.value) and CANARY not in str(error.value)


def test_a_folder_without_radiographs_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no radiograph in DICOM there: it is empty"):
        study_from_dicom(tmp_path)
    write(tmp_path / "a.dcm", Modality="SR")
    with pytest.raises(UserError, match=r"1 files are no radiographs \(modality SR\)"):
        study_from_dicom(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        study_from_dicom(tmp_path / "none")


def test_links_are_not_followed(tmp_path: Path) -> None:
    radiograph(tmp_path / "other" / "a", NEW, "20240301")
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "link").symlink_to(tmp_path / "other" / "a")
    (tmp_path / "case" / "loop").symlink_to(tmp_path / "case")
    with pytest.raises(UserError, match="no radiograph in DICOM there"):
        study_from_dicom(tmp_path / "case")


def test_hostile_headers_are_one_line_or_nothing(tmp_path: Path) -> None:
    """Bytes of a real header changed at random: an answer or one line, and no value of an element."""
    whole = bytearray(radiograph(tmp_path / "a", NEW, "20240301", pixels=RAMP).read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(200):
        changed = whole.copy()
        for place in rng.integers(132, len(whole), 8):
            changed[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(changed[: rng.integers(140, len(changed))])
        try:
            _, notes = study_from_dicom(tmp_path)
        except UserError as error:
            notes = [str(error)]
        assert all("\n" not in note and CANARY not in note for note in notes)


def test_a_folder_is_drafted_as_its_study_from_the_command_line(
    tiny_llm: str, table_root: Path, tmp_path: Path
) -> None:
    adapter = str(save_study_adapter(tiny_llm, table_root, tmp_path / "adapter"))
    radiograph(tmp_path / "export" / "old", OLD, "20240201", "PA")
    radiograph(tmp_path / "export" / "new", NEW, "20240302", "SWIMMERS")
    folder = str(tmp_path / "export")
    report = draft_case(adapter, [StudyImage(folder)], "", 4, None)
    assert [(image["view"], image["prior"], image["days"]) for image in report.to_dict()["images"]] == [
        ("", False, None), ("PA", True, 30.0)]  # fmt: skip
    assert any("1 images have a view that the adapter does not know" in said for said in report.warnings)
    with pytest.raises(UserError, match="tells views and times by itself; leave them away"):
        draft_case(adapter, [StudyImage(folder, "PA")], "", 4, None)
