"""Record what a batch of drafts was made from beside its output, so that only the same job resumes it."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm.data.fingerprint import MOST_READ
from vlm.data.images.find import ImageFolder
from vlm.errors import UserError
from vlm.inference.rows import Row
from vlm.untrusted import read_json

CONTENTS = {"contents": "the table", "pictures": "the content, a size or a name of the images in the table"}
"""Keys that metadata of earlier versions does not have → what changed where they differ."""
ADDED = {"findings": "", "abstain": False}
"""Further keys that it does not have → their value in those versions."""


def contents_of(table: Path, rows: Iterable[Row], images: Path) -> dict[str, str]:
    """Hash the table's bytes, and its images: names, sizes and the bytes of the first gigabyte of them; SHA-256."""
    hashed, folder, total = hashlib.sha256(), ImageFolder(images), 0
    for name in (one for row in rows for one in (*row.images, *row.priors)):
        if isinstance(name, str):  # an image in the table is part of its bytes
            size, path = _size(folder, name)
            hashed.update(f"{name} {size}\n".encode("utf-8", "backslashreplace"))
            total += size or 0
            if size and total <= MOST_READ:
                hashed.update(_digest(path))
    return {"contents": _table_digest(table), "pictures": hashed.hexdigest()}


def _size(folder: ImageFolder, name: str) -> tuple[int | None, Path]:
    """Return the size of an image in bytes and its file; None where its row will have an error in place of a draft."""
    try:
        path = Path(folder.find(name))
        return path.stat().st_size, path
    except (UserError, OSError):
        return None, Path(name)


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:  # its row will have an error
        return b""


def _table_digest(table: Path) -> str:
    hashed = hashlib.sha256()
    for file in sorted(path for path in table.rglob("*") if path.is_file()) if table.is_dir() else [table]:
        with file.open("rb") as read:
            hashlib.file_digest(read, lambda: hashed)
    return hashed.hexdigest()


def compare_metadata(
    file: Path, output: Path, metadata: Mapping[str, Any], check_last_rows: Callable[[], None]
) -> None:
    """Raise `UserError` where the output was begun by a different job; note what an earlier version did not record.

    `check_last_rows` may raise a clearer one where the table changed.
    """
    before = read_json(file, "what the drafts are made of") if file.is_file() else {}
    if not isinstance(before, dict):
        raise UserError(f"{file}: does not say what {output} is made of; name another --output")
    before = {**ADDED, **before}
    changed = [name for name, value in metadata.items() if name not in CONTENTS and before.get(name) != value]
    if changed:
        raise UserError(f"{output}: was begun with another {changed[0]}; name another --output")
    if not CONTENTS.keys() <= before.keys():
        what = "whether the table and its images are as they were cannot be checked"
        print(f"warning: {output}: begun by an earlier version; {what}", file=sys.stderr)
        return
    for name, what in CONTENTS.items():
        if before[name] != metadata.get(name, before[name]):
            check_last_rows()
            way_out = "put it back as it was, or name another --output"
            raise UserError(f"{output}: {what} changed since its first drafts; {way_out}")
