"""Guard Gradio's routes: which of them exist, who may call them, and what an event's data may hold.

Gradio trusts the paths and addresses in an event's data as soon as its blocks are mounted and not launched. Here an
event gets plain values only. A file is one that this browser uploaded, found by its name among the uploads and never by
a path. Every request to Gradio passes here, so a new event or route of Gradio exposes nothing.
"""

import hashlib
import json
import re
import secrets
import time
from collections.abc import MutableMapping
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile

from vlm.app.bodies import Bodies, form_of, json_body
from vlm.app.service import Service
from vlm.app.uploads import Full

COOKIE = "clinical-vlm-session"
LARGEST_EVENT = 1 << 18
"""Most bytes of an event's data: the form's fields."""
LONGEST_TEXT, LONGEST_PATH = 10_000, 200
MOST_EVENTS, MOST_EVENTS_OF_ALL = 32, 512
"""Most events of one page, and of all pages, whose results are not fetched yet."""
RESULT_TTL_SECONDS = 60.0
"""Seconds after which such results are dropped."""
_SESSION = re.compile(r"[\w-]{43}", re.ASCII)
_HASH = re.compile(r"\w{1,64}", re.ASCII)
_FIXED = re.compile(r"/(theme\.css|favicon\.ico|(assets|static)(/[\w-][\w.-]*)+|gradio_api/app_id)?", re.ASCII)
_HEARTBEAT = re.compile(r"(/gradio_api/heartbeat/)(\w{1,64})", re.ASCII)
_JOIN, _DATA, _UPLOAD = "/gradio_api/queue/join", "/gradio_api/queue/data", "/gradio_api/upload"
_CANCEL, _RESET, _PROGRESS = "/gradio_api/cancel", "/gradio_api/reset", "/gradio_api/upload_progress"

_CHANGED = re.compile(rb"x-forwarded-|content-length$|transfer-encoding$")
"""Headers that are not passed on: Gradio trusts the first, and the body is a new one."""


