"""A service with an archive of studies, in tests: its requests, and what no answer may hold."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.dicom_studies import radiograph
from tests.dicomweb_server import INSULT, DicomWebServer
from tests.http_drafts import TOKENS
from tests.serving import serving
from vlm.app.about import Adapter
from vlm.app.api import make_api
from vlm.app.archived_study import ArchivedStudies
from vlm.app.page import add_page
from vlm.app.service import Limits, Service
from vlm.inference.dicomweb import Archive
from vlm.inference.engine import ReportEngine

STUDY = "2.25.329800735698586629295641978511506172918"
SECRETS = ("CANARY", "MRN-77", INSULT, "127.0.0.1", "clinical-vlm-app")
"""What no answer and no line of the log may hold: names, the archive's words and address, our folder."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DicomWebServer]:
    with DicomWebServer() as server:
        server.authorization = "Basic amFuZTpzM2NyZXQ="
        server.add(radiograph(tmp_path / "a.dcm", STUDY))
        server.add(radiograph(tmp_path / "ct.dcm", STUDY, Modality="CT"))
        yield server


class Ward:
    """The service with an archive, one on each address."""

    def __init__(self, engine: ReportEngine, adapter: Adapter) -> None:
        self.engine, self.adapter = engine, adapter

    @contextmanager
    def open(self, url: str, store: bool = False, page: bool = False, **limits: Any) -> Iterator[httpx.Client]:
        with ExitStack() as stack:
            service = stack.enter_context(Service(self.engine, Limits(**{"tokens": TOKENS, **limits})))
            studies = ArchivedStudies(Archive(url), service, self.adapter.software, store)
            app = make_api(service, self.adapter, studies=studies)
            address = stack.enter_context(
                serving(add_page(app, service, self.adapter, studies) if page else app))  # fmt: skip
            yield stack.enter_context(httpx.Client(base_url=address, timeout=120))
            assert not [path for path in service.folder.rglob("*") if path.suffix == ".dcm"], "a study was left behind"


@pytest.fixture
def ward(engine: ReportEngine, adapter: Adapter) -> Ward:
    return Ward(engine, adapter)


def ask(client: httpx.Client, **body: Any) -> httpx.Response:
    answer = client.post("/v1/report", json={"study_uid": STUDY, **body})
    assert not any(secret in answer.text for secret in SECRETS), answer.text
    return answer


def drafted(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return answer.json()
