"""Check host names, origins and the token of every request, and add headers for browsers to every answer."""

import base64
import binascii
import hmac
import ipaddress
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from vlm.app.failures import Failed, report_failure
from vlm.app.headers import HeaderSender
from vlm.app.refusals import refusal
from vlm.errors import UserError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
TOKEN_VARIABLE = "CLINICAL_VLM_TOKEN"
SHORTEST_TOKEN = 16
OPEN_PATHS = frozenset({"/healthz"})
"""Paths that need no token: a health probe has none, and they reveal nothing of a case."""
_NAME = re.compile(r"\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
_HOST = re.compile(rf"({_NAME.pattern})(:\d{{1,5}})?")


@dataclass(frozen=True)
class Access:
    """Access rules of one server."""

    names: frozenset[str] = LOOPBACK_NAMES
    """Host names and addresses that it answers to, besides the address that a connection came in on."""
    token: bytes = field(default=b"", repr=False)
    """Required token; empty where none is required."""

    @classmethod
    def of(cls, host: str, allowed: Iterable[str], token: bytes) -> "Access":
        """Make the rules from the options; raises `UserError` for an invalid name."""
        names = set(LOOPBACK_NAMES)
        for name in allowed:
            if not _NAME.fullmatch(name.lower()):
                raise UserError(f"--allowed_hosts: {name[:80]!r} is no host name; without scheme, port or pattern")
            names.add(name.lower())
        if host and not getattr(_ip_address(host), "is_unspecified", False):
            names.add(f"[{host}]".lower() if ":" in host else host.lower())
        return cls(frozenset(names), token)


class Guard:
    """Outermost ASGI middleware: nothing reaches a route unless `access` allows it.

    `policy` is the Content-Security-Policy of an app whose pages run no script; without it that of `content_policy`.
    """

    def __init__(self, app: Any, access: Access, policy: str = "") -> None:
        self.app, self.access, self.policy = app, access, policy

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        marked = HeaderSender(scope, send, self.policy)
        if refused := self._refusal(scope):
            await refusal(scope["path"], refused)(scope, receive, marked)
            return
        try:
            await self.app(marked.scope, receive, marked)
        except ClientDisconnect:
            return
        except Exception as error:
            report_failure(error)
            if not marked.started:
                await refusal(scope["path"], HTTPException(500, str(Failed())))(scope, receive, marked)

    def _refusal(self, scope: Mapping[str, Any]) -> HTTPException | None:
        headers = Headers(raw=list(scope["headers"]))
        host = _HOST.fullmatch(headers.get("host", "").lower())
        if host is None or len(headers.getlist("host")) != 1 or not self._is_ours(host[1], scope):
            return HTTPException(421, "Host: not a name of this server; --allowed_hosts adds one")
        if not _is_own_page(headers, scope, host[0]):
            return HTTPException(403, "asked by another web page: only this server's own page, or a program, may ask")
        if self.access.token and scope["path"] not in OPEN_PATHS and not self._is_authorised(headers):
            challenge = {"www-authenticate": 'Basic realm="clinical-vlm", charset="UTF-8"'}
            line = "send the server's token: Authorization: Bearer TOKEN, or as a password"
            return HTTPException(401, line, challenge)
        return None

    def _is_ours(self, name: str, scope: Mapping[str, Any]) -> bool:
        """Check whether a name is allowed, or is the address that the client connected to, which no DNS can forge."""
        own = str((scope.get("server") or ("",))[0]).lower()
        return name in self.access.names or name == (f"[{own}]" if ":" in own else own)

    def _is_authorised(self, headers: Headers) -> bool:
        scheme, _, value = headers.get("authorization", "").partition(" ")
        given = value.strip().encode("latin-1", "replace")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given, self.access.token)


def _is_own_page(headers: Headers, scope: Mapping[str, Any], host: str) -> bool:
    """Check whether a request is from no web page, from one of this server, or only opens the page as a link does."""
    origins = headers.getlist("origin")
    if origins and (len(origins) > 1 or not _is_at(origins[0], host)):
        return False
    site = headers.get("sec-fetch-site", "none")
    opens = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
    is_whole_page = opens and headers.get("sec-fetch-dest") == "document" and scope["path"] in ("/", "/docs")
    return site in ("none", "same-origin") or is_whole_page


def _is_at(origin: str, host: str) -> bool:
    """Check whether an origin is a web page at this `Host`; either may leave out the port that its scheme implies."""
    scheme, _, netloc = origin.lower().partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme)
    return port is not None and netloc.removesuffix(port) == host.removesuffix(port)


def is_loopback(address: str) -> bool:
    """Check whether only this machine can reach an address that is listened on."""
    return getattr(_ip_address(address.partition("%")[0]), "is_loopback", False)


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def read_token(file: Path | None) -> bytes:
    """Read the token from a file, or take it from the environment and remove it there; empty where there is none.

    Raises `UserError` for a file that cannot be read and a token that is too short or has spaces in it.
    """
    given = os.environ.pop(TOKEN_VARIABLE, None)
    where = f"--token_file: {file}" if file else TOKEN_VARIABLE
    if file:
        try:
            with file.open("rb") as read:
                if os.name == "posix" and os.fstat(read.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                    print(f"warning: {where}: other users of this machine may read it; chmod 600", file=sys.stderr)
                given = read.read(4096).decode("ascii", "replace").strip()
        except OSError as error:
            raise UserError(f"{where}: {error.strerror}") from None
    if given is None:
        return b""
    if len(given) < SHORTEST_TOKEN or not re.fullmatch(r"[!-~]+", given):
        raise UserError(f"{where}: a token is at least {SHORTEST_TOKEN} letters, digits and signs without spaces, "
                        "such as `openssl rand -hex 24` writes")  # fmt: skip
    return given.encode()
