"""Build the page: an image, the vitals of the adapter's schema, and the draft that streams into it."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.routing import Mount

from vlm.app import view
from vlm.app.about import Adapter
from vlm.app.archived_study import ArchivedStudies, ArchivedStudy, fetched, within
from vlm.app.asking import result_of
from vlm.app.examples import SyntheticCase, synthetic_cases
from vlm.app.explaining import explained, show, why_unexplainable
from vlm.app.failures import Failed, TooLate, named_failures
from vlm.app.form import Field, fields, given
from vlm.app.gate import Gate
from vlm.app.headers import PAGE_SCRIPT
from vlm.app.image_form import Arrived, ImageForm
from vlm.app.service import Busy, Service
from vlm.errors import UserError
from vlm.inference.study_images import StudyImage
from vlm.report import NOTICE, Report

POLL_SECONDS = 0.08
"""Seconds between two updates of a growing draft: quicker than one reads."""
NOT_GIVEN = ""
"""Value of an empty field, or of no choice."""
MOST_SESSIONS = 256
"""Pages whose picture and draft are kept; beyond it the least recently used one starts anew."""
HERE = Path(__file__).parent


def add_page(app: FastAPI, service: Service, adapter: Adapter, studies: ArchivedStudies | None = None) -> FastAPI:
    """Mount the page at `/`, below the routes of `make_api`, behind a `Gate`."""
    blocks = Page(service, adapter, studies).build()
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,  # a browser would store patients' drafts
        ssr_mode=False,
        mcp_server=False,
        max_file_size=service.limits.upload,
        show_error=True,
        theme=_theme(),
        css_paths=[HERE / "page.css"],
        head=f"<script>{PAGE_SCRIPT}</script>{_ICON}",
    )
    mount = app.routes[-1]
    assert isinstance(mount, Mount)
    mount.app = Gate(mount.app, blocks, service, app.state.bodies)
    return app


class Blocks(gr.Blocks):
    """Gradio's Blocks, with one line in place of a traceback, which would quote an event's data."""

    async def process_api(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        try:
            with named_failures():
                return await super().process_api(*arguments, **named)
        except Failed as error:
            raise gr.Error(str(error), print_exception=False) from None


class Answer(NamedTuple):
    """A shown draft and its case."""

    images: list[StudyImage]
    vitals: dict[str, str]
    context: str
    prior_report: str
    report: Report


class Page:
    """The components and their event handlers."""

    def __init__(self, service: Service, adapter: Adapter, studies: ArchivedStudies | None = None) -> None:
        self.service, self.adapter, self.studies = service, adapter, studies
        self.spec = adapter.config.spec
        self.form = fields(self.spec.schema)
        self.images = ImageForm(service, self.spec)
        self.unexplained = why_unexplainable(service.engine)

    def build(self) -> gr.Blocks:
        """Build the components, in the tab order of the keyboard."""
        with Blocks(title="Report drafts", analytics_enabled=False) as page:
            gr.HTML(view.head(self.adapter), js_on_load=None)
            gr.HTML(f"<p><strong>{NOTICE}</strong> <span>Never act on it without the evidence itself.</span></p>",
                    elem_id="vlm-notice", js_on_load=None)  # fmt: skip
            self.answer = gr.State(None)
            with gr.Row(elem_id="vlm-columns"):
                with gr.Column(scale=5, min_width=320, elem_id="vlm-inputs"):
                    self._build_inputs()
                with gr.Column(scale=6, min_width=320, elem_id="vlm-results"):
                    self.result = gr.HTML(view.idle(), js_on_load=None, elem_id="vlm-result")
                    self.explain = gr.Button("Explain", size="md", visible=False)
                    self.explanation = gr.HTML("", js_on_load=None)
            self._connect()
            page.load(None, js="() => labelChoices()")
        page.state_session_capacity = MOST_SESSIONS
        page.queue(max_size=512, default_concurrency_limit=None)
        return page

    def _build_inputs(self) -> None:
        self.images.build()
        self._build_archive()
        gr.HTML('<h2>Vitals</h2><p class="vlm-soft">Leave empty what was not measured.</p>', js_on_load=None)
        with gr.Row():
            self.values = [_input(field) for field in self.form]
        self.context = gr.Textbox(label="Indication, optional", info="Or other context; shown in the prompt.",
                                  lines=2, max_lines=6, max_length=self.service.limits.context)  # fmt: skip
        self.prior_report = gr.Textbox(label="Report of the earlier study, optional", lines=2, max_lines=6,
                                       max_length=self.service.limits.context,
                                       visible=self.spec.study is not None)  # fmt: skip
        with gr.Row():
            self.draft = gr.Button("Draft the report", variant="primary", size="md", min_width=180, elem_id="vlm-draft")
            self.stop = gr.Button("Stop", visible=False, size="md", min_width=90)
            self.clear = gr.Button("Clear", size="md", min_width=90)
        gr.HTML('<p class="vlm-soft">To try it: drawn by a program, of no patient.</p>', js_on_load=None)
        with gr.Row():
            cases = synthetic_cases(self.spec)
            self.examples = [(gr.Button(case.title, size="sm", min_width=140), case) for case in cases]

    def _build_archive(self) -> None:
        self.study_uid = gr.Textbox(label="Or a study in the archive: its Study Instance UID", max_lines=1,
                                    max_length=64, visible=self.studies is not None,
                                    html_attributes=_PLAIN)  # fmt: skip
        self.store = gr.Checkbox(label="Store its draft in the archive, unverified",
                                 visible=self.studies is not None and self.studies.may_store)  # fmt: skip

    def _connect(self) -> None:
        images, roles = self.images.outputs, self.images.roles
        told = [self.context, self.prior_report, self.study_uid, self.store]
        values = [*self.values, *told]
        shown = [self.result, self.answer, self.draft, self.stop, self.explain, self.explanation]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        explaining = self.explain.click(self.explain_draft, self.answer, [self.explain, self.explanation], **quiet)
        asked = [self.images.pictures, *told, *self.values, *roles]
        writing = self.draft.click(self.write, asked, shown, cancels=[explaining], **quiet)
        quiet["cancels"] = [writing, explaining]  # an explanation of another case must not appear beside these inputs
        self.stop.click(_nothing, None, shown, **quiet)
        for place, slot in enumerate(self.images.slots):
            slot.remove.click(partial(self.remove, place), [self.images.pictures, *roles], [*images, *shown], **quiet)
        self.clear.click(self._filler(None), None, [*images, *values, *shown], **quiet)
        for button, case in self.examples:
            button.click(self._filler(case), None, [*images, *values, *shown], **quiet)
        quiet["show_progress"] = "minimal"
        upload, arrived = self.images.upload, self.images.arrived
        if self.spec.study is None:
            upload.upload(self.read_upload, upload, [*images, *shown], preprocess=False, **quiet)
            return
        read = upload.upload(self.images.read, upload, arrived, preprocess=False, **quiet)
        del quiet["cancels"]
        read.then(self.place, [arrived, self.images.pictures, *roles], [*images, *shown], **quiet)

    # ---------------------------------------------------------------------------------------- events

    async def read_upload(self, file: Mapping[str, Any]) -> list[Any]:
        """Show an image that was uploaded, in place of any other."""
        return self.place(await self.images.read(file), None)

    def place(self, arrived: Arrived | None, pictures: Any, *roles: Any) -> list[Any]:
        """Show images that arrived; unreadable ones give a message in place of the draft."""
        updates, message = self.images.place(arrived, pictures, *roles)
        return [*updates, *(_shown(view.refused(message)) if message else _nothing())]

    def remove(self, place: int, pictures: Any, *roles: Any) -> list[Any]:
        """Take an image away."""
        return [*self.images.without(place, pictures, *roles), *_nothing()]

    async def write(
        self, pictures: Any, context: str, earlier: str, uid: str, store: bool, *values: Any
    ) -> AsyncIterator[list[Any]]:
        """Draft and stream the words; every refusal is shown as a message."""
        try:
            vitals = given(self.form, values[: len(self.form)])
            images = self.images.given(pictures, values[len(self.form) :])
            if uid:
                yield _shown(view.writing("", 0), busy=True)
            study = await fetched(self.studies, (uid or "").strip(), bool(store), bool(images))
            case = study.images if study else images, vitals, context or "", earlier or ""
            prepared = await run_in_threadpool(self.service.prepare, *case)
            job = within(self.service.draft(prepared), study)
        except (UserError, Busy, TooLate, Failed) as error:
            yield _shown(view.refused(str(error)))
            return
        ahead, before = self.service.waiting - 1, ""
        yield _shown(view.writing("", ahead), busy=True)
        try:
            while not job.result.done() and not job.is_expired:
                if job.text != before:
                    before = job.text
                    yield [view.writing(before, 0), *[gr.skip()] * 5]
                await asyncio.sleep(POLL_SECONDS)
            report = await result_of(job)
        except (UserError, TooLate, Failed) as error:
            yield _shown(view.refused(str(error)))
            return
        finally:
            job.cancelled = True
        if study:
            report = replace(report, warnings=(*study.notes, *report.warnings))
        filed = await self._store(report, study) if study and store else ""
        page = view.finished(report, self.adapter, context or "", earlier or "", study.uid if study else "", filed)
        yield _shown(page, Answer(*case, report), explain=not self.unexplained)

    async def _store(self, report: Report, study: ArchivedStudy) -> str:
        """Store a draft, and say so; a draft that cannot be stored is shown all the same, with the reason."""
        assert self.studies is not None
        try:
            await self.studies.store(report, study)
        except (UserError, TooLate, Failed) as error:
            return f"Not stored: {error}"
        return "Stored in the archive as a Structured Report, unverified."

    async def explain_draft(self, answer: Answer) -> AsyncIterator[list[Any]]:
        """Explain the draft that is shown."""
        yield [gr.Button(visible=False), view.waiting("looking at what the draft rests on …")]
        try:
            images, vitals, context, earlier, report = answer
            prepared = await run_in_threadpool(self.service.prepare, images, vitals, context, earlier)
            job = self.service.ask(lambda engine: show(explained(engine, prepared, images, report)))
            yield [gr.skip(), await result_of(job)]
        except (UserError, Busy, TooLate, Failed) as error:
            yield [gr.Button(visible=True), view.refused(str(error), "No explanation")]

    def _filler(self, case: SyntheticCase | None) -> Any:
        """Make a handler that fills the inputs with an example, or empties them."""
        vitals = [case.vitals.get(field.name, NOT_GIVEN) if case else NOT_GIVEN for field in self.form]
        pictures = [case.picture] if case and case.picture is not None else []
        return lambda: [*self.images.updates(pictures), *vitals, "", "", "", False, *_nothing()]


_PLAIN = gr.InputHTMLAttributes(autocomplete="off", spellcheck=False, autocapitalize="off")
_ICON = (
    "<link rel='icon' href=\"data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='3' fill='%232f5f98'/%3E%3Cpath d='M4 4h8M4 8h8M4 12h5' stroke='white' "
    "stroke-width='1.6'/%3E%3C/svg%3E\">"
)


def _input(field: Field) -> Any:
    if field.choices:
        choices = [("not given", NOT_GIVEN), *((choice, choice) for choice in field.choices)]
        return gr.Radio(choices, value=NOT_GIVEN, label=field.label, min_width=220)
    return gr.Textbox(label=field.label, info=field.help or None, min_width=220, max_lines=1, max_length=field.longest,
                      html_attributes=_PLAIN)  # fmt: skip


def _nothing() -> list[Any]:
    return _shown(view.idle())


def _shown(page: str, answer: Answer | None = None, busy: bool = False, explain: bool = False) -> list[Any]:
    """Return the updates of the result: the answer, the buttons to draft and to stop, and the explanation's place."""
    buttons = [gr.Button(interactive=not busy), gr.Button(visible=busy)]
    return [page, answer, *buttons, gr.Button(visible=explain, interactive=True), ""]


def _theme() -> gr.themes.Base:
    fonts = [gr.themes.Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "sans-serif")]
    mono = [gr.themes.Font(name) for name in ("ui-monospace", "monospace")]
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=mono, text_size="lg").set(
        body_background_fill="*neutral_50",
        button_primary_background_fill="#2f5f98",
        button_primary_background_fill_hover="#264e7d",
        button_primary_background_fill_dark="#2f5f98",
        button_primary_background_fill_hover_dark="#3a72b5",
        button_primary_text_color="white",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
    )
