"""`draft --study UID --dicomweb URL --store`, on a small server of our own and on a real Orthanc."""

import json
from io import BytesIO
from pathlib import Path

import pytest
import requests
from dicomweb_client import DICOMwebClient
from highdicom.sr import EnhancedSR
from pydicom import dcmread
from pydicom.uid import EnhancedSRStorage

from tests.dicom_studies import check_stored, radiograph
from tests.dicomweb_server import DicomWebServer
from tests.orthanc_server import LOGIN, credentials, orthanc
from vlm.cli import build_parser, draft_case
from vlm.errors import UserError
from vlm.inference.options import check_draft_options

__all__ = ["credentials", "orthanc"]  # fixtures
STUDY = "2.25.329800735698586629295641978511506172918"


def draft(adapter: Path, *options: str) -> None:
    """Run `clinical-vlm draft` in this process."""
    words = ["draft", "--adapter", str(adapter), "--max_new_tokens", "6", "--study", STUDY, "--json", *options]
    arguments = build_parser().parse_args(words)
    check_draft_options(arguments)
    draft_case(arguments)


def test_a_study_is_drafted_and_stored_only_if_asked(tiny_adapter: Path, tmp_path: Path, capfd) -> None:
    image = radiograph(tmp_path / "a.dcm", STUDY)
    with DicomWebServer() as server:
        server.authorization = "Basic amFuZTpzM2NyZXQ="
        server.add(image)
        draft(tiny_adapter, "--dicomweb", server.url)
        assert [seen[0] for seen in server.seen] == ["GET"], "nothing is stored unless asked"
        capfd.readouterr()
        draft(tiny_adapter, "--dicomweb", server.url, "--store", "--dicom_out", str(tmp_path / "out"))
        said = capfd.readouterr()
        stored = EnhancedSR.from_dataset(dcmread(BytesIO(server.studies[STUDY][-1])))
    check_stored(stored, json.loads(said.out), image)
    assert (tmp_path / "out" / f"SR.{stored.SOPInstanceUID}.dcm").is_file(), "the same object is written and stored"
    assert "stored as a Structured Report, unverified" in said.err
    assert not any(word in said.out + said.err for word in ("CANARY", "MRN-77", "s3cret", STUDY))


def test_a_study_goes_through_a_real_orthanc_and_back(orthanc: str, tiny_adapter: Path, tmp_path: Path, capfd) -> None:
    image = radiograph(tmp_path / "a.dcm", STUDY)
    sent = requests.post(f"{orthanc}/instances", data=image.read_bytes(), auth=LOGIN, timeout=30)
    assert sent.ok, sent.text
    draft(tiny_adapter, "--dicomweb", f"{orthanc}/dicom-web", "--store")
    shown = json.loads(capfd.readouterr().out)
    session = requests.Session()
    session.auth = LOGIN
    client = DICOMwebClient(f"{orthanc}/dicom-web", session=session)
    (report,) = [one for one in client.retrieve_study(STUDY) if one.SOPClassUID == EnhancedSRStorage]
    check_stored(EnhancedSR.from_dataset(report), shown, image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--study", "1.2.3"], "--study and --dicomweb: go together"),
        (["--store"], "--store and --dicomweb_http: are for a --study"),
        (["--study", "1.2", "--dicomweb", "https://x", "--image", "a"], "--study: brings its own images"),
        (["--study", "1.2/..", "--dicomweb", "https://x"], "--study: is no DICOM UID"),
        (["--study", "1.2", "--dicomweb", "http://pacs.example"], "plain http lets others read"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_refused_before_anything_is_sent(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_draft_options(build_parser().parse_args(["draft", *options]))
