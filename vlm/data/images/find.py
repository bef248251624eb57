"""Find the image file that a table's cell names, inside one folder only, with tolerance for spelling.

Training, inference, checking and packing share this rule. A name is taken as written; if there is no such file, it is
tried without the quotes around it, with `%20` as a space, with `\\` as `/`, without the folder's own name in front,
in any case and Unicode form, and with the extension of an image. Exactly one file must match.
"""

import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from urllib.parse import unquote

from vlm.data.embedded import EmbeddedImage
from vlm.data.vitals.synonyms import is_missing_word
from vlm.errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".dcm", ".dicom", ".pgm", ".ppm",
              ".pnm")  # fmt: skip
"""Extensions that a name may omit."""
MOST_LISTED, MOST_FOLDERS = 64, 100_000
"""Largest number of cached folder listings, and of cached real paths."""
LONGEST_NAME = 1000
"""Largest length of a name, characters."""
_OUTSIDE = re.compile(r"/|[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]+:/|(?:file|https?|ftp|s3|gs|data):", re.IGNORECASE)
"""Prefixes of a name that is no relative path: a root, a drive, a share, an address."""


def image_cell(cell: object, where: str) -> str | EmbeddedImage:
    """Get a cell's image name, empty if none, or its embedded image; raises `UserError` for anything else."""
    if isinstance(cell, EmbeddedImage):
        return cell
    if isinstance(cell, bytes | list | dict):
        way_out = "write one a row, as {bytes, path} or bytes alone in Parquet, or the name of its file"
        raise UserError(f"{where} holds images, not names of files; {way_out}")
    return text_cell(cell)


def text_cell(cell: object) -> str:
    """Strip the text of a cell; empty if there is none."""
    return "" if cell is None or cell != cell else str(cell).strip()