class Gate:
    """ASGI application around Gradio's app, which serves `blocks`."""

    def __init__(self, app: Any, blocks: Any, service: Service, bodies: Bodies) -> None:
        self.app, self.blocks, self.bodies = app, blocks, bodies
        self.uploads, self._folder = service.uploads, service.folder
        self.most = service.engine.model.spec.study_images  # files of a case
        self._active: dict[str, float] = {}
        """Time by `time.monotonic` when each page's results were last asked for; infinite while it listens."""

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            await self._answer(request, send)
        except HTTPException as error:
            await JSONResponse({"detail": error.detail}, error.status_code, error.headers)(scope, receive, send)

    async def _answer(self, request: Request, send: Any) -> None:
        method, path = request.method, request.url.path
        if len(path) > LONGEST_PATH:
            raise HTTPException(404, "there is no such page")
        if method in ("GET", "HEAD") and _FIXED.fullmatch(path):
            await self._pass(request, send if path != "/" else self._with_cookie(request, send))
        elif method == "GET" and path == _DATA:
            await self._listen(request, send)
        elif method == "GET" and (beat := _HEARTBEAT.fullmatch(path)):
            page = _page(_session(request), beat[2])
            await self._pass(request, send, path=f"{beat[1]}{page}")
        elif method == "GET" and path == _PROGRESS:
            done = Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")  # the browser counts by itself
            await done(request.scope, request.receive, send)
        elif method == "POST" and path == _RESET:  # Gradio answers this and does nothing
            await JSONResponse({"success": True})(request.scope, request.receive, send)
        elif method == "POST" and path == _UPLOAD:
            await self._upload(request, send)
        elif method == "POST" and path in (_JOIN, _CANCEL):
            await self._event(request, send)
        else:
            raise HTTPException(404, "there is no such page")

    async def _pass(self, request: Request, send: Any, path: str = "", query: str = "", body: bytes = b"") -> None:
        """Let Gradio answer, with the path, query and body given here and none of the client's own."""
        path = path or request.url.path
        headers = [pair for pair in request.scope["headers"] if not _CHANGED.match(pair[0])]
        if body:
            headers.append((b"content-length", str(len(body)).encode()))
        scope = {**request.scope, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
                 "headers": headers}  # fmt: skip
        sent = False

        async def receive() -> Any:
            nonlocal sent
            if sent or request.method in ("GET", "HEAD"):
                return await request.receive()  # the client's disconnect
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive, send)

    def _with_cookie(self, request: Request, send: Any) -> Any:
        """Set a session cookie for a browser that has none."""
        if _SESSION.fullmatch(request.cookies.get(COOKIE, "")):
            return send
        secure = "; Secure" if request.url.scheme == "https" else ""
        cookie = f"{COOKIE}={secrets.token_urlsafe(32)}; Path=/; HttpOnly; SameSite=Strict{secure}"

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"set-cookie", cookie.encode())]
            await send(message)

        return sending

    async def _upload(self, request: Request, send: Any) -> None:
        """Keep the uploaded files of a case for their session, and answer names where Gradio answers paths."""
        session = _session(request)
        async with (
            self.bodies.reading(request) as counted,
            form_of(counted, files=self.most, fields=1, largest=1 << 10) as form,
        ):
            sent = [await file.read() for file in form.getlist("files") if isinstance(file, UploadFile)]
        if not sent:
            raise HTTPException(422, "files: send one file")
        try:
            names = self.uploads.add_all(session, sent)
        except Full as error:
            raise HTTPException(429, str(error), {"retry-after": "1"}) from None
        await JSONResponse(names)(request.scope, request.receive, send)

    async def _event(self, request: Request, send: Any) -> None:
        session = _session(request)
        async with self.bodies.reading(request, LARGEST_EVENT) as counted:
            body = await counted.body()
        event = json_body(body)
        if not isinstance(event, dict):
            raise HTTPException(422, "body: not an event")
        page = _page(session, event.get("session_hash"))
        if request.url.path == _JOIN:
            await self._make_room(page)
            known = self._joined(event, session)
        else:
            known = _cancelled(event)
            if known["event_id"] not in self.blocks._queue.pending_event_ids_session.get(page, ()):
                await JSONResponse({"success": True})(request.scope, request.receive, send)  # finished, or not its own
                return
        await self._pass(request, send, body=json.dumps({**known, "session_hash": page}).encode())

    def _joined(self, event: dict[str, Any], session: str) -> dict[str, Any]:
        """Filter an event to the parts for Gradio; raises `HTTPException` for anything but a known form's values."""
        number, data, trigger = (event.get(name) for name in ("fn_index", "data", "trigger_id"))
        function = self.blocks.fns.get(number) if _is_number(number) else None
        if function is None or not (trigger is None or _is_number(trigger)):
            raise HTTPException(422, "fn_index: there is no such event")
        if not isinstance(data, list) or len(data) != len(function.inputs):
            raise HTTPException(422, f"data: a list of {len(function.inputs)} values")
        return {"fn_index": number, "trigger_id": trigger, "data": [self._plain(value, session) for value in data]}

    def _plain(self, value: Any, session: str) -> Any:
        """Check a value: plain, or an upload, whose path is made here and ends in the name of `Uploads.take`."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str) and len(value) <= LONGEST_TEXT:
            return value
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            if claimed := self.uploads.claim(session, value["path"]):
                return {"path": str(self._folder / claimed), "meta": {"_type": "gradio.FileData"}}
            raise HTTPException(403, "data: a file that this browser did not upload, or not just now; choose it again")
        if isinstance(value, list) and len(value) <= self.most and all(isinstance(one, dict) for one in value):
            return [self._plain(one, session) for one in value]
        raise HTTPException(422, "data: only texts, numbers and this browser's own uploads")

    # -------------------------------------------------------------------------------------- results

    async def _listen(self, request: Request, send: Any) -> None:
        """Stream the results of a page's events, for as long as it listens."""
        page = _page(_session(request), request.query_params.get("session_hash"))
        if page not in self.blocks._queue.pending_messages_per_session:
            raise HTTPException(404, "nothing was asked by this page")
        self._active[page] = float("inf")
        try:
            await self._pass(request, send, query=f"session_hash={page}")
        finally:
            self._active[page] = time.monotonic()

    async def _make_room(self, page: str) -> None:
        """Refuse more events than a page can need, and drop the results of the page that listened longest ago."""
        await self.remove_expired()
        pending = self.blocks._queue.pending_event_ids_session
        if len(pending.get(page, ())) >= MOST_EVENTS:
            raise HTTPException(429, "this page asks faster than it listens", {"retry-after": "1"})
        while sum(map(len, pending.values())) >= MOST_EVENTS_OF_ALL:
            oldest = min(self._active, key=self._active.__getitem__, default=page)
            if self._active.get(oldest, float("inf")) == float("inf"):
                raise HTTPException(429, "too many pages ask at once; try again in a moment", {"retry-after": "1"})
            await self._forget(oldest)
        self._active.setdefault(page, time.monotonic())

    async def remove_expired(self) -> None:
        """Drop results that no page fetched; Gradio drops what a cancelled event leaves."""
        old = time.monotonic() - RESULT_TTL_SECONDS
        for page in [page for page, when in self._active.items() if when < old]:
            await self._forget(page)

    async def _forget(self, page: str) -> None:
        self._active.pop(page, None)
        queue = self.blocks._queue
        await queue.clean_events(session_hash=page)
        queue.pending_event_ids_session.pop(page, None)
        queue.pending_messages_per_session.pop(page, None)


def _session(request: Request) -> str:
    """Return the browser's session; raises `HTTPException` where the page was not opened before."""
    session = request.cookies.get(COOKIE, "")
    if not _SESSION.fullmatch(session):
        raise HTTPException(403, "open the page first: it gives the browser a cookie")
    return session


def _page(session: str, name: Any) -> str:
    """Return Gradio's name for a page of a session: nobody else can guess it."""
    if not isinstance(name, str) or not _HASH.fullmatch(name):
        raise HTTPException(422, "session_hash: missing")
    return hashlib.sha256(f"{session} {name}".encode()).hexdigest()


def _cancelled(event: dict[str, Any]) -> dict[str, Any]:
    number, name = event.get("fn_index"), event.get("event_id")
    if not _is_number(number) or not isinstance(name, str) or len(name) > 64:
        raise HTTPException(422, "event_id: there is no such event")
    return {"fn_index": number, "event_id": name}


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
