"""Keep uploaded files in memory, each for the browser session that sent it, until they are read once."""

import secrets
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

UPLOAD_TTL_SECONDS = 60.0
"""Seconds that an upload is kept: the page reads one as soon as it was sent."""


class Full(Exception):
    """Raised when there is no memory left for another upload."""


class _Upload(NamedTuple):
    session: str
    data: bytes
    expires: float
    """Expiry by `time.monotonic`."""


class Uploads:
    """Store bytes under a secret name. There is no file or path: a client can name only what it uploaded."""

    def __init__(self, total: int) -> None:
        self.total = total
        """Most bytes of all uploads together."""
        self._kept: dict[str, _Upload] = {}
        self._lock = threading.Lock()

    def add(self, session: str, data: bytes) -> str:
        """Store an upload in place of the session's last ones, and return its name; raises `Full`."""
        return self.add_all(session, [data])[0]

    def add_all(self, session: str, files: Sequence[bytes]) -> list[str]:
        """Store uploads in place of the session's last ones, and return their names; raises `Full`."""
        with self._lock:
            self._drop(session)
            if sum(len(upload.data) for upload in self._kept.values()) + sum(map(len, files)) > self.total:
                raise Full("too many uploads at once; try again in a moment")
            return [self._keep(session, data) for data in files]

    def claim(self, session: str, name: str) -> str | None:
        """Give an upload of this session a new name that only the server knows; None if there is no such upload."""
        with self._lock:
            self._drop()
            found = self._kept.get(name)
            if found is None or found.session != session:
                return None
            del self._kept[name]
            return self._keep("", found.data)

    def take(self, name: str) -> bytes | None:
        """Pop the bytes of a claimed upload."""
        with self._lock:
            self._drop()
            found = self._kept.get(name)
            return self._kept.pop(name).data if found is not None and not found.session else None

    def remove_expired(self) -> None:
        """Drop expired uploads."""
        with self._lock:
            self._drop()

    def __len__(self) -> int:
        return len(self._kept)

    def _keep(self, session: str, data: bytes) -> str:
        name = secrets.token_urlsafe(32)
        self._kept[name] = _Upload(session, data, time.monotonic() + UPLOAD_TTL_SECONDS)
        return name

    def _drop(self, session: str | None = None) -> None:
        now = time.monotonic()
        self._kept = {name: upload for name, upload in self._kept.items()
                      if upload.expires > now and (not upload.session or upload.session != session)}  # fmt: skip
