"""A disk that fails: it dies, fills or breaks at a chosen change, counted over all that `vlm.atomic` makes."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vlm.atomic


class Died(BaseException):
    """The process is dead: this change and all later ones do not happen."""


class Disk:
    """Stands in for `os` and `shutil` in `vlm.atomic`; counts opens for writing, writes, fsyncs, renames and so on.

    `at` is the change to fail at, from 1, and `fail` what happens there: it raises or ends the process. What was
    changed and not flushed until then is remembered, so that `lose_power` can take it back.
    """

    def __init__(self, at: int = 0, fail: Callable[[str], None] = lambda change: None) -> None:
        self.at, self.fail, self.count = at, fail, 0
        self.changes: list[str] = []
        self._open: dict[int, Path] = {}
        self._torn: set[tuple[int, int]] = set()  # files with content that is not on the disk, by device and inode
        self._names: list[tuple[Path | None, Path, bytes | None]] = []
        """Names that are not on the disk: what was called otherwise or not at all, and what it took the place of."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _change(self, kind: str, path: Path) -> None:
        self.count += 1
        self.changes.append(f"{kind} {path.name}")
        if self.at and self.count >= self.at:
            self.fail(kind)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            self._change("open", path)
            if not path.exists():
                self._names.append((None, path, None))
        descriptor = os.open(path, flags, mode)
        self._open[descriptor] = path
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        self._torn.add(_inode(os.fstat(descriptor)))
        try:
            self._change("write", self._open[descriptor])
        except BaseException:
            os.write(descriptor, data[: len(data) // 2])
            raise
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        path = self._open[descriptor]
        self._change("fsync", path)
        self._torn.discard(_inode(os.fstat(descriptor)))
        self._names = [name for name in self._names if path != name[1].parent]

    def rename(self, source: Path, target: Path) -> None:
        self._change("rename", target)
        covered = target.read_bytes() if target.is_file() else None
        os.rename(source, target)
        self._names.append((source, target, covered))

    def mkdir(self, path: Path) -> None:
        self._change("mkdir", path)
        os.mkdir(path)
        self._names.append((None, path, None))

    def rmtree(self, path: Path, ignore_errors: bool = False) -> None:
        self._change("rmtree", path)
        shutil.rmtree(path, ignore_errors=ignore_errors)

    def lose_power(self, root: Path) -> None:
        """Take back what the disk was never told to keep: contents are cut, names are as they were."""
        for file in [path for path in root.rglob("*") if path.is_file()]:
            if _inode(file.stat()) in self._torn:
                os.truncate(file, file.stat().st_size // 2)
        for source, target, covered in reversed(self._names):
            if source is None:
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            elif not source.exists():  # what was deleted since is back without its files
                os.rename(target, source) if target.exists() else source.mkdir()
            if covered is not None:
                target.write_bytes(covered)


def _inode(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def die(change: str) -> None:
    """Raise what nothing catches, at this change and at every one that a handler tries after it."""
    raise Died(change)


def refuse(number: int) -> Callable[[str], None]:
    """The system's error for every change that needs room or a working disk; deleting goes on working."""

    def fail(change: str) -> None:
        if change in ("open", "write", "mkdir") or (number == errno.EIO and change == "fsync"):
            raise OSError(number, os.strerror(number))

    return fail


def install(disk: Disk, monkeypatch: Any = None) -> Disk:
    """Put the disk under `vlm.atomic`, until the test ends or for good."""
    put = monkeypatch.setattr if monkeypatch else setattr
    put(vlm.atomic, "os", disk)
    put(vlm.atomic, "shutil", disk)
    return disk
