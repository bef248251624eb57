"""Pack an adapter into a release file, a zip that is the same to the byte each time; fetch and unpack one with checks.

Its files are stored as they are: they would shrink little, and what is not compressed cannot grow when unpacked.
"""

import hashlib
import shutil
import stat
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from vlm.adapter.layout import FILES, REQUIRED
from vlm.adapter.validate import FETCHED, check_files, largest_size
from vlm.atomic import create_once, flush, open_private, replaced, verify_manifest, writing
from vlm.cache import private_folder, verify_cached
from vlm.compat import hub_http
from vlm.errors import UserError, one_line

ADAPTER = "adapter"
"""Folder of the adapter within the file."""
NOTICE, LICENSE = "NOTICE.md", "LICENSE"
"""Texts beside it: whose licences hold, and the text of ours."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every file in it, the earliest of a zip."""
SILENT_SECONDS, SECONDS = 60, 1800
"""Longest wait for the next bytes, and for the whole file."""


class ReleaseFile(NamedTuple):
    """Hold where a release file lies and what it must be."""

    url: str
    size: int
    """Bytes."""
    sha256: str


def pack(folder: Path, file: Path, texts: Mapping[str, bytes]) -> None:
    """Write the files of an adapter folder and the texts beside it to a zip, below a folder of the zip's own name."""
    top = file.stem
    with replaced(file) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name in FILES:
            entry = _entry(f"{top}/{ADAPTER}/{name}")
            entry.file_size = (folder / name).stat().st_size  # whether the entry needs the form for over 2 GiB
            with (folder / name).open("rb") as read, archive.open(entry, "w") as write:
                shutil.copyfileobj(read, write)
        for name in (LICENSE, NOTICE):
            archive.writestr(_entry(f"{top}/{name}"), texts[name])


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.create_system = 3  # Unix, whatever this machine is
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


def fetch_release(name: str, release: ReleaseFile) -> Path:
    """Return the folder of a published adapter in the cache; it is fetched once.

    Raises `UserError` for a file of another size or SHA-256, one that is not as `pack` writes it, an adapter that does
    not match its manifest, and where the file cannot be fetched.
    """
    folder = private_folder(FETCHED) / f"{name}-{release.sha256[:16]}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            file = Path(work) / release.url.rpartition("/")[2]
            with writing(folder):
                _download(name, release, file)
            with create_once(folder, manifest=False) as staging:  # it has one
                unpack(file, staging)
                check_files(staging)
                verify_manifest(staging, REQUIRED)
                flush(staging)
    verify_cached(folder)
    return folder


def _download(name: str, release: ReleaseFile, file: Path) -> None:
    """Download a file, giving up on one that is too large or too slow; raises `UserError` unless it is the right one.

    A redirection is followed: wherever the bytes come from, they must have the SHA-256.
    """
    from huggingface_hub import constants

    http, what = hub_http(), f"{name}: {release.url}"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{what}: not in the cache, and HF_HUB_OFFLINE forbids to fetch it")
    print(f"downloading {name} ({release.size / 2**20:,.0f} MiB) from {release.url}", file=sys.stderr)
    digest, size, deadline = hashlib.sha256(), 0, time.monotonic() + SECONDS
    options = {"headers": {"Accept-Encoding": "identity"}, "timeout": SILENT_SECONDS, "follow_redirects": True}
    try:
        with http.stream("GET", release.url, **options) as answer, open_private(file, "wb") as out:
            answer.raise_for_status()
            for chunk in answer.iter_raw():
                size += len(chunk)
                if size > release.size:
                    raise UserError(f"{what}: larger than {release.size:,} bytes; not used")
                if time.monotonic() > deadline:
                    raise UserError(f"{what}: not whole within {SECONDS:,} s; try again")
                digest.update(chunk)
                out.write(chunk)
    except http.HTTPStatusError as error:
        raise UserError(f"{what}: the server answered {error.response.status_code}") from None
    except http.HTTPError as error:
        raise UserError(f"{what}: the connection broke ({type(error).__name__}); try again") from None
    if digest.hexdigest() != release.sha256:
        raise UserError(f"{what}: SHA-256 is {digest.hexdigest()} of {size:,} bytes, not {release.sha256}; not used")


def unpack(file: Path, folder: Path) -> None:
    """Unpack the adapter of a release file to a folder; no path in the file is followed.

    Raises `UserError` for one that `pack` would not write.
    """
    with one_line(f"{file.name}: no release file"), zipfile.ZipFile(file) as archive:
        for name, entry in _checked(archive, file).items():
            with archive.open(entry) as read, open_private(folder / name, "wb") as write:
                shutil.copyfileobj(read, write)
            flush(folder / name)


def _checked(archive: zipfile.ZipFile, file: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the entries of the adapter by the names of its files; raises `UserError` for any other entry."""
    entries = archive.infolist()
    top = entries[0].filename.partition("/")[0] if entries else ""
    wanted = {f"{top}/{ADAPTER}/{name}": name for name in FILES}
    if sorted(entry.filename for entry in entries) != sorted([*wanted, f"{top}/{LICENSE}", f"{top}/{NOTICE}"]):
        raise UserError(f"{file.name}: does not hold the files of an adapter, each once, and no others")
    for entry in entries:
        name = wanted.get(entry.filename, entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise UserError(f"{file.name}: {name} is compressed, and may grow without bound")
        if entry.file_size > largest_size(name):
            raise UserError(f"{file.name}: {name} is larger than {largest_size(name) >> 20:,} MiB")
    if sum(entry.file_size for entry in entries) > file.stat().st_size:  # entries that share their bytes
        raise UserError(f"{file.name}: holds more bytes than it has")
    return {wanted[entry.filename]: entry for entry in entries if entry.filename in wanted}
