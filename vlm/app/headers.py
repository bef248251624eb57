"""Add headers for browsers to answers: what a page may load and run, who may frame it, and that nothing is cached."""

import base64
import hashlib
import re
import secrets
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

PAGE_SCRIPT = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(PAGE_SCRIPT.encode()).digest()).decode()
_FIXED = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_LIBRARIES = re.compile(r"/(assets|static|static-offline-docs)/")
"""Files of Gradio and Swagger, which a browser may cache; they hold nothing of a case."""
_DROPPED = (b"server", b"cache-control", b"content-security-policy", b"access-control-allow-origin",
            b"access-control-allow-credentials")  # fmt: skip


def content_policy(nonce: str = "") -> str:
    """Return the Content-Security-Policy of a page whose own scripts have this nonce; without one, of any other answer.

    `unsafe-eval` because Gradio compiles its constant HTML templates in the browser; no text of a case or an adapter
    is in them.
    """
    if not nonce:
        return "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    return (
        f"default-src 'none'; script-src 'self' 'nonce-{nonce}' 'sha256-{_SCRIPT_HASH}' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
        "manifest-src 'self'; base-uri 'self'; form-action 'none'; object-src 'none'; frame-ancestors 'none'"
    )


class HeaderSender:
    """ASGI `send` that adds the headers, and the nonce to the scripts of a page.

    With a `policy` there are no scripts: every answer has this Content-Security-Policy.
    """

    def __init__(self, scope: MutableMapping[str, Any], send: Any, policy: str = "") -> None:
        self.started = False
        self._send, self._path = send, scope["path"]
        self._policy = policy or content_policy()
        self._is_page = not policy and self._path in ("/", "/docs")
        self._page: list[bytes] = []
        self._start: MutableMapping[str, Any] | None = None
        # The body of a page is parsed here, so it must not be compressed.
        kept = [pair for pair in scope["headers"] if not (self._is_page and pair[0] == b"accept-encoding")]
        self.scope = {**scope, "headers": kept}

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            kind = dict(message["headers"]).get(b"content-type", b"")
            if self._is_page and kind.startswith(b"text/html"):
                self._start = message
                return
            await self._send({**message, "headers": self._with_headers(message["headers"], self._policy)})
        elif self._start is not None and message["type"] == "http.response.body":
            self._page.append(message.get("body", b""))
            if not message.get("more_body"):
                await self.flush()
        else:
            await self._send(message)

    async def flush(self) -> None:
        """Send the page: untrusted text is escaped in it, so each script tag is a template's own."""
        if self._start is None:
            return
        start, self._start = self._start, None
        nonce = secrets.token_urlsafe(16)
        page = b"".join(self._page).replace(b"<script", f'<script nonce="{nonce}"'.encode())
        headers = [(b"content-length", str(len(page)).encode()) if name == b"content-length" else (name, value)
                   for name, value in self._with_headers(start["headers"], content_policy(nonce))]  # fmt: skip
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": page})

    def _with_headers(self, headers: Any, policy: str) -> list[tuple[bytes, bytes]]:
        library = _LIBRARIES.match(self._path)
        return with_security_headers(headers, policy, b"private, max-age=86400" if library else b"no-store")


def with_security_headers(headers: Any, policy: str = "", cache: bytes = b"no-store") -> list[tuple[bytes, bytes]]:
    """Return an answer's headers with those for browsers in place of its own."""
    own = {**_FIXED, b"content-security-policy": (policy or content_policy()).encode(), b"cache-control": cache}
    return [(name, value) for name, value in headers if name not in own and name not in _DROPPED] + [*own.items()]
