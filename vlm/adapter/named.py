"""Find an adapter by its short name, such as `demo`: trained here, or published."""

import sys
from pathlib import Path
from typing import NamedTuple

from vlm.adapter.release_file import ReleaseFile, fetch_release
from vlm.errors import UserError


class HubCommit(NamedTuple):
    """Hold where a published adapter lies on the Hub."""

    repo: str
    commit: str


class Named(NamedTuple):
    """Hold what is known of an adapter with a name."""

    license: str
    """Licence of the adapter by its Hub id."""
    terms: str
    """What its data are, and what follows for its use."""
    training: str
    """What its training needs."""
    cases: str = ""
    """Whose cases they are, where the adapter is free to use."""
    place: ReleaseFile | HubCommit | None = None
    """Where it is published; None before it is."""


NAMED = {
    "skin": Named(
        "apache-2.0",
        "trained on pictures of ISIC 2017 (Codella et al., 2018), CC0",
        "9 minutes on 2 cores",
        "The pictures are in the public domain (CC0) and not in this file.",
    ),
    "demo": Named(
        "apache-2.0",
        "trained on synthetic cases, Apache-2.0",
        "9 minutes on 2 cores",
        "The cases were drawn by a program and show nobody.",
    ),
    "ham10000": Named(
        "cc-by-nc-4.0",
        "trained on HAM10000 (Tschandl et al., 2018), CC BY-NC 4.0: not for commercial use",
        "the pictures in data/ham10000",
    ),
}
"""Name of a preset → its adapter. To publish one: `make release`, then write its place here."""


def trained_folder(name: str) -> Path:
    """Return where a run of the preset leaves its adapter."""
    return Path("runs") / name / "adapter"


def locate(name: str) -> Path | HubCommit:
    """Find a named adapter: a folder of this name, else that of a run here, else the published one; print which.

    Raises `UserError` where none is to be had, and as `fetch_release` does.
    """
    for folder, what in ((Path(name), "the folder of this name here"), (trained_folder(name), "trained here")):
        if folder.is_dir():
            print(f"{name}: {folder}, {what}", file=sys.stderr)
            return folder
    known = NAMED[name]
    if known.place is None:
        raise UserError(f"{name}: no folder {trained_folder(name)} here, and not published yet; train it: "
                        f"clinical-vlm train --config {name} (needs {known.training})")  # fmt: skip
    print(f"{name}: {known.terms}", file=sys.stderr)
    return fetch_release(name, known.place) if isinstance(known.place, ReleaseFile) else known.place
