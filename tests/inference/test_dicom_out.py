"""`draft --dicom_out`: the command writes both objects, and refuses what has no study before the wait."""

import json
from datetime import datetime
from pathlib import Path

import pytest
from highdicom.sr import srread

from tests.dicom_files import CANARY
from tests.dicom_studies import groups, radiograph, texts
from tests.studies import save_study_adapter
from vlm import cli
from vlm.errors import UserError
from vlm.inference.command import draft_case
from vlm.inference.filing import Filing
from vlm.inference.options import check_draft_options
from vlm.inference.study_images import StudyImage


def draft(adapter: Path, *options: str) -> None:
    """Run `clinical-vlm draft` of one case in this process."""
    arguments = cli.build_parser().parse_args(["draft", "--adapter", str(adapter), *options])
    check_draft_options(arguments)
    cli.draft_case(arguments)


def test_the_command_writes_both_objects_and_says_no_name(tiny_adapter: Path, tmp_path: Path, capfd) -> None:
    image, out = radiograph(tmp_path / "a.dcm"), tmp_path / "deep" / "out"
    options = ("--image", str(image), "--max_new_tokens", "6", "--json")
    draft(tiny_adapter, *options, "--dicom_out", str(out))
    said = capfd.readouterr()
    shown = json.loads(said.out)
    assert not any(word in said.out + said.err for word in ("CANARY", "MRN-77"))
    report, page = sorted(out.iterdir(), reverse=True)
    assert said.err.count("written") == 2 and str(report) in said.err and str(page) in said.err
    read = srread(report)
    assert not shown["text"].strip() or ("Finding", shown["text"].strip()) in texts(read)
    found = groups(read)
    assert {label: found[f"label {label}"]["Probability"].value for label in shown["probabilities"]} == {
        label: pytest.approx(value, abs=1e-6) for label, value in shown["probabilities"].items()
    }
    assert found["label effusion"]["Finding"].value.scheme_designator == "99CLINICAL_VLM"
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (report, page))
    assert abs((datetime.now() - datetime.strptime(read.ContentDate, "%Y%m%d")).days) <= 1


def test_the_objects_that_are_named_are_written_alone(tiny_adapter: Path, tmp_path: Path, capfd) -> None:
    image, out = radiograph(tmp_path / "a.dcm"), tmp_path / "out"
    options = ("--image", str(image), "--max_new_tokens", "6", "--dicom_out", str(out))
    draft(tiny_adapter, *options, "--dicom_objects", "sc", "sr")
    kinds = [path.name.partition(".")[0] for path in sorted(out.iterdir())]
    assert set(kinds) == {"SC", "SR"} and capfd.readouterr().err.count("written") == len(kinds)


def test_a_wrong_case_costs_no_wait(tiny_adapter: Path, table_root: Path, tmp_path: Path) -> None:
    image = next((table_root / "images").iterdir())
    for arguments, message in [
        (["--image", str(image)], f"--dicom_out: {image}: is no DICOM file"),
        (["--vitals", "glucose=7"], "this case has no current image"),
        (["--input", "cases.csv"], "--dicom_out: is for one case"),
        (["--image", "a.dcm", "--dicom_out", "", "--dicom_objects", "sc"], "--dicom_objects: are written to a folder"),
    ]:
        with pytest.raises(UserError, match=message):
            draft(tiny_adapter, "--dicom_out", str(tmp_path / "out"), *arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_dicom_files_gives_a_report_on_its_newest_study(
    tiny_llm: str, table_root: Path, tmp_path: Path
) -> None:
    adapter = str(save_study_adapter(tiny_llm, table_root, tmp_path / "adapter"))
    radiograph(tmp_path / "export" / "old", "1.2.1", "20240201", ViewPosition="PA")
    radiograph(tmp_path / "export" / "new", "1.2.2", "20240302", ViewPosition="PA")
    out = tmp_path / "out"
    bundle = tmp_path / "draft.json"
    draft_case(adapter, [StudyImage(str(tmp_path / "export"))], "", 4, None, filing=Filing(str(out), fhir=str(bundle)))
    assert "urn:oid:1.2.2" in bundle.read_text() and "1.2.1" not in bundle.read_text()
    read = srread(next(out.glob("SR.*")))
    assert read.StudyInstanceUID == "1.2.2" and len(read.get_evidence()) == 2
    assert CANARY not in "".join(path.name for path in out.iterdir())
