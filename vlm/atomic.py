"""Write files and folders atomically, fsynced, with a SHA-256 manifest.

All are readable by their owner alone, whatever the umask: most hold patient data or are derived from it.

A folder is written under a temporary name beside its target. Every file is flushed to the disk, a manifest of sizes
and SHA-256 is written last, one rename moves the folder to its target, and the parent folder is flushed. A crash
leaves a hidden temporary folder that nobody reads and the next writer removes.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from vlm.errors import UserError

Result = TypeVar("Result")
MANIFEST = "manifest.json"
FORMAT = 1
CHUNK = 16 * 2**20
"""Bytes written at a time."""


@contextmanager
def staged(folder: Path, manifest: bool = True) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block ends, write its manifest and move it to `folder`.

    An earlier folder of that name is replaced only then. If the block raises, nothing changes. Without `manifest` no
    manifest is written, and the block flushes its files itself. Raises `UserError` where the disk is full or not
    writable.
    """
    staging, earlier = _hidden(folder, "partial"), _hidden(folder, "earlier")
    with writing(folder):
        make_folder(folder.parent)
        if earlier.exists() and not folder.exists():  # a crash between the two renames below
            os.rename(earlier, folder)
        for leftover in (staging, earlier):
            if leftover.exists():
                shutil.rmtree(leftover)
        with private():
            os.mkdir(staging)
        try:
            with private():
                yield staging
            write_manifest(staging) if manifest else flush(staging)
            if folder.exists():
                os.rename(folder, earlier)
            os.rename(staging, folder)
            flush(folder.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            if earlier.exists() and not folder.exists():
                os.rename(earlier, folder)
            raise
        shutil.rmtree(earlier, ignore_errors=True)


@contextmanager
def create_once(folder: Path, manifest: bool = True) -> Iterator[Path]:
    """Yield an empty temporary folder; when the block ends, move it to `folder` unless another process was first.

    Each process writes to its own folder, which is removed if the block raises.
    """
    staging = _hidden(folder, str(os.getpid()))
    with writing(folder):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(mode=0o700)
        try:
            yield staging
            if manifest:
                write_manifest(staging)
            try:
                staging.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def write_manifest(folder: Path) -> None:
    """Flush every file of a folder and write its manifest, without an earlier manifest and hidden files."""
    found = (file for file in sorted(folder.glob("[!.]*")) if file.is_file())
    files = {file.name: file for file in found if file.name != MANIFEST}
    for file in files.values():
        flush(file)
    write_file(folder / MANIFEST, _manifest({name: _entry(file) for name, file in files.items()}))
    flush(folder)


def verify_manifest(folder: Path, required: Collection[str], editable: Collection[str] = ()) -> None:
    """Compare every file of a folder with its manifest, which must list the `required` ones.

    The `editable` ones may have changed. Raises `UserError` that names the first file that is missing or changed, and
    the reason.
    """
    for name, written in _read_manifest(folder, required).items():
        if name in editable:
            continue
        size = _read(folder / name, lambda file: file.stat().st_size)  # before reading it
        if size != written.get("size"):
            raise UserError(f"{folder / name}: damaged: {size} bytes, {written.get('size')} when written")
        if _read(folder / name, _entry) != written:
            raise UserError(f"{folder / name}: damaged: its SHA-256 differs")


def _read(file: Path, read: Callable[[Path], Result]) -> Result:
    try:
        return read(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def write_file(file: Path, data: bytes) -> None:
    """Write a file and fsync it; its name is on the disk once its folder is flushed."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest[:CHUNK]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(file: Path, content: str | bytes, writer: str = "partial") -> None:
    """Replace the content of a file atomically; raises `UserError` where it cannot be written.

    `writer` distinguishes processes that may write the same file at once.
    """
    with _beside(file, writer) as partial:
        write_file(partial, content.encode() if isinstance(content, str) else content)


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends, move it to `file`, or remove it if the block raises.

    Raises `UserError` where the disk is full or not writable.
    """
    with _beside(file) as partial:
        with private():
            yield partial
        flush(partial)


@contextmanager
def _beside(file: Path, writer: str = "partial") -> Iterator[Path]:
    partial = _hidden(file, writer)
    with writing(file):
        partial.unlink(missing_ok=True)  # left by a crash with its owner and mode, or a link that leads elsewhere
        try:
            yield partial
            (os.rename if os.name == "posix" else os.replace)(partial, file)  # Windows' rename replaces no file
            flush(file.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def open_private(file: Path, mode: str) -> Any:
    """Open a file for writing; a new file is private to its owner."""
    text = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"}
    return open(file, mode, opener=lambda path, flags: os.open(path, flags, 0o600), **text)  # type: ignore[call-overload]


@contextmanager
def private() -> Iterator[None]:
    """Make new files within the block, by any library of this process, private to their owner."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, and flush their names to the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        with private():
            os.mkdir(folder)
        flush(folder.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder atomically, by a rename first."""
    leaving = _hidden(folder, "removed")
    with writing(folder):
        if leaving.exists():
            shutil.rmtree(leaving)
        os.rename(folder, leaving)
        shutil.rmtree(leaving)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary folders left by crashed processes."""
    with writing(folder):
        for path in folder.glob(".*"):
            if path.suffix in (".partial", ".removed"):
                shutil.rmtree(path)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    if os.name != "posix" and path.is_dir():  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the `OSError` of a full, read-only or failing disk into a `UserError` that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not from the system
            raise
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    except Exception as error:  # safetensors gives the system's errno in its text only
        if not (said := re.search(r"\(os error (\d+)\)", str(error))) or isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be written: {os.strerror(int(said[1]))}") from error


def _hidden(path: Path, word: str) -> Path:
    return path.with_name(f".{path.name}.{word}")


def _entry(file: Path) -> dict[str, Any]:
    """Compute the size in bytes and SHA-256 of a file on the disk."""
    with file.open("rb") as read:
        digest = hashlib.file_digest(read, "sha256").hexdigest()
        return {"size": read.tell(), "sha256": digest}


def _manifest(files: dict[str, dict[str, Any]]) -> bytes:
    """Serialise a manifest with its own hash, so that a damaged manifest is not taken for a damaged file."""
    own = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return (json.dumps({"format": FORMAT, "files": files, "sha256": own}, indent=2) + "\n").encode()


def _read_manifest(folder: Path, required: Collection[str]) -> dict[str, dict[str, Any]]:
    file = folder / MANIFEST
    try:
        data = file.read_bytes()
        files = json.loads(data)["files"]
        plain = all(Path(name).name == name for name in files)  # no path out of the folder
        whole = data == _manifest(files) and plain and all(isinstance(entry, dict) for entry in files.values())
    except FileNotFoundError:
        raise UserError(f"{file}: is missing; not written to its end, or by an earlier version") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise UserError(f"{file}: damaged: it is not as it was written")
    lost = set(required) - files.keys()
    if lost:
        raise UserError(f"{file}: damaged: it does not list {min(lost)}")
    return files
