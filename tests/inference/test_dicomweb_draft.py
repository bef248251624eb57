"""`draft --study UID --dicomweb URL --store`, on a small server of our own and on a real Orthanc."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import requests
from dicomweb_client import DICOMwebClient
from highdicom.sr import EnhancedSR
from pydicom import dcmread
from pydicom.uid import EnhancedSRStorage

from tests.dicom_studies import groups, radiograph, texts
from tests.dicomweb_server import DicomWebServer
from vlm.cli import build_parser, draft_case
from vlm.errors import UserError
from vlm.inference.options import check_draft_options
from vlm.report import NOTICE

STUDY = "2.25.329800735698586629295641978511506172918"
LOGIN = ("jane", "s3cret")
PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for word, value in zip(("USER", "PASSWORD"), LOGIN, strict=True):
        monkeypatch.setenv(f"CLINICAL_VLM_DICOMWEB_{word}", value)
    monkeypatch.delenv("CLINICAL_VLM_DICOMWEB_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[str]:
    """Address of an Orthanc with the DICOMweb plugin, empty, on loopback."""
    found = [path for folder in PLUGINS for path in Path(folder).glob("libOrthancDicomWeb.so*")]
    if shutil.which("Orthanc") is None or not found:
        pytest.skip("Orthanc is not installed; apt-get install orthanc orthanc-dicomweb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    storage = str(tmp_path / "storage")
    config = {
        "StorageDirectory": storage, "IndexDirectory": storage, "Plugins": [str(found[0])], "HttpPort": port,
        "HttpBindAddresses": ["127.0.0.1"], "RemoteAccessAllowed": False, "DicomServerEnabled": False,
        "AuthenticationEnabled": True, "RegisteredUsers": {LOGIN[0]: LOGIN[1]},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(config))
    with (tmp_path / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, process, tmp_path / "orthanc.log")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if requests.get(f"{address}/system", auth=LOGIN, timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.1)
    raise AssertionError(log.read_text()[-2000:])


def draft(adapter: Path, *options: str) -> None:
    """Run `clinical-vlm draft` in this process."""
    words = ["draft", "--adapter", str(adapter), "--max_new_tokens", "6", "--study", STUDY, "--json", *options]
    arguments = build_parser().parse_args(words)
    check_draft_options(arguments)
    draft_case(arguments)


def check_stored(stored: EnhancedSR, shown: dict, image: Path) -> None:
    """Compare a report that came back from an archive with the draft that was shown."""
    source = dcmread(image)
    assert (stored.CompletionFlag, stored.VerificationFlag) == ("PARTIAL", "UNVERIFIED")
    assert (stored.StudyInstanceUID, stored.PatientID, str(stored.PatientName)) == (
        STUDY, source.PatientID, str(source.PatientName))  # fmt: skip
    assert texts(stored)[0] == ("Comment", NOTICE)
    assert not shown["text"].strip() or texts(stored)[1] == ("Finding", shown["text"].strip())
    found = groups(stored)
    for label, value in shown["probabilities"].items():
        assert found[f"label {label}"]["Probability"].value == pytest.approx(value, abs=1e-6)
    assert [item[2] for item in stored.get_evidence()] == [source.SOPInstanceUID]


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
