"""Write a folder that can be pushed as a Hugging Face Space: the page, with an adapter."""

import importlib.metadata
import shutil
from pathlib import Path

from vlm.adapter.checks import check_shareable
from vlm.adapter.hub import open_adapter, resolve
from vlm.adapter.layout import FILES
from vlm.adapter.named import NAMED
from vlm.atomic import flush, staged, write_file
from vlm.errors import UserError, require
from vlm.locks import locked
from vlm.report import NOTICE
from vlm.resources import render
from vlm.version import __version__

ADAPTER = "adapter"
"""Folder of the adapter within the Space."""
PYTHON = "3.12"
LARGE_FILES = "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
"""Content of .gitattributes: git pushes tensors as large files."""


def write_space(adapter: str, out: Path, revision: str | None = None) -> list[str]:
    """Write a Space to a new folder atomically, and return the names of what is in it.

    An adapter folder, also one with a name such as `demo`, is copied into it; an adapter of the Hub is named by its
    commit. Raises `UserError` for an existing folder `out`, for an adapter folder as `check_shareable` does, and for a
    name or Hub id as `open_adapter` does.
    """
    require("gradio", "space: needs Gradio, whose version the Space runs")
    if out.exists():
        raise UserError(f"{out}: is there already; name a new folder")
    folder = Path(adapter) if Path(adapter).is_dir() and revision is None else None
    if folder is None and adapter in NAMED:
        folder = resolve(adapter, revision)
    if folder is not None:
        check_shareable(folder)
        commit = ""
    else:
        commit = open_adapter(adapter, revision).path.name  # of its snapshot
    with locked(out), staged(out, manifest=False) as staging:
        for name, text in space_files("" if folder is not None else adapter, commit).items():
            write_file(staging / name, text.encode())
        if folder is not None:
            _copy_adapter(folder, staging / ADAPTER)
        flush(staging)
    return sorted(path.name for path in out.iterdir())


def space_files(hub_id: str, commit: str) -> dict[str, str]:
    """Return name → text of the files of a Space; `hub_id` is empty for an adapter that lies in it."""
    from huggingface_hub import SpaceCardData

    head = SpaceCardData(
        title="Report drafts",
        emoji="📝",
        colorFrom="blue",
        colorTo="gray",
        sdk="gradio",
        sdk_version=importlib.metadata.version("gradio"),
        python_version=PYTHON,
        app_file="app.py",
        models=[hub_id] if hub_id else None,
        short_description=NOTICE,
        startup_duration_timeout="1h",  # the first start fetches PyTorch and the base
    ).to_yaml()
    words = {"notice": NOTICE, "version": __version__, "hub_id": hub_id, "commit": commit, "folder": ADAPTER}
    return {
        "README.md": f"---\n{head}\n---\n\n" + render("vlm.app", "space.md.j2", escape=False, **words),
        "app.py": render("vlm.app", "space_app.py.j2", escape=False, **words),
        "requirements.txt": f"clinical-vlm[app,dicom,explain]=={__version__}\n",
        ".gitattributes": LARGE_FILES,
    }


def _copy_adapter(folder: Path, target: Path) -> None:
    target.mkdir()
    for name in FILES:
        shutil.copyfile(folder / name, target / name)
        flush(target / name)
    flush(target)
