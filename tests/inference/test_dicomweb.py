"""A study from an archive by DICOMweb: fetched within bounds, drafted, and the draft stored back, unverified."""

import logging
import time
from io import BytesIO
from pathlib import Path

import pytest
from highdicom.sr import EnhancedSR
from pydicom import dcmread

from tests.dicom_studies import radiograph
from tests.dicomweb_server import INSULT, DicomWebServer
from vlm.data.images.elements import DEFLATED
from vlm.errors import UserError
from vlm.inference.dicom_report import DraftedObjects, SourceImages
from vlm.inference.dicomweb import Archive, archive, check_address, is_uid
from vlm.inference.fhir import Software
from vlm.inference.study_images import StudyImage
from vlm.report import Report

STUDY = "1.2.3.4"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for word in ("TOKEN", "USER", "PASSWORD"):
        monkeypatch.delenv(f"CLINICAL_VLM_DICOMWEB_{word}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(tmp_path: Path):
    with DicomWebServer() as server:
        for name in "ab":
            server.add(radiograph(tmp_path / "made" / name))
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fetched").mkdir()
    return tmp_path / "fetched"


def fetch(server: DicomWebServer, folder: Path, study: str = STUDY, seconds: float = 300) -> int:
    return Archive(server.url, seconds).fetch(study, folder)


def structured_report(path: Path):
    source = SourceImages.of([StudyImage(path)], "--store")
    about = Software("f" * 64, "SmolLM2", "0.1.0")
    return DraftedObjects.of(Report("No opacity.", {"effusion": 0.25}), about, source, {}, "--store").structured_report


# --------------------------------------------------------------------------------------------------------- fetching


def test_a_study_is_written_as_it_came(server: DicomWebServer, folder: Path) -> None:
    assert fetch(server, folder) == 2
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == server.studies[STUDY]
    assert server.seen == [("GET", "/dicom-web/studies/1.2.3.4", None)]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())


def test_one_object_outside_of_a_multipart_answer_is_taken_too(server: DicomWebServer, folder: Path) -> None:
    server.fault = "single"
    assert fetch(server, folder) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("401", "answered 401: it wants credentials; set CLINICAL_VLM_DICOMWEB_TOKEN"),
        ("403", "answered 403: these credentials may not do that"),
        ("404", "answered 404: it has no such study, or its address ends in another path"),
        ("503", "answered 503: it failed"),
        ("redirect", "leads to another address; give that one"),
        ("compressed", "the answer is compressed, and may unpack without bound"),
        ("other", "answered with no DICOMweb"),
        ("cut", "cannot be reached or broke off"),
        ("endless", "the study is larger than 1 MiB"),
        ("slow", "did not answer whole within 1 s"),
    ],
)  # fmt: skip
def test_a_misbehaving_server_costs_little_and_says_nothing(
    fault: str, message: str, server: DicomWebServer, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog, capfd
) -> None:
    monkeypatch.setattr(archive, "LARGEST_STUDY", 1 << 20)
    server.fault = fault
    started = time.monotonic()
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError) as error:
        fetch(server, folder, seconds=1 if fault == "slow" else 300)
    assert time.monotonic() - started < 300 and not list(folder.iterdir())
    assert len(server.seen) == 1 or fault == "slow", "nothing is tried again"
    assert str(error.value).startswith("--dicomweb: 127.0.0.1:") and message in str(error.value)
    said = str(error.value) + caplog.text + "".join(capfd.readouterr())
    assert INSULT not in said and "server's words" not in said and STUDY not in said and "\n" not in str(error.value)


