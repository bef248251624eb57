"""Make HTTP sessions that give up on a server that sends too much, takes too long, or leads elsewhere."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from vlm.errors import UserError
from vlm.inference.dicomweb.archive_error import ArchiveError

CONNECT_SECONDS, SILENT_SECONDS = 15, 60
"""Longest wait for a connection, and for its next bytes."""
CHUNK = 1 << 16
"""Bytes read at a time."""
TOKEN, USER, PASSWORD = (f"CLINICAL_VLM_DICOMWEB_{word}" for word in ("TOKEN", "USER", "PASSWORD"))
"""Environment variables of the credentials."""
Result = TypeVar("Result")


class Bounds:
    """Count the bytes that a server sends, in all and since the last whole object."""

    def __init__(self, where: str, largest: int, largest_object: int, seconds: float) -> None:
        self.where, self.largest, self.largest_object, self.seconds = where, largest, largest_object, seconds
        self.total = self.since = 0
        self.deadline = time.monotonic() + seconds

    def take(self, count: int) -> None:
        """Count bytes; raises `ArchiveError` where they are too many or too late."""
        self.total, self.since = self.total + count, self.since + count
        if self.total > self.largest:
            raise ArchiveError(f"{self.where}: the study is larger than {self.largest >> 20} MiB; export its "
                               "radiographs, and draft these files")  # fmt: skip
        if self.since > self.largest_object:
            raise ArchiveError(f"{self.where}: an object is larger than {self.largest_object >> 20} MiB")
        if time.monotonic() > self.deadline:
            raise self.late()

    def late(self) -> ArchiveError:
        """Make the error of a server that takes too long."""
        return ArchiveError(f"{self.where}: did not answer whole within {self.seconds:.3g} s", 504)

    def run(self, work: Callable[[], Result]) -> Result:
        """Run the work in a thread of its own and wait until the deadline: a read from a socket cannot be ended.

        A thread that is late is left behind; it gives up at its next bytes, or ends with the program. Raises
        `ArchiveError` then, and whatever the work raises.
        """
        results: list[Result] = []
        errors: list[BaseException] = []

        def guarded() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=guarded, name="dicomweb", daemon=True)
        thread.start()
        thread.join(max(self.deadline - time.monotonic(), 0))
        if errors:
            raise errors[0]
        if not results:
            raise self.late()
        return results[0]


class _BoundedAdapter(HTTPAdapter):
    """Count what is read of each response, which must not be compressed."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self.bounds = bounds

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        options["timeout"] = (CONNECT_SECONDS, SILENT_SECONDS)
        response = super().send(request, *arguments, **options)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            response.close()
            raise ArchiveError(f"{self.bounds.where}: the answer is compressed, and may unpack without bound")
        response.raw = _CountedBody(response.raw, self.bounds)
        return response


class _CountedBody:
    """Body of a response, whose bytes are counted as they are read."""

    def __init__(self, raw: Any, bounds: Bounds) -> None:
        self._raw, self._bounds = raw, bounds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def stream(self, amt: int = CHUNK, decode_content: bool | None = None) -> Iterator[bytes]:
        for chunk in self._raw.stream(min(amt, CHUNK), decode_content=False):
            self._bounds.take(len(chunk))
            yield chunk


class _Bearer(AuthBase):
    """Send a token; requests would replace a header of its own by an entry of ~/.netrc."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self.token}"
        return request


def bounded_session(bounds: Bounds) -> requests.Session:
    """Make a session with the credentials of the environment, else of ~/.netrc, that follows no redirection.

    Raises `UserError` for a user without a password.
    """
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, _BoundedAdapter(bounds))
    session.max_redirects = 0  # it could lead to another machine, and from https to http
    session.headers["Accept-Encoding"] = "identity"
    token, user, password = (os.environ.get(name, "") for name in (TOKEN, USER, PASSWORD))
    if bool(user) != bool(password):
        raise UserError(f"{USER} and {PASSWORD}: set both, or neither")
    if token:
        session.auth = _Bearer(token)
    elif user:
        session.auth = (user, password)
    return session
