"""The service drafts a study of the operator's archive: nowhere else, and stored only if both ask for it."""

from argparse import Namespace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from dicomweb_client import DICOMwebClient
from highdicom.sr import EnhancedSR
from playwright.sync_api import Browser, expect
from pydicom import dcmread
from pydicom.uid import EnhancedSRStorage

from tests.app.test_app_page import browser
from tests.archived_studies import SECRETS, STUDY, Ward, ask, drafted, server, ward
from tests.dicom_studies import check_stored, radiograph
from tests.dicomweb_server import DicomWebServer
from tests.orthanc_server import LOGIN, credentials, orthanc
from tests.serving import serving
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.archived_study import ArchivedStudies
from vlm.app.guard import Access
from vlm.app.serve import make_app
from vlm.app.service import Limits, Service
from vlm.cli import build_parser
from vlm.errors import UserError
from vlm.inference.dicomweb import Archive
from vlm.inference.engine import ReportEngine

__all__ = ["browser", "credentials", "orthanc", "server", "ward"]  # fixtures

# ------------------------------------------------------------------------------------------------- drafting


def test_a_study_is_drafted_as_its_image_would_be(ward: Ward, server: DicomWebServer, tmp_path: Path, capfd) -> None:
    with ward.open(server.url) as client:
        own = drafted(client.post("/v1/report", files={"image": (tmp_path / "a.dcm").read_bytes()}))
        by_json, by_form = ask(client), client.post("/v1/report", files={"study_uid": (None, STUDY.encode())})
        bundle = drafted(ask(client, format="fhir"))
        assert drafted(client.get("/v1/schema"))["archive"] == {"store": False}
    left_out = "the study: 1 files are no radiographs (modality CT) and were left out"
    for answer in (by_json, by_form):
        assert drafted(answer)["text"] == own["text"]
        assert drafted(answer)["warnings"] == [left_out, *own["warnings"]]
    assert f"urn:oid:{STUDY}" in str(bundle)
    assert [seen[:2] for seen in server.seen] == [("GET", f"/dicom-web/studies/{STUDY}")] * 3, "nothing is stored"
    said = "".join(capfd.readouterr())
    assert STUDY not in said and not any(secret in said for secret in SECRETS)


def test_a_draft_is_stored_only_if_operator_and_request_ask_for_it(
    ward: Ward, server: DicomWebServer, tmp_path: Path
) -> None:
    with ward.open(server.url) as client:
        answer = ask(client, store=True)
        assert (answer.status_code, answer.json()["detail"]) == (
            422, "store: this server stores nothing; it was started without --store")  # fmt: skip
        assert not server.seen, "it is refused before the archive is asked"
    with ward.open(server.url, store=True) as client:
        drafted(ask(client))
        assert [seen[0] for seen in server.seen] == ["GET"]
        shown = drafted(ask(client, store=True))
        stored = EnhancedSR.from_dataset(dcmread(BytesIO(server.studies[STUDY][-1])))
        form = {"study_uid": (None, STUDY.encode()), "store": (None, b"true")}
        drafted(client.post("/v1/report", files=form))
    check_stored(stored, shown, tmp_path / "a.dcm")
    assert [seen[0] for seen in server.seen] == ["GET", "GET", "POST", "GET", "POST"]


def test_a_study_goes_through_a_real_orthanc_and_back(orthanc: str, ward: Ward, tmp_path: Path) -> None:
    image = radiograph(tmp_path / "a.dcm", STUDY)
    assert requests.post(f"{orthanc}/instances", data=image.read_bytes(), auth=LOGIN, timeout=30).ok
    with ward.open(f"{orthanc}/dicom-web", store=True) as client:
        shown = drafted(ask(client, store=True))
        gone = ask(client, study_uid="1.2.3.4.5.6.7")
    session = requests.Session()
    session.auth = LOGIN
    stored = DICOMwebClient(f"{orthanc}/dicom-web", session=session).retrieve_study(STUDY)
    (report,) = [one for one in stored if one.SOPClassUID == EnhancedSRStorage]
    check_stored(EnhancedSR.from_dataset(report), shown, image)
    assert gone.status_code == 404 and "it has no such study" in gone.json()["detail"]


# ---------------------------------------------------------------------------------------- what a client may ask


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"study_uid": "1.2/../../../evil"}, 422, "study_uid: is no DICOM UID"),
        ({"study_uid": "1.2?x=http://evil"}, 422, "study_uid: is no DICOM UID"),
        ({"study_uid": "http://evil.example/1.2"}, 422, "study_uid: is no DICOM UID"),
        ({"study_uid": "1." * 500}, 422, "study_uid: String should have at most"),
        ({"study_uid": {"address": "http://evil"}}, 422, "study_uid: Input should be a valid string"),
        ({"dicomweb": "http://evil.example"}, 422, "dicomweb: Extra inputs are not permitted"),
        ({"image": "iVBO"}, 422, "study_uid: brings its own images; leave the others away"),
        ({"study_uid": "", "store": True}, 422, "store: stores the draft of a study in the archive"),
        ({"store": "perhaps"}, 422, "store: Input should be a valid boolean"),
        ({"study_uid": "1.2.3.4"}, 404, "the archive: answered 404: it has no such study"),
    ],
)  # fmt: skip
def test_a_client_names_a_study_and_nothing_else(
    body: dict[str, Any], status: int, message: str, ward: Ward, server: DicomWebServer
) -> None:
    with ward.open(server.url, store=True) as client:
        answer = client.post("/v1/report", json={"study_uid": STUDY, **body})
    if body.get("image"):  # its picture is refused first
        assert answer.status_code in (400, 422)
    else:
        assert (answer.status_code, answer.json()["detail"][: len(message)]) == (status, message)
    assert all(path == "/dicom-web/studies/1.2.3.4" for _, path, _ in server.seen)


