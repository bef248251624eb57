"""Lock files and folders against a second writer; the system releases the locks of a process that ends.

Linux and macOS have them. On Windows only whole files are locked, and a running training cannot be told from a
crashed one.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from vlm.atomic import make_folder, open_private, writing
from vlm.errors import UserError

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[None]:
    """Lock `path` against other writers while the block runs; raises `UserError` if it is locked.

    Processes that write it together take a shared lock, which keeps out exclusive writers.
    """
    lock = path.with_name(f".{path.name}.lock")
    try:
        file = acquire(lock, lambda opened: try_lock(opened, shared))
    except LockHeld as held:
        raise UserError(f"{path}: {held} is writing it; wait for it, or name another place") from None
    try:
        yield
    finally:
        with suppress(OSError):  # Windows deletes no open file
            if not shared or try_lock(file):  # the last holder of a shared lock
                lock.unlink(missing_ok=True)
        file.close()


class LockHeld(Exception):
    """Report that another process holds a lock; the text names it."""


def acquire(lock: Path, try_lock: Callable[[IO[Any]], bool]) -> IO[Any]:
    """Open or create a lock file and lock it; closing it releases the lock. Raises `LockHeld`."""
    while True:
        with writing(lock.parent):
            make_folder(lock.parent)
            file = open_private(lock, "a+")
        if not try_lock(file):
            file.seek(0)
            raise LockHeld(file.read(200).strip() or "another process")
        if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            break
        file.close()  # its last holder deleted it before we locked it
    with writing(lock):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file


def try_lock(file: IO[Any], shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file, also for child processes; return False if another process holds it.

    Without locks (some file systems, and shared locks on Windows) it returns True.
    """
    if fcntl is None:
        return shared or _try_lock_on_windows(file)
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, kind)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _try_lock_on_windows(file: IO[Any]) -> bool:
    import msvcrt

    locking: Any = msvcrt
    try:
        file.seek(0)
        locking.locking(file.fileno(), locking.LK_NBLCK, 1)
    except OSError:
        return False
    return True


def try_record_lock(file: IO[Any]) -> bool:
    """Lock an open file for this process alone, not its children; raises `OSError` without such locks."""
    if fcntl is None:
        return _try_lock_on_windows(file)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def record_lock_holder(lock: Path) -> str | None:
    """Read the holder of the record lock on a lock file; None if nobody holds it.

    Asks the system, since taking the lock for a moment could turn away a process that starts then.
    """
    if fcntl is None:
        return None
    try:
        with lock.open("r", encoding="utf-8") as file:
            if sys.platform == "darwin":
                shape, free = "qqihh", (0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)
            else:
                shape, free = "hhqqi", (fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            asked = struct.unpack(shape, fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(shape, *free)))
            kind = asked[3] if sys.platform == "darwin" else asked[0]
            return None if kind == fcntl.F_UNLCK else file.read().strip() or "another process"
    except OSError:  # no lock file, or a file system without locks
        return None
