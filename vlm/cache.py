"""Manage the cache of weights: check that no other user could have written it, and cache file hashes.

It is `$CLINICAL_VLM_CACHE`, else `~/.cache/clinical-vlm`.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from vlm.atomic import MANIFEST, replace_file, verify_manifest, write_manifest
from vlm.errors import UserError

MOST_CACHED_HASHES = 256
"""Most cached hashes; the oldest are evicted first."""


def cache_folder() -> Path:
    """Get the folder of downloaded and converted weights."""
    return Path(os.environ.get("CLINICAL_VLM_CACHE", Path.home() / ".cache" / "clinical-vlm"))


def private_folder(*names: str) -> Path:
    """Make a private folder of the cache, and its parents there.

    Raises `UserError` for one that another user could have written to.
    """
    folder = cache_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for path in (folder, *(folder.joinpath(*names[: count + 1]) for count in range(len(names)))):
            path.mkdir(mode=0o700, exist_ok=True)
            check_owner(path)
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as cache: {error.strerror}; set CLINICAL_VLM_CACHE") from None
    return folder.joinpath(*names)


def verify_cached(folder: Path) -> None:
    """Raise `UserError` unless only this user can write a cache folder and every file matches the manifest.

    A folder of an earlier version, without a manifest, gets one of its current files. Files are hashed once, and again
    only if their stamps change.
    """
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    for path in (folder, *files):
        check_owner(path)
    if not (folder / MANIFEST).is_file():
        write_manifest(folder)
        files.append(folder / MANIFEST)

    def whole() -> str:
        try:
            verify_manifest(folder, ())
        except UserError as error:
            raise UserError(f"{error}; remove {folder}, it is made anew") from None
        return "whole"

    cached_by_stat(files, "manifest", whole)


def check_owner(path: Path) -> None:
    """Raise `UserError` for a file or folder that a user other than this one or root owns or may write to."""
    if not hasattr(os, "getuid"):  # Windows
        return
    link, target = path.lstat(), path.stat()
    strange = {status.st_uid for status in (link, target)} - {os.getuid(), 0}
    if strange or target.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        how = f"belongs to user {min(strange)}" if strange else "may be written by other users"
        raise UserError(
            f"{path}: {how}, who could have put other weights there; remove it, `chmod -R go-w {cache_folder()}` if "
            "all of it is yours, or name a folder of your own as CLINICAL_VLM_CACHE"
        )


def cached_by_stat(files: Sequence[Path], what: str, compute: Callable[[], str]) -> str:
    """Cache the result of `compute` on some files, and recompute it only when their stamps change.

    A stamp is path, size, time of the last write and change, and inode. Without a writable cache it is always computed.
    """
    name = hashlib.sha256(json.dumps([what, *map(str, map(Path.resolve, files))]).encode()).hexdigest()[:32]
    stamps = _stamps(files)
    try:
        kept = private_folder("digests") / f"{name}.json"
    except UserError:  # reported where weights are kept there; its content is not trusted
        return compute()
    try:
        check_owner(kept)
        values = json.loads(kept.read_bytes())
        if values["stamps"] == stamps and isinstance(values["value"], str):
            return values["value"]
    except (OSError, ValueError, KeyError, TypeError, UserError):
        pass
    value = compute()
    if _stamps(files) == stamps:
        _keep(kept, json.dumps({"stamps": stamps, "value": value}))
    return value


def _stamps(files: Sequence[Path]) -> list[list[str | int]]:
    stats = [(file.resolve(), file.stat()) for file in files]
    return [[str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_dev, s.st_ino] for path, s in stats]


def _keep(file: Path, content: str) -> None:
    with suppress(UserError, OSError):  # then it is recomputed
        replace_file(file, content)
        for old in sorted(file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)[:-MOST_CACHED_HASHES]:
            old.unlink(missing_ok=True)
