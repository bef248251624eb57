"""Fetch the objects of a study from a DICOMweb archive, and store a draft's Structured Report there.

All that a server sends is untrusted: bytes, objects and seconds are bounded, objects are written as they came, and are
read like any DICOM file. No word of a server reaches a message.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from vlm.atomic import write_file, writing
from vlm.data.images.elements import read_elements
from vlm.data.images.file_types import file_type
from vlm.data.images.modality import HEAD
from vlm.errors import UserError, require
from vlm.inference.dicom_folder import MOST_FILES
from vlm.inference.dicom_report.equipment import unlogged
from vlm.inference.dicomweb.archive_error import ArchiveError

if TYPE_CHECKING:
    from pydicom import Dataset

    from vlm.inference.dicomweb.bounded_http import Bounds

LARGEST_STUDY, LARGEST_OBJECT, LARGEST_ANSWER = 2 << 30, 512 << 20, 1 << 20
"""Most bytes of a study, of an object in it, and of the answer to a stored object."""
MOST_SECONDS = 300
"""Longest time to fetch or to store, seconds."""
UID = re.compile(r"(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*))+", re.ASCII)
WAYS_OUT = {
    401: "it wants credentials; set CLINICAL_VLM_DICOMWEB_TOKEN, or CLINICAL_VLM_DICOMWEB_USER and …_PASSWORD, or "
         "write them to ~/.netrc",
    403: "these credentials may not do that",
    404: "it has no such study, or its address ends in another path, such as /dicom-web",
    406: "it does not send objects as they are stored",
    409: "it does not take the object",
    413: "the object is too large for it",
}  # fmt: skip
"""HTTP status → what it means."""


class Archive(NamedTuple):
    """A DICOMweb server."""

    address: str
    """Address of the service, before `/studies`."""
    seconds: float = MOST_SECONDS
    """Longest time to fetch or to store, seconds."""
    name: str = ""
    """What messages call it; empty for the option and its host."""

    @property
    def where(self) -> str:
        """Beginning of a message."""
        return self.name or f"--dicomweb: {urlsplit(self.address).netloc}"

    def check(self) -> None:
        """Raise `UserError` where dicomweb-client is not installed, or the credentials are not whole."""
        self._client(self._bounds(LARGEST_ANSWER, LARGEST_ANSWER))

    def fetch(self, study: str, folder: Path) -> int:
        """Write the objects of a study to an empty folder, and return how many there are.

        Raises `ArchiveError` for a server that cannot be reached, refuses, sends no DICOM, another study, or more than
        500 objects, 2 GiB in all, 512 MiB in one or 300 s, and `UserError` for a full disk.
        """
        bounds = self._bounds(LARGEST_STUDY, LARGEST_OBJECT)
        with unlogged(), self._plain_errors():
            return bounds.run(lambda: self._fetch(study, folder, bounds))

    def _fetch(self, study: str, folder: Path, bounds: "Bounds") -> int:
        count = 0
        for part in _parts(self._client(bounds), study):
            count, bounds.since = count + 1, 0
            if count > MOST_FILES:
                raise ArchiveError(f"{self.where}: more than {MOST_FILES} objects; export the radiographs of the "
                                   "study, and draft these files")  # fmt: skip
            _check_study(f"{self.where}: object {count} of the study", part[:HEAD], study)
            with writing(folder):
                write_file(folder / f"{count:03}.dcm", part)
        if not count:
            raise ArchiveError(f"{self.where}: {WAYS_OUT[404]}", 404)
        return count

    def store(self, document: "Dataset") -> None:
        """Store an object in its study; raises `ArchiveError` where the server does not say that it has it."""
        bounds = self._bounds(LARGEST_ANSWER, LARGEST_ANSWER)
        with unlogged(), self._plain_errors():
            client = self._client(bounds)
            answer = bounds.run(lambda: client.store_instances([document], document.StudyInstanceUID))
            taken = [str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or []]
        if answer.get("FailedSOPSequence") or str(document.SOPInstanceUID) not in taken:
            raise ArchiveError(f"{self.where}: does not say that it stored the draft")

    def _bounds(self, largest: int, largest_object: int) -> "Bounds":
        require("dicomweb_client", f"{self.where}: needs dicomweb-client")
        from vlm.inference.dicomweb.bounded_http import Bounds

        return Bounds(self.where, largest, largest_object, self.seconds)

    def _client(self, bounds: "Bounds") -> Any:
        from dicomweb_client import DICOMwebClient

        from vlm.inference.dicomweb.bounded_http import bounded_session

        client = DICOMwebClient(self.address, session=bounded_session(bounds))
        client.set_http_retry_params(retry=False)
        return client

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Turn the errors of the libraries into a line that quotes nothing of the server's."""
        import requests

        try:
            yield
        except (UserError, MemoryError):
            raise
        except requests.HTTPError as error:
            status = 0 if error.response is None else error.response.status_code
            line = f"{self.where}: answered {status}: {WAYS_OUT.get(status, 'it failed')}"
            raise ArchiveError(line, 404 if status == 404 else 502) from None
        except requests.TooManyRedirects:
            raise ArchiveError(f"{self.where}: leads to another address; give that one") from None
        except requests.exceptions.SSLError:
            raise ArchiveError(f"{self.where}: its certificate is not trusted; name the file of its authority in "
                               "REQUESTS_CA_BUNDLE") from None  # fmt: skip
        except (requests.RequestException, OSError) as error:
            raise ArchiveError(f"{self.where}: cannot be reached or broke off ({type(error).__name__})") from None
        except Exception as error:  # a broken answer can raise nearly anything
            raise ArchiveError(f"{self.where}: answered with no DICOMweb ({type(error).__name__})") from None


