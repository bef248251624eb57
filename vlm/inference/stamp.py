"""What a batch of drafts was made from, kept beside its output so that it goes on with the same or not at all."""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.data.image_names import ImageFolder
from vlm.data.schema import VitalsSchema
from vlm.durable import CHUNK
from vlm.errors import UserError
from vlm.untrusted import read_json

if TYPE_CHECKING:
    from vlm.inference.many import TableJob

CONTENTS = {"contents": "the table", "pictures": "a size or a name of the images in the table"}
"""Keys that stamps of earlier versions do not have → what changed where they differ."""


def contents_of(job: "TableJob", schema: VitalsSchema) -> dict[str, str]:
    """SHA-256 of the table's bytes, and of the names and sizes of its images, which are too many to be read twice."""
    images, folder = hashlib.sha256(), ImageFolder(job.images)
    for row in job.rows(schema):
        if row.image and isinstance(row.image, str):  # an image in the table is part of its bytes
            images.update(f"{row.image} {_size(folder, row.image)}\n".encode("utf-8", "backslashreplace"))
    return {"contents": _table_digest(job.table), "pictures": images.hexdigest()}


def _size(folder: ImageFolder, name: str) -> int | None:
    """Bytes of an image; None where its row will have an error in place of a draft."""
    try:
        return Path(folder.find(name)).stat().st_size
    except (UserError, OSError):
        return None


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
