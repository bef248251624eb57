"""What a batch of drafts was made from, kept beside its output so that it goes on with the same or not at all."""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.data.contents import MOST_READ
from vlm.data.image_names import ImageFolder
from vlm.data.schema import VitalsSchema
from vlm.durable import CHUNK
from vlm.errors import UserError
from vlm.untrusted import read_json

if TYPE_CHECKING:
    from vlm.inference.many import TableJob

CONTENTS = {"contents": "the table", "pictures": "the content, a size or a name of the images in the table"}
"""Keys that stamps of earlier versions do not have → what changed where they differ."""


def contents_of(job: "TableJob", schema: VitalsSchema) -> dict[str, str]:
    """SHA-256 of the table's bytes, and of its images: names, sizes and the bytes of the first gigabyte of them."""
    images, folder, total = hashlib.sha256(), ImageFolder(job.images), 0
    for row in job.rows(schema):
        if row.image and isinstance(row.image, str):  # an image in the table is part of its bytes
            size, path = _size(folder, row.image)
            images.update(f"{row.image} {size}\n".encode("utf-8", "backslashreplace"))
            total += size or 0
            if size and total <= MOST_READ:
                images.update(_digest(path))
    return {"contents": _table_digest(job.table), "pictures": images.hexdigest()}


def _size(folder: ImageFolder, name: str) -> tuple[int | None, Path]:
    """Bytes of an image and its file; None where its row will have an error in place of a draft."""
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
            while chunk := read.read(CHUNK):
                hashed.update(chunk)
    return hashed.hexdigest()


def compare_stamps(job: "TableJob", schema: VitalsSchema, made_by: Mapping[str, Any]) -> None:
    """Raise `UserError` where the output was begun with anything else; say what an earlier version did not keep."""
    before = read_json(job.stamp, "what the drafts are made of") if job.stamp.is_file() else {}
    if not isinstance(before, dict):
        raise UserError(f"{job.stamp}: does not say what {job.output} is made of; name another --output")
    changed = [name for name, value in made_by.items() if name not in CONTENTS and before.get(name) != value]
    if changed:
        raise UserError(f"{job.output}: was begun with another {changed[0]}; name another --output")
    if not CONTENTS.keys() <= before.keys():
        what = "whether the table and its images are as they were cannot be checked"
        print(f"warning: {job.output}: begun by an earlier version; {what}", file=sys.stderr)
        return
    for name, what in CONTENTS.items():
        if before[name] != made_by.get(name, before[name]):
            job.check_last_rows(schema)  # the clearer message, where it can be said
            way_out = "put it back as it was, or name another --output"
            raise UserError(f"{job.output}: {what} changed since its first drafts; {way_out}")