def test_too_many_or_too_large_objects_end_the_fetch(
    server: DicomWebServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_FILES", 1)
    with pytest.raises(UserError, match="more than 1 objects; export the radiographs of the study"):
        fetch(server, folder)
    monkeypatch.setattr(archive, "LARGEST_OBJECT", 500)
    with pytest.raises(UserError, match="an object is larger than 0 MiB"):
        fetch(server, folder)


def test_objects_of_another_study_or_deflated_ones_are_refused(
    server: DicomWebServer, folder: Path, tmp_path: Path
) -> None:
    server.studies["1.2.9"] = [radiograph(tmp_path / "c", "1.2.8").read_bytes()]
    with pytest.raises(UserError, match="object 1 of the study: is of another study than the one that was asked for"):
        fetch(server, folder, "1.2.9")
    server.studies["1.2.9"] = [radiograph(tmp_path / "d", "1.2.9", syntax=DEFLATED).read_bytes()]
    with pytest.raises(UserError, match="object 1 of the study: deflated, which may inflate without bound"):
        fetch(server, folder, "1.2.9")


def test_nobody_there_is_one_line(folder: Path) -> None:
    with DicomWebServer() as gone:
        url = gone.url
    with pytest.raises(UserError, match=r"--dicomweb: 127.0.0.1:\d+: cannot be reached or broke off"):
        Archive(url).fetch(STUDY, folder)


# ------------------------------------------------------------------------------------------------------ credentials


def test_credentials_come_from_the_environment_or_netrc(
    server: DicomWebServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login jane password s3cret\n")
    (tmp_path / "netrc").chmod(0o600)
    fetch(server, folder)
    monkeypatch.setenv("CLINICAL_VLM_DICOMWEB_USER", "joe")
    with pytest.raises(UserError, match="CLINICAL_VLM_DICOMWEB_PASSWORD: set both, or neither"):
        fetch(server, folder)
    monkeypatch.setenv("CLINICAL_VLM_DICOMWEB_PASSWORD", "pass")
    fetch(server, folder)
    monkeypatch.setenv("CLINICAL_VLM_DICOMWEB_TOKEN", "t0ken")
    fetch(server, folder)
    assert [seen[2] for seen in server.seen] == ["Basic amFuZTpzM2NyZXQ=", "Basic am9lOnBhc3M=", "Bearer t0ken"]


def test_only_https_or_loopback_is_an_address_unless_allowed() -> None:
    for address in (
        "https://pacs.example/dicom-web/",
        "http://127.0.0.1:8042/x",
        "http://[::1]:80",
        "http://localhost",
    ):
        assert check_address(address) == address.rstrip("/")
    assert check_address("http://pacs.example", allow_http=True) == "http://pacs.example"
    for address, message in [
        ("http://pacs.example", "plain http lets others read"),
        ("http://localhost.evil.example", "plain http lets others read"),
        ("https://jane:s3cret@pacs.example", "credentials are not for the command line"),
        *((bad, "is no address such as") for bad in ("pacs", "ftp://x", "https://", "https://x:99999", "https://x?a=1",
                                                     "https://x/ y", "https://[", "file:///etc")),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message) as error:
            check_address(address)
        assert "s3cret" not in str(error.value)


def test_a_uid_is_digits_and_dots() -> None:
    assert is_uid("1.2.840.113619.2.0") and is_uid("2.25.329800735698586629295641978511506172918")
    assert not any(map(is_uid, ("", "1", "1.2.", "1..2", "1.02", "1.2/../3", "1.2?x=1", "1.2\n", "1." * 32 + "1")))


# ---------------------------------------------------------------------------------------------------------- storing


def test_the_structured_report_is_stored_and_reads_again(server: DicomWebServer, tmp_path: Path) -> None:
    made = structured_report(tmp_path / "made" / "a")
    Archive(server.url).store(made)
    assert server.seen[-1][:2] == ("POST", "/dicom-web/studies/1.2.3.4")
    stored = EnhancedSR.from_dataset(dcmread(BytesIO(server.studies[STUDY][-1])))
    assert stored.SOPInstanceUID == made.SOPInstanceUID and stored.VerificationFlag == "UNVERIFIED"
    assert str(stored.PatientName) == "CANARY^JÜRGEN"


@pytest.mark.parametrize(
    ("fault", "message"),
    [("409", "answered 409: it does not take the object"), ("silent", "does not say that it stored the draft"),
     ("failed", "does not say that it stored the draft"), ("redirect", "leads to another address")],
)  # fmt: skip
def test_a_draft_that_is_not_stored_is_said(fault: str, message: str, server: DicomWebServer, tmp_path: Path) -> None:
    server.fault = fault
    with pytest.raises(UserError, match=message) as error:
        Archive(server.url).store(structured_report(tmp_path / "made" / "a"))
    assert "CANARY" not in str(error.value) and len(server.studies[STUDY]) == 2
