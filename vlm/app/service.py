"""Run one loaded engine behind a bounded queue: one worker drafts the queued cases, in batches.

Inputs from outside are bounded here: bytes, characters, tokens, seconds and the length of the queue.
Nothing of a case is logged, and an uploaded image is deleted as soon as it was read.
"""

import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import anyio
import torch

from vlm.app.failures import Failed, TooLate, named_failures
from vlm.app.uploads import Uploads
from vlm.data.images.sandbox import DecodeLimits, ImageDecoder
from vlm.data.images.square import Square
from vlm.errors import UserError
from vlm.inference.engine import Engine, Prepared, Vitals
from vlm.inference.signal_input import Signal
from vlm.inference.study_images import Images
from vlm.plain import printable
from vlm.report import Report

Result = TypeVar("Result")
LONGEST_PROMPT = 1024
"""Longest prompt without the evidence, tokens; a longer one has a context that no adapter was trained on."""
DECODERS = 2
"""Images decoded at once, each in a process of its own that is killed at a limit of time or memory."""
SECONDS_AN_IMAGE = 10.0
LEFTOVER_SECONDS = 600
"""Age in seconds after which a file in the folder is a leftover."""


class Busy(Exception):
    """Raised when the queue is full."""


@dataclass(frozen=True)
class Limits:
    """Limits of one server."""

    upload: int = 64 << 20
    """Size of an image file, and of all of a case together, bytes."""
    context: int = 2000
    """Length of the context, and of an earlier report, characters."""
    tokens: int | None = None
    """Longest draft, tokens; None for the adapter's."""
    seconds: float = 60
    """Time from the request to the last word."""
    waiting: int = 32
    """Drafts in the queue, including those being written."""
    batch: int = 16
    """Drafts in a batch."""


@dataclass(eq=False)
class Job(Generic[Result]):
    """Work for the engine, with a future result."""

    work: Callable[[Engine], Result] | None
    """Function to call; None for a draft."""
    deadline: float
    """Deadline by `time.monotonic`."""
    result: "Future[Result]" = field(default_factory=Future)
    cancelled: bool = False
    """True if the client disconnected."""

    @property
    def is_expired(self) -> bool:
        """True if the result is no longer wanted."""
        return self.cancelled or time.monotonic() > self.deadline

    @property
    def seconds_left(self) -> float:
        return max(self.deadline - time.monotonic(), 0)


@dataclass(eq=False)
class Draft(Job[Report]):
    """A report to draft, and its text so far."""

    prepared: Prepared = field(kw_only=True)
    text: str = ""
    """Partial text, which grows while the report is written; the page polls it."""


