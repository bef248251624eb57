"""A real Orthanc with its DICOMweb plugin on loopback, for tests; they are skipped where it is not installed."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

LOGIN = ("jane", "s3cret")
PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name and password of its user, for every test of a file that imports this."""
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
