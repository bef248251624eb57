"""A DICOMweb archive on loopback: WADO-RS of a study, STOW-RS, and the ways in which a server may misbehave."""

import json
import time
from collections import defaultdict
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from pydicom import dcmread

from tests.loopback_server import LoopbackHandler, LoopbackServer

ROOT, BOUNDARY = "/dicom-web", "a-boundary"
INSULT = "\x1b[2J<b>server's words</b>"
"""What no message may repeat."""


class DicomWebServer(LoopbackServer):
    """Start it with `with DicomWebServer() as server`; `server.url` is its address."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.url = f"http://127.0.0.1:{self.server_port}{ROOT}"
        self.studies: defaultdict[str, list[bytes]] = defaultdict(list)
        self.authorization: str | None = None
        """Header that a request must have, if any."""
        self.fault = ""
        """Status to answer with, or a kind of misbehaviour."""
        self.seen: list[tuple[str, str, str | None]] = []
        """Method, path and authorization of each request."""

    def __exit__(self, *_: object) -> None:
        self.fault = ""  # ends what is sent for ever
        super().__exit__()

    def add(self, path: Path) -> None:
        data = path.read_bytes()
        self.studies[str(dcmread(BytesIO(data), stop_before_pixels=True).StudyInstanceUID)].append(data)


class Handler(LoopbackHandler):
    server: DicomWebServer

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.send_head(status, len(body), **headers)
        self.wfile.write(body)

    def handle_any(self) -> None:
        self.body = self.read_body()
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization")))
        with suppress(BrokenPipeError, ConnectionResetError):
            if self.server.authorization not in (None, self.headers.get("Authorization")):
                self.answer(401, INSULT.encode())
            elif self.server.fault.isdigit():
                self.answer(int(self.server.fault), INSULT.encode(), Warning=f"299 - {INSULT!a}")
            elif self.server.fault == "redirect":
                self.answer(302, Location=f"http://localhost:{self.server.server_port}{self.path}")
            else:
                self.retrieve() if self.command == "GET" else self.store()

    do_GET = do_POST = handle_any

    # --------------------------------------------------------------------------------------- sending

    def retrieve(self) -> None:
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        instances = self.server.studies.get(self.path.rpartition("/")[2], [])
        match self.server.fault:
            case "endless" | "slow":
                self.send_forever(kind)
            case "compressed":
                self.answer(200, b"\x1f\x8b", Content_Type=kind, Content_Encoding="gzip")
            case "other":
                self.answer(200, json.dumps([INSULT]).encode(), Content_Type="application/json")
            case "cut":
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", "100000")
                self.end_headers()
                self.wfile.write(multipart(instances)[:50])
                self.close_connection = True
            case "single":
                self.answer(200, instances[0], Content_Type="application/dicom")
            case _ if instances:
                self.answer(200, multipart(instances), Content_Type=kind)
            case _:
                self.answer(404, INSULT.encode())

    def send_forever(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.close_connection = True
        self.wfile.write(f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode())
        while self.server.fault:
            self.wfile.write(b"x" if self.server.fault == "slow" else bytes(1 << 16))
            time.sleep(0.05 if self.server.fault == "slow" else 0)

    # ------------------------------------------------------------------------------------- receiving

    def store(self) -> None:
        boundary = self.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
        parts = [part.partition(b"\r\n\r\n")[2] for part in self.body.split(b"\r\n--" + boundary)]
        taken = []
        for data in filter(None, parts):
            dataset = dcmread(BytesIO(data))
            taken.append({"00081150": uid(dataset.SOPClassUID), "00081155": uid(dataset.SOPInstanceUID)})
            if self.server.fault not in ("failed", "silent"):
                self.server.studies[str(dataset.StudyInstanceUID)].append(data)
        name = "00081198" if self.server.fault == "failed" else "00081199"
        answer = {} if self.server.fault == "silent" else {name: {"vr": "SQ", "Value": taken}}
        self.answer(200, json.dumps(answer).encode(), Content_Type="application/dicom+json")


def uid(value: str) -> dict[str, object]:
    return {"vr": "UI", "Value": [str(value)]}


def multipart(instances: list[bytes]) -> bytes:
    head = f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    return b"".join(head + data for data in instances) + f"\r\n--{BOUNDARY}--\r\n".encode()
