"""Report a defect as one line on stderr: its type and line, never its message, which may quote a case."""

import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm.errors import UserError

SECONDS_BETWEEN = 60.0
"""Seconds between two lines about one place: a client that repeats a failing request must not fill the disk."""
_lock = threading.Lock()
_last_reports: dict[str, tuple[float, int]] = {}


class TooLate(Exception):
    """Raised when the time limit is reached before the end."""

    def __init__(self) -> None:
        super().__init__("not done within the time limit; try again when fewer drafts wait")


class Failed(Exception):
    """Raised for a defect of the program or the machine; stderr has its type, without a word of the case."""

    def __init__(self, message: str = "this failed on our side; the server's log says where") -> None:
        super().__init__(message)


def report_failure(error: BaseException) -> None:
    """Print an exception's type and the line that raised it; repeats are counted and reported once a minute."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else "no known place"
    line = f"{type(error).__name__} in {place}"
    with _lock:
        last, repeats = _last_reports.get(line, (-SECONDS_BETWEEN, 0))
        if time.monotonic() - last < SECONDS_BETWEEN:
            _last_reports[line] = last, repeats + 1
            return
        _last_reports[line] = time.monotonic(), 0
    more = f" ({repeats:,} more like it before)" if repeats else ""
    print(f"error: {line}{more}", file=sys.stderr, flush=True)


def report_loop_failure(_: Any, context: dict[str, Any]) -> None:
    """Handle what asyncio would log with a traceback, such as a task's unretrieved exception."""
    report_failure(context.get("exception") or RuntimeError())


@contextmanager
def named_failures() -> Iterator[None]:
    """Pass a `UserError` on as it is; report anything else and raise `Failed` in its place."""
    try:
        yield
    except (UserError, TooLate, Failed):
        raise
    except Exception as error:
        report_failure(error)
        raise Failed from None
