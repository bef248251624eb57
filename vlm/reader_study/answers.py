"""Keep the readers' answers in answers.jsonl: one line an answer, on the disk before the reader goes on.

A line counts from its line break on. A crash in the middle of a line leaves a rest without one, which nobody was told
was saved: it is left out when the file is read, and cut off when it is opened for more.
"""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vlm.atomic import flush, writing
from vlm.config.strict import from_dict
from vlm.errors import UserError
from vlm.plain import shortened
from vlm.reader_study.study_file import Study
from vlm.untrusted import parse_json

VERDICTS = {
    "as_it_stands": "Acceptable as it stands",
    "minor_edits": "Acceptable with minor edits",
    "major_edits": "Acceptable with major edits",
    "not_acceptable": "Not acceptable",
}
"""Verdict → its words, the best first."""
ERRORS = {
    "invented_finding": "Invented finding",
    "missed_finding": "Missed finding",
    "wrong_place": "Wrong place or side",
    "wrong_degree": "Wrong severity or size",
    "wrong_number": "Wrong number",
    "other": "Other",
}
"""Kind of error → its words."""
LONGEST_LINE = 64 << 10
"""Most bytes of a line."""
LONGEST_SECONDS = 1e7


@dataclass(frozen=True)
class Judgement:
    """What a reader said of one text."""

    verdict: str
    """One of `VERDICTS`."""
    errors: list[str]
    """Some of `ERRORS`, each once."""

    def check(self, where: str) -> None:
        """Raise `UserError` for an unknown verdict, and for an unknown or doubled kind of error."""
        if self.verdict not in VERDICTS:
            raise UserError(f"{where}: verdict {shortened(self.verdict)} is none of {', '.join(VERDICTS)}")
        if not set(self.errors) <= ERRORS.keys() or len(set(self.errors)) < len(self.errors):
            raise UserError(f"{where}: errors must be some of {', '.join(ERRORS)}, each once")


@dataclass(frozen=True)
class Answer:
    """What a reader said of one page."""

    study: str
    """`Study.digest`."""
    reader: int
    """Number of the reader, from 1."""
    page: int
    """Number of the page among the reader's, from 1."""
    given: str
    """UTC time in ISO 8601."""
    seconds: float | None
    """Time since the page was last shown; None where the server was started anew in between."""
    showings: int
    """How often the page was shown before; beyond 1 the seconds are not the whole time."""
    judgements: list[Judgement]
    """Of each text of the page, in the order shown."""

    def check(self, study: Study, where: str) -> None:
        """Raise `UserError` where an answer is of another study, or fits no page of this one."""
        if self.study != study.digest:
            raise UserError(f"{where}: an answer of another study; keep the answers of each study in its own folder")
        pages = study.readers[self.reader - 1].pages if 0 < self.reader <= len(study.readers) else []
        if not 0 < self.page <= len(pages):
            raise UserError(f"{where}: reader {self.reader} has no page {self.page}")
        texts = len(pages[self.page - 1].texts)
        if len(self.judgements) != texts:
            raise UserError(f"{where}: judges {len(self.judgements)} texts; page {self.page} has {texts}")
        for one in self.judgements:
            one.check(where)
        if len(self.given) > 40 or self.showings < 0 or not 0 <= (self.seconds or 0) <= LONGEST_SECONDS:
            raise UserError(f"{where}: given, seconds or showings are out of range")


Answers = dict[tuple[int, int], Answer]
"""(reader, page) → answer."""


def read_answers(file: Path, study: Study) -> tuple[Answers, int]:
    """Read the answers given so far, and the bytes of their whole lines; none if there is no file yet.

    Raises `UserError` that names the line, for one that is no answer, or answers a page for a second time.
    """
    answers, size = Answers(), 0
    lines: dict[tuple[int, int], int] = {}
    for number, line in enumerate(_whole_lines(file), 1):
        where, size = f"{file}: line {number}", size + len(line)
        try:
            answer: Answer = from_dict(Answer, parse_json(line), where)
        except ValueError as error:
            raise UserError(f"{where}: {getattr(error, 'unquoted', 'no JSON')}; take the line out") from None
        answer.check(study, where)
        key = answer.reader, answer.page
        if key in lines:
            raise UserError(f"{where}: reader {key[0]} has answered page {key[1]} on line {lines[key]} already; "
                            "take one of them out")  # fmt: skip
        answers[key], lines[key] = answer, number
    return answers, size


def _whole_lines(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as read:
            while (line := read.readline(LONGEST_LINE + 1)).endswith(b"\n"):
                yield line
            if len(line) > LONGEST_LINE:
                raise UserError(f"{file}: a line is longer than {LONGEST_LINE >> 10} KiB; it is none of ours")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


class AnswerLog:
    """The file of answers, open for more; the caller locks it against other processes."""

    def __init__(self, file: Path, study: Study) -> None:
        self.file, self.study = file, study
        self.answers, self._size = read_answers(file, study)
        self._turn = threading.Lock()
        with writing(file):
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
            self.cut = os.fstat(self._descriptor).st_size - self._size
            """Bytes of a line that a crash left unfinished."""
            os.ftruncate(self._descriptor, self._size)
            os.fsync(self._descriptor)
            flush(file.parent)

    def append(self, answer: Answer) -> bool:
        """Write an answer and fsync it; False, and nothing is written, if its page was answered before.

        Raises `UserError` where the disk is full or fails, or the answer does not fit the study; it is not kept then.
        """
        answer.check(self.study, "answer")
        line = (json.dumps(asdict(answer), ensure_ascii=False, allow_nan=False) + "\n").encode()
        key = answer.reader, answer.page
        with self._turn:
            if key in self.answers:
                return False
            with writing(self.file):
                try:
                    self._write(line)
                except OSError:
                    with suppress(OSError):  # else the next write begins with it
                        os.ftruncate(self._descriptor, self._size)
                    raise
            self._size += len(line)
            self.answers[key] = answer
        return True

    def _write(self, line: bytes) -> None:
        os.ftruncate(self._descriptor, self._size)
        os.lseek(self._descriptor, self._size, os.SEEK_SET)
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        os.fsync(self._descriptor)

    def next_page(self, reader: int) -> int | None:
        """Number the first page that a reader has not answered, from 1; None where all are."""
        pages = range(1, len(self.study.readers[reader - 1].pages) + 1)
        return next((page for page in pages if (reader, page) not in self.answers), None)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