class Service:
    """Queue and worker thread, with a private folder. Close it, or use it as a context manager."""

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        self.engine = engine
        self.limits = limits or Limits()
        self.batch_seconds = 1.0
        """Seconds of the last batch: how long a client should wait before it retries."""
        self.uploads = Uploads(4 * self.limits.upload)
        self._folder = tempfile.TemporaryDirectory(prefix="clinical-vlm-app-")
        self._jobs: deque[Job[Any]] = deque()
        self._current: list[Job[Any]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._decoder = ImageDecoder(DecodeLimits(seconds=min(SECONDS_AN_IMAGE, self.limits.seconds)), DECODERS)
        self._decoder.start()
        self._turn = threading.Semaphore(DECODERS)
        self._readers = anyio.CapacityLimiter(self.limits.waiting)  # limit of threads; drafts must not wait for images
        self._batch = self.limits.batch
        self._worker = threading.Thread(target=self._work, name="drafting", daemon=True)
        self._worker.start()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker and remove the folder; queued jobs fail."""
        with self._changed:
            self._closed = True
            waiting = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
        _fail_pending(waiting, Failed("the server is closing"))
        for job in list(self._current):
            job.cancelled = True
        self._worker.join(self.limits.seconds)
        self._decoder.close()
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        """Temporary folder that only this user can read, for files of libraries; removed at the end."""
        return Path(self._folder.name)

    @property
    def alive(self) -> bool:
        """True if the worker runs."""
        return self._worker.is_alive()

    @property
    def waiting(self) -> int:
        """Number of jobs not yet done."""
        return len(self._jobs) + sum(not job.result.done() for job in self._current)

    def check_room(self) -> None:
        """Raise `Busy` if the queue is full; called before anything of a case is read."""
        if self._closed or self.waiting >= self.limits.waiting:
            raise Busy(f"{self.waiting} drafts are waiting already; try again in a moment")

    # --------------------------------------------------------------------------------------- inputs

    async def read_image(self, data: bytes, name: str = "image") -> Square:
        """Decode an image file as the model sees it; messages call it `name`.

        Raises `UserError` for an unreadable one, and `TooLate` where earlier images take all the time there is.
        """
        return await anyio.to_thread.run_sync(self.read_bytes, data, name, limiter=self._readers)

    def read_bytes(self, data: bytes, name: str = "image") -> Square:
        """Decode as `read_image` does, from a thread that may block."""
        if not self._turn.acquire(timeout=self.limits.seconds):
            raise TooLate
        try:
            with named_failures():
                return self._decoder.decode_square(data, name, self.engine.model.spec.image)
        finally:
            self._turn.release()

    def prepare(
        self, images: Images, vitals: Vitals, context: str = "", prior_report: str = "", signal: Signal = None
    ) -> Prepared:
        """Prepare one case's inputs for `draft`; raises `UserError` for any that the adapter does not take."""
        for name, text in (("context", context), ("prior_report", prior_report)):
            if len(text) > self.limits.context:
                raise UserError(f"{name}: {len(text):,} characters, at most {self.limits.context:,}")
        try:
            with named_failures():
                return self.engine.prepare(images, vitals, context, prior_report, signal)
        except UserError as error:
            longer = str(error).startswith("the prompt has ")
            raise UserError(f"context: too long; {error}" if longer else str(error)) from None

    def remove_expired(self) -> None:
        """Remove expired uploads, and files that a crash has left in the folder."""
        self.uploads.remove_expired()
        for file in self.folder.rglob("*"):
            with suppress(OSError):
                if file.is_file() and time.time() - file.stat().st_mtime > LEFTOVER_SECONDS:
                    file.unlink()

    # ---------------------------------------------------------------------------------------- asking

    def draft(self, prepared: Prepared) -> Draft:
        """Queue a report; raises `Busy` if the queue is full."""
        return self._put(Draft(None, self._deadline(), prepared=prepared))

    def ask(self, work: Callable[[Engine], Result]) -> Job[Result]:
        """Queue other work for the engine; raises `Busy` if the queue is full."""
        return self._put(Job(work, self._deadline()))

    def _deadline(self) -> float:
        return time.monotonic() + self.limits.seconds

    def _put(self, job: Any) -> Any:
        with self._changed:
            self.check_room()
            self._jobs.append(job)
            self._changed.notify()
        return job

    # ---------------------------------------------------------------------------------------- worker

    def _work(self) -> None:
        with self.engine.drafting():
            while jobs := self._take():
                start = time.monotonic()
                try:
                    with named_failures():
                        self._do(jobs)
                except Exception as error:
                    _fail_pending(jobs, error)
                finally:
                    _fail_pending(jobs, TooLate())
                    self._current = []
                self.batch_seconds = time.monotonic() - start

    def _take(self) -> list[Job[Any]]:
        """Take the next jobs: one of another kind, or as many drafts as fit a batch; empty when closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            jobs: list[Job[Any]] = []
            while self._jobs and len(jobs) < self._batch and (not jobs or isinstance(self._jobs[0], Draft)):
                jobs.append(self._jobs.popleft())
                if not isinstance(jobs[0], Draft):
                    break
            self._current = jobs
            return jobs

    def _do(self, jobs: Sequence[Job[Any]]) -> None:
        wanted = [job for job in jobs if not job.is_expired]
        drafts = [job for job in wanted if isinstance(job, Draft) and self._fits(job)]
        for job in wanted:
            if job.work is not None:
                job.result.set_result(job.work(self.engine))
        if drafts:
            words = TokenStreamer(self.engine, drafts)
            prepared = [job.prepared for job in drafts]
            reports = self.engine.reports(prepared, self._batch, self.limits.tokens, streamer=words)
            for job, report in zip(drafts, reports, strict=True):
                job.result.set_result(report)

    def _fits(self, job: Draft) -> bool:
        length = self.engine.prompt_length(job.prepared[0])
        if length > LONGEST_PROMPT:
            job.result.set_exception(UserError(f"context: too long; the prompt has {length:,} tokens of words, "
                                               f"at most {LONGEST_PROMPT:,}"))  # fmt: skip
        return length <= LONGEST_PROMPT


class TokenStreamer:
    """Stream the words of several drafts at once, and stop generating when no client wants them any more.

    It has the two methods of Transformers' streamers, whose own take one text at a time.
    """

    def __init__(self, engine: Engine, drafts: Sequence[Draft]) -> None:
        self._tokenizer, self._end = engine.model.tokenizer, engine.model.prompt.end_id
        self._drafts, self._hidden = drafts, engine.abstain  # a draft that may be withheld is shown when it is judged
        self._tokens: list[list[int]] = [[] for _ in drafts]
        self._ended = [False for _ in drafts]

    def put(self, value: torch.Tensor) -> None:
        """Append the next token of each draft (B); the first call has the prompt's tokens, of which there are none."""
        if all(draft.is_expired for draft in self._drafts):
            raise TooLate
        if value.numel() != len(self._drafts):
            return
        for row, token in enumerate(value.tolist()):
            self._ended[row] |= token == self._end  # later tokens are padding
            if not (self._ended[row] or self._hidden):
                self._tokens[row].append(token)
                text = printable(str(self._tokenizer.decode(self._tokens[row], skip_special_tokens=True)))
                self._drafts[row].text = text.strip().rstrip("\N{REPLACEMENT CHARACTER}")  # incomplete character

    def end(self) -> None:
        """Do nothing: no text is held back."""


def _fail_pending(jobs: Sequence[Job[Any]], error: Exception) -> None:
    for job in jobs:
        if not job.result.done():
            job.result.set_exception(error)
