"""What may become of the process that Ray runs in, without Ray."""

import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from vlm.errors import UserError


def die_at_once(connection: Connection, windows: list[str]) -> None:
    """As Ray does when its services do not come up: a word on stderr, and code 1."""
    print("core worker has already been shutdown", file=sys.stderr, flush=True)
    os._exit(1)


def die_after_each(connection: Connection, windows: list[str]) -> None:
    """One window is drafted, and the process ends."""
    connection.send(("lines", windows[0].upper()))
    os._exit(1)


def raise_once(connection: Connection, windows: list[str], begun: str) -> None:
    """The first start fails as `ray.init` does on a busy machine."""
    if not Path(begun).exists():
        Path(begun).touch()
        raise Exception("The current node timed out during startup.")
    for window in windows:
        connection.send(("lines", window.upper()))


def refuse(connection: Connection, windows: list[str]) -> None:
    """The engine refuses, and Ray then ends the process."""
    connection.send(("lines", windows[0].upper()))
    raise UserError("/no/such/base: does not exist")


def refuse_and_die(connection: Connection, windows: list[str]) -> None:
    """What was said before the process was ended counts."""
    connection.send(("error", "/no/such/base: does not exist"))
    os._exit(1)


def wait(connection: Connection, windows: list[str], here: str) -> None:
    """Draft one window and then nothing."""
    Path(here).write_text(str(os.getpid()))
    connection.send(("lines", windows[0].upper()))
    time.sleep(600)
