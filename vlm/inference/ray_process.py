"""A process for Ray alone, which ends the one that it runs in when its services fail; started again where that helps.

Nothing heavy is imported here, so that a start costs little.
"""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from vlm.errors import UserError

ATTEMPTS = 3
"""Ends of Ray's process, without a window drafted in between, after which it is not started again."""
SHUTDOWN_SECONDS = 30


def answers(drive: Callable[..., None], windows: list[str], *arguments: Any) -> Iterator[str]:
    """Call `drive(connection, windows, *arguments)` in a process of its own; yields an answer for each window.

    It sends (`lines`, answer), or (`error`, text) for what the user must mend. A process that fails or dies is started
    again with the windows left. Raises `UserError` when that does not help.
    """
    left, failures = deque(windows), 0
    while left:
        with tempfile.NamedTemporaryFile("r", errors="replace") as log:
            for kind, text in _messages(drive, log.name, list(left), *arguments):
                if kind == "error":
                    raise UserError(f"--ray: {text}; go on with --resume")
                left.popleft()
                failures = 0
                yield text
            failures += bool(left)
            if failures == ATTEMPTS:
                said = (log.read().strip().splitlines() or ["Ray's process ended without a word"])[-1][:300]
                raise UserError(f"--ray: {said}; what was drafted is kept: go on with --resume")


def _messages(drive: Callable[..., None], log: str, *arguments: Any) -> Iterator[tuple[str, str]]:
    """What one process says until it ends, however that is; it is ended with this generator."""
    context = multiprocessing.get_context("spawn")  # a fork would share the locks of PyTorch's threads
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_quietly, args=(drive, theirs, log, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            yield ours.recv()
    except (EOFError, OSError):
        process.join(SHUTDOWN_SECONDS)
    finally:
        ours.close()
        for end in (process.terminate, process.kill):  # nothing is lost: whatever was drafted has been said
            if process.is_alive():
                end()
                process.join(SHUTDOWN_SECONDS / 3)


def _quietly(drive: Callable[..., None], connection: Connection, log: str, *arguments: Any) -> None:
    """Call `drive` with all that is printed going to a file: what Ray says of its services is not for the user."""
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the process that started this one ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        drive(connection, *arguments)
    except UserError as error:
        connection.send(("error", str(error)))
    connection.close()  # before Ray ends its services, which may end this process


def _end_with_parent() -> None:
    """End this process when the one that started it was killed and could not; Ray's services end with this one."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