def check_address(address: str, allow_http: bool = False) -> str:
    """Return the address of an archive without a slash at its end.

    Raises `UserError` for one that is no URL or holds credentials, and for plain HTTP to another machine unless it is
    allowed.
    """
    try:
        parts = urlsplit(address)
        right = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        right = False
    if not right or parts.query or parts.fragment or re.search(r"[\s\\]", address):
        raise UserError("--dicomweb: is no address such as https://archive.example/dicom-web")
    if parts.username is not None or parts.password is not None:
        raise UserError("--dicomweb: credentials are not for the command line, which others can read; "
                        + WAYS_OUT[401].partition("; ")[2])  # fmt: skip
    if parts.scheme == "http" and not allow_http and not _is_loopback(parts):
        raise UserError("--dicomweb: plain http lets others read the patient's data and the password; use https, "
                        "or --dicomweb_http to allow it")  # fmt: skip
    return address.rstrip("/")


def _is_loopback(parts: SplitResult) -> bool:
    try:
        return parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _check_study(where: str, head: bytes, study: str) -> None:
    """Raise `ArchiveError` for a DICOM object of another study, or one whose header cannot be read."""
    try:
        is_right = file_type(head) != "DICOM" or read_elements(where, head, ["StudyInstanceUID"]) == {
            "StudyInstanceUID": study
        }
    except UserError as error:
        raise ArchiveError(*error.args) from None
    if not is_right:
        raise ArchiveError(f"{where}: is of another study than the one that was asked for")


def is_uid(text: str) -> bool:
    """Check whether this is a DICOM UID."""
    return len(text) <= 64 and UID.fullmatch(text) is not None


def _parts(client: Any, study: str) -> Iterator[bytes]:
    """Yield the objects of a study as they came.

    `client.iter_study` reads each with pydicom, which inflates a deflated one without bound, before it can be checked.
    """
    url = f"{client.base_url}/studies/{study}"
    headers = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
    response = client._http_get(url, headers=headers, stream=True)
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type == "application/dicom":  # one object by itself, as some servers send it against the standard
        yield response.content
        return
    for part in client._decode_multipart_message(response, stream=True):
        yield bytes(part)