def test_a_picture_beside_a_study_is_refused(ward: Ward, server: DicomWebServer, tmp_path: Path) -> None:
    with ward.open(server.url) as client:
        files = {"study_uid": (None, STUDY.encode()), "image": ("x", (tmp_path / "a.dcm").read_bytes())}
        answer = client.post("/v1/report", files=files)
    assert answer.status_code == 422 and "brings its own images" in answer.json()["detail"] and not server.seen


def test_without_an_archive_a_study_is_refused(engine: ReportEngine, adapter: Adapter) -> None:
    with Service(engine, Limits(tokens=2)) as service, serving(make_api(service, adapter)) as url:
        answer = httpx.post(f"{url}/v1/report", json={"study_uid": STUDY})
        assert httpx.get(f"{url}/v1/schema").json()["archive"] is None
    assert answer.status_code == 422 and answer.json()["detail"] == (
        "study_uid: this server has no archive; it was started without --dicomweb")  # fmt: skip


def test_a_study_that_cannot_be_drafted_is_one_line(ward: Ward, server: DicomWebServer, tmp_path: Path) -> None:
    server.add(radiograph(tmp_path / "mr.dcm", "1.2.5", Modality="MR"))
    server.add(radiograph(tmp_path / "x.dcm", "1.2.6", PatientID="M" * 65))
    server.studies["1.2.7"] = [b"\x7fELF" + bytes(500)]
    with ward.open(server.url, store=True) as client:
        no_radiograph, no_dicom = ask(client, study_uid="1.2.5"), ask(client, study_uid="1.2.7")
        unnamed = ask(client, study_uid="1.2.6", store=True)
        drafted(ask(client, study_uid="1.2.6"))
    for answer, message in [
        (no_radiograph, "study_uid: no radiograph in DICOM there: 1 files are no radiographs (modality MR)"),
        (no_dicom, "study_uid: no radiograph in DICOM there: 1 files are not images in DICOM and were left out"),
        (unnamed, "store: study_uid/001.dcm: its PatientID is not valid in DICOM"),
    ]:
        assert answer.status_code == 422 and answer.json()["detail"].startswith(message), answer.text
    with ward.open(server.url, upload=500) as client:
        answer = ask(client)
    assert answer.status_code == 422 and "its images are larger than 0 MiB" in answer.json()["detail"]


# ------------------------------------------------------------------------------------------------ the operator


def arguments(*options: str) -> Namespace:
    return build_parser().parse_args(["serve", "--adapter", "runs/none", *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--store"], "--store and --dicomweb_http: are for an archive; name it with --dicomweb"),
        (["--dicomweb", "http://pacs.example"], "plain http lets others read"),
        (["--dicomweb", "https://jane:pw@pacs.example"], "credentials are not for the command line"),
        (["--dicomweb", "pacs"], "is no address such as"),
    ],
)  # fmt: skip
def test_wrong_options_end_before_a_model_is_loaded(options: list[str], message: str) -> None:
    given = arguments(*options)
    with pytest.raises(UserError, match=message):
        given.run(given, [])


def test_credentials_in_part_and_a_missing_token_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments("--dicomweb", "https://pacs.example")
    with pytest.raises(UserError, match="--dicomweb: any user of this machine could read the archive"):
        make_app(given, Access())
    monkeypatch.delenv("CLINICAL_VLM_DICOMWEB_PASSWORD")
    with pytest.raises(UserError, match="CLINICAL_VLM_DICOMWEB_PASSWORD: set both, or neither"):
        given.run(given, [])


def test_the_token_is_asked_for_before_the_archive(ward: Ward, server: DicomWebServer) -> None:
    with Service(ward.engine, Limits(tokens=2)) as service:
        studies = ArchivedStudies(Archive(server.url), service, ward.adapter.software)
        with serving(make_api(service, ward.adapter, Access(token=b"t" * 16), studies=studies)) as url:
            assert httpx.post(f"{url}/v1/report", json={"study_uid": STUDY}).status_code == 401
            assert not server.seen
            headers = {"Authorization": f"Bearer {'t' * 16}"}
            drafted(httpx.post(f"{url}/v1/report", json={"study_uid": STUDY}, headers=headers, timeout=60))


# ---------------------------------------------------------------------------------------------------- the page


def test_a_study_is_drafted_and_stored_on_the_page(
    browser: Browser, ward: Ward, server: DicomWebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    with ward.open(server.url, store=True, page=True) as client:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(str(client.base_url))
        card = page.locator(".vlm-card")
        field, button = page.get_by_label("Or a study in the archive"), page.get_by_role("button", name="Draft the")
        field.fill("1.2.999")
        button.click()
        expect(page.get_by_role("alert")).to_contain_text("the archive: answered 404: it has no such study")
        field.fill(f" {STUDY} "[:64])
        button.click()
        expect(card).to_contain_text("the study: 1 files are no radiographs (modality CT)")
        assert [seen[0] for seen in server.seen] == ["GET", "GET"]
        page.get_by_label("Store its draft in the archive").check()
        button.click()
        expect(card).to_contain_text("Stored in the archive as a Structured Report, unverified.")
        server.fault = "silent"
        button.click()
        expect(card).to_contain_text("Not stored: the archive: does not say that it stored the draft")
        page.get_by_role("button", name="Clear").click()
        expect(field).to_have_value("")
        context.close()
    assert len(server.studies[STUDY]) == 3
