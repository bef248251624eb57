"""Serve the pages of a reader study: plain forms without a script, one page after another for each reader's code."""

import argparse
import asyncio
import base64
import hashlib
import hmac
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException as StarletteHTTPException

from vlm.app.bodies import Bodies, form_of
from vlm.app.guard import Access, Guard
from vlm.app.serve import listen
from vlm.errors import UserError
from vlm.locks import locked
from vlm.reader_study.answers import ERRORS, VERDICTS, Answer, AnswerLog, Judgement
from vlm.reader_study.study_file import ANSWERS, IMAGES, Page, Study, read_codes, read_study
from vlm.resources import render

COOKIE = "reader-study-code"
LARGEST_BODY, MOST_FIELDS, LONGEST_FIELD = 64 << 10, 100, 200
WRONG_CODE_SECONDS = 0.5
"""Pause before a wrong code is answered."""
STYLE = (Path(__file__).parent / "judging.css").read_text(encoding="utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src 'self' data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: no script at all."""
SEE_FIRST = "This page was answered before; the first answer stands. Here is the next one."


def serve_study(arguments: argparse.Namespace) -> None:
    """Open a study's folder, keep other servers out of it, and answer until a signal ends it."""
    folder = arguments.folder
    study = read_study(folder)
    codes = read_codes(folder, study)
    with locked(folder / ANSWERS), closing(AnswerLog(folder / ANSWERS, study)) as log:
        if log.cut:
            print(f"{folder / ANSWERS}: a last line without an end, left by a crash, was taken out; nobody was told "
                  "that it was saved", file=sys.stderr)  # fmt: skip
        pages = sum(len(reader.pages) for reader in study.readers)
        print(f"{len(log.answers)} of {pages} pages answered; answers go to {log.file}")
        listen(arguments, partial(make_study_app, Judging(folder, codes, log)))


class Judging:
    """The state of a study that is being judged: the answers, and when each page was shown."""

    def __init__(self, folder: Path, codes: Mapping[str, int], log: AnswerLog) -> None:
        self.folder, self.codes, self.log = folder, codes, log
        self._shown: dict[tuple[int, int], tuple[float, int]] = {}
        """(reader, page) → time by `time.monotonic` when it was shown last, and how often it was."""

    @property
    def study(self) -> Study:
        return self.log.study

    def reader_of(self, code: str) -> int | None:
        """Find the reader of a code, as it was typed; None for a wrong one."""
        typed, found = code.strip().lower().encode(), None
        for known, reader in self.codes.items():  # all of them: the time must not say which is near
            if hmac.compare_digest(typed, known.encode()):
                found = reader
        return found

    def page_of(self, reader: int, number: int) -> Page:
        """Return a reader's page by its number; raises `HTTPException` for a number of none."""
        pages = self.study.readers[reader - 1].pages
        if not 0 < number <= len(pages):
            raise HTTPException(404, "there is no such page")
        return pages[number - 1]

    def show(self, reader: int, notice: str = "") -> str:
        """Render the next page of a reader, or the end, and start its time."""
        number, pages = self.log.next_page(reader), len(self.study.readers[reader - 1].pages)
        if number is None:
            return _rendered("done", reader=reader, pages=pages, notice=notice)
        _, showings = self._shown.get((reader, number), (0.0, 0))
        self._shown[reader, number] = time.monotonic(), showings + 1
        return self.form(reader, number, notice)

    def form(self, reader: int, number: int, notice: str = "", given: Mapping[str, Any] | None = None) -> str:
        """Render the form of a page, with what was chosen in it before."""
        page = self.page_of(reader, number)
        case = self.study.cases[page.case]
        texts = [case.texts[place].text for place in page.texts]
        return _rendered("page", reader=reader, number=number, pages=len(self.study.readers[reader - 1].pages),
                         case=case, texts=texts, notice=notice, given=given or {})  # fmt: skip

    def answer(self, reader: int, number: int, judgements: list[Judgement]) -> bool:
        """Keep an answer; False if its page was answered before. Raises `UserError` where it cannot be written."""
        shown, showings = self._shown.get((reader, number), (None, 0))
        seconds = None if shown is None else round(time.monotonic() - shown, 3)
        given = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return self.log.append(Answer(self.study.digest, reader, number, given, seconds, showings, judgements))

    def picture(self, reader: int, number: int, place: int) -> bytes:
        """Read an image, from 1, of a reader's page; raises `HTTPException` where there is none."""
        images = self.study.cases[self.page_of(reader, number).case].images
        if not 0 < place <= len(images):
            raise HTTPException(404, "there is no such image")
        try:
            return (self.folder / IMAGES / images[place - 1].file).read_bytes()
        except OSError as error:
            print(f"error: an image cannot be read: {error.strerror}", file=sys.stderr, flush=True)
            raise HTTPException(500, "the image cannot be read; tell whoever runs the study") from None


def make_study_app(judging: Judging, access: Access) -> FastAPI:
    """Make the routes; `Guard` keeps other hosts and other web pages out."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, access=access, policy=POLICY)
    bodies = Bodies(LARGEST_BODY)

    def reader_of(request: Request) -> int:
        reader = judging.reader_of(request.cookies.get(COOKIE, ""))
        if reader is None:
            raise HTTPException(403, "open the study with your code first")
        return reader

    @app.exception_handler(StarletteHTTPException)
    async def refuse(_: Request, error: StarletteHTTPException) -> HTMLResponse:
        return HTMLResponse(_rendered("problem", notice=str(error.detail)[:400]), error.status_code, error.headers)

    @app.get("/")
    async def page(request: Request) -> HTMLResponse:
        reader = judging.reader_of(request.cookies.get(COOKIE, ""))
        return HTMLResponse(_rendered("code") if reader is None else judging.show(reader))

    @app.get("/image/{number}/{place}")
    async def picture(number: str, place: str, request: Request) -> Response:
        data = await run_in_threadpool(judging.picture, reader_of(request), _number(number), _number(place))
        return Response(data, media_type="image/png")

    @app.post("/code")
    async def enter(request: Request) -> Response:
        async with bodies.reading(request) as counted, form_of(counted, 0, MOST_FIELDS, LONGEST_FIELD) as form:
            code = _text(form, "code").strip().lower()
        if judging.reader_of(code) is None:
            await asyncio.sleep(WRONG_CODE_SECONDS)
            return HTMLResponse(_rendered("code", notice="This code opens no pages; look at it once more."), 403)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, code, httponly=True, samesite="strict", secure=secure)
        return answer

    @app.post("/leave")
    async def leave() -> Response:
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    @app.post("/answer")
    async def answer(request: Request) -> Response:
        reader = reader_of(request)
        async with bodies.reading(request) as counted, form_of(counted, 0, MOST_FIELDS, LONGEST_FIELD) as form:
            number = _number(_text(form, "page"))
            texts = len(judging.page_of(reader, number).texts)
            judgements, given, problem = _judgements(form, texts)
        if (reader, number) in judging.log.answers:
            return HTMLResponse(judging.show(reader, SEE_FIRST), 409)
        if number != judging.log.next_page(reader):
            return HTMLResponse(judging.show(reader, "That page comes later; here is the next one."), 409)
        if problem:
            return HTMLResponse(judging.form(reader, number, problem, given), 422)
        try:
            saved = await run_in_threadpool(judging.answer, reader, number, judgements)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            unsaved = "The answer could not be saved. Send it again, and tell whoever runs the study."
            return HTMLResponse(judging.form(reader, number, unsaved, given), 500)
        return RedirectResponse("/", 303) if saved else HTMLResponse(judging.show(reader, SEE_FIRST), 409)

    @app.get("/healthz")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return app


def _judgements(form: FormData, texts: int) -> tuple[list[Judgement], dict[str, Any], str]:
    """Read the judgements of a form: these, what was chosen for each text, and what is wrong with it, if anything.

    Raises `HTTPException` for a choice that the form does not have.
    """
    judgements: list[Judgement] = []
    given: dict[str, Any] = {}
    lacking = []
    for place in range(1, texts + 1):
        verdict, errors = _text(form, f"verdict-{place}", ""), [str(one) for one in form.getlist(f"errors-{place}")]
        given |= {f"verdict-{place}": verdict, f"errors-{place}": errors}
        if not verdict:
            lacking.append("text" if texts == 1 else f"text {place}")
            continue
        judgements.append(Judgement(verdict, errors))
        try:
            judgements[-1].check(f"text {place}")
        except UserError as error:
            raise HTTPException(422, str(error)) from None
    problem = f"Not saved yet: say how acceptable {' and '.join(lacking)} is." if lacking else ""
    return judgements, given, problem


def _text(form: FormData, name: str, missing: str | None = None) -> str:
    """Return a field that is given once; raises `HTTPException` for another number of them."""
    values = form.getlist(name)
    if not values and missing is not None:
        return missing
    if len(values) != 1 or not isinstance(values[0], str):
        raise HTTPException(422, f"{name}: give it once")
    return values[0]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise HTTPException(404, "there is no such page")
    return int(text)


def _rendered(state: str, **values: Any) -> str:
    fixed = {"style": STYLE, "verdicts": VERDICTS, "errors": ERRORS, "notice": "", "reader": None}
    return render("vlm.reader_study", "judging.html.j2", state=state, **{**fixed, **values})