class ImageFolder:
    """Image folder with name lookup; it records how names were matched."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._root = os.path.realpath(folder)
        self._real: dict[str, str] = {}
        self._listed: dict[str, dict[str, list[str]]] = {}
        self._first: tuple[str, str] | None = None
        self._otherwise = 0
        self._empty: list[str] = []

    def find(self, name: str) -> str:
        """Find the path of the file that a name refers to.

        Raises `UserError`, without the name's location in its table, for a name that leads outside of the folder,
        directly or by a link, and for one that means no file or several.
        """
        return self.find_with_note(name)[0]

    def find_with_note(self, name: str) -> tuple[str, str]:
        """Run `find`, and return a note on the match if the file's name is spelled differently, else empty."""
        text = name.strip()
        if len(text) > LONGEST_NAME:
            raise UserError(f"image {text[:60]!r} …: a name of {len(text):,} characters is no image file's")
        path = self._existing(text)
        if path is not None:
            return self._validated(path, text), ""
        path = self._validated(self._fuzzy_match(text), text)
        found = os.path.relpath(path, self._root)
        self._first = self._first or (text, found)
        self._otherwise += 1
        return path, f"the image {text!r:.200} is read from {_plain(found)}"

    def find_if_named(self, name: str) -> tuple[str | None, str]:
        """Run `find_with_note`; None and empty without a name, and for a word such as `NA` that no file has."""
        try:
            return self.find_with_note(name) if name else (None, "")
        except UserError:
            if is_missing_word(name):
                return None, ""
            raise

    def notes(self, named: bool = True) -> list[str]:
        """Format notes on names that were not found as written, and on empty files, if any.

        Names are left out if they must not be shown: a file's name may be a patient's.
        """
        notes = []
        if self._first is not None:
            first = f"; the first: {self._first[0]!r:.200} is {_plain(self._first[1])}" if named else ""
            said = "image names are not written as their files are; each fits one file, which is read"
            notes.append(f"{self.folder}: {self._otherwise:,} {said}{first}")
        if self._empty:
            first = f"; the first: {_plain(self._empty[0])}" if named else ""
            notes.append(f"{self.folder}: {len(self._empty):,} image files are empty and cannot be read{first}")
        return notes

    def _existing(self, text: str) -> str | None:
        """Get the path as written, with `..` resolved lexically; None if it does not exist."""
        own, path = os.path.abspath(self.folder), os.path.normpath(os.path.join(self._root, text))
        if path.startswith(own + os.sep):  # an absolute name; the folder itself may be a link
            path = self._root + path.removeprefix(own)
        if not _is_below(path, self._root):
            raise self._outside(text)
        try:
            return path if os.path.lexists(path) and not os.path.isdir(path) else None
        except (OSError, ValueError):  # a name that no file can have
            return None

    def _missing(self, text: str) -> UserError:
        return UserError(
            f"no image file {_plain(str(self.folder / text))}: cannot read the image, nothing has this name"
        )

    def _outside(self, text: str) -> UserError:
        return UserError(f"image {text!r:.200} leads outside {self.folder}; write the name of a file in it")

    def _validated(self, path: str, text: str) -> str:
        """Return the path after checking that it is a nonempty file, and no link out of the folder."""
        try:
            status = os.lstat(path)
            folder = os.path.dirname(path)
            if len(self._real) > MOST_FOLDERS:
                self._real.clear()
            real = self._real.get(folder) or self._real.setdefault(folder, os.path.realpath(folder))
            if stat.S_ISLNK(status.st_mode):
                real, status = os.path.realpath(path), os.stat(path)
        except (OSError, ValueError):
            raise self._missing(text) from None
        if not _is_below(real, self._root):
            raise UserError(
                f"image {text!r:.200} is a link that leads outside {self.folder}; put the file itself there"
            )
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{_plain(str(self.folder / text))}: not a regular file")
        if not status.st_size:
            self._empty.append(text)
        return path

    def _fuzzy_match(self, text: str) -> str:
        """Find the one file with a similar name."""
        words = text.strip("\"'“”‘’«» \t\ufeff").replace("\\", "/")
        tried: list[list[str]] = []
        for form in dict.fromkeys((words, unquote(words))):  # as in a URL: `scan%201.png`
            parts = [part for part in posixpath.normpath(form).split("/") if part != "."]
            if "\0" in form or _OUTSIDE.match(form) or ".." in parts:
                raise self._outside(text)
            tried += [parts, *self._below(parts)]
        found = dict.fromkeys(path for some in tried if some for path in self._walk(self._root, some))
        if not found:
            raise self._missing(text)
        names = [os.path.relpath(path, self._root) for path in found]
        if len(found) > 1:
            several = " or ".join(map(_plain, names[:2]))
            raise UserError(f"image {text!r:.200} may be {several} in {self.folder}; write the whole name")
        return next(iter(found))

    def _below(self, parts: list[str]) -> Iterator[list[str]]:
        """Yield the name without leading parts that repeat the end of the folder's path."""
        for own in {self.folder.absolute().parts, PurePath(self._root).parts}:
            for count in range(1, min(len(own), len(parts))):
                if [*map(_normal_name, own[-count:])] == [*map(_normal_name, parts[:count])]:
                    yield parts[count:]

    def _walk(self, folder: str, parts: list[str]) -> Iterator[str]:
        """Yield paths below a folder whose parts match these."""
        first, rest = _normal_name(parts[0]), parts[1:]
        for name in self._names(folder).get(first, []):
            path = os.path.join(folder, name)
            if rest and os.path.isdir(path):
                yield from self._walk(path, rest)
            elif not rest and not os.path.isdir(path):
                yield path

    def _names(self, folder: str) -> dict[str, list[str]]:
        """Map each key to the folder's names that have it, with and without extension."""
        names = self._listed.get(folder)
        if names is None:
            names = {}
            with suppress(OSError):
                for name in sorted(os.listdir(folder)):
                    stem, extension = os.path.splitext(name)
                    for key in {_normal_name(name), _normal_name(stem if extension.lower() in EXTENSIONS else name)}:
                        names.setdefault(key, []).append(name)
            if len(self._listed) >= MOST_LISTED:
                self._listed = {}  # a new dict: another thread may be reading the old
            self._listed[folder] = names
        return names


def _normal_name(name: str) -> str:
    """Normalize a name: case, Unicode form, surrounding spaces and trailing points do not matter."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name.strip().rstrip(".")).casefold())


def _plain(name: str) -> str:
    """Quote a name if a character in it is unprintable, so that it cannot break its line."""
    return name if name.isprintable() else repr(name)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
