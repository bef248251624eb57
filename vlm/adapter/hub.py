"""Fetch an adapter from the Hugging Face Hub at one commit, and push it as one commit."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlm.adapter.layout import FILES
from vlm.adapter.metadata import CardDetails
from vlm.adapter.named import NAMED, locate
from vlm.adapter.validate import AdapterFolder, check_files, check_manifest, largest_size, read_folder
from vlm.errors import UserError
from vlm.hub_client import hub_client, hub_errors, planned_files
from vlm.untrusted import read_json

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo

HUB_FILES = {".gitattributes", "README.md"}
"""Files that the Hub itself puts into a new repository."""


class Pushed(NamedTuple):
    """Hold the address and commit of a pushed adapter."""

    url: str
    commit: str
    before: str | None
    """Parent commit; None in a new repository."""
    license: str | None
    """Licence in its card."""


def resolve(adapter: str, revision: str | None = None) -> Path:
    """Return the local folder of an adapter: that folder, or fetched by its name (`NAMED`) or Hub id.

    Raises `UserError` where none exists, where a file is missing, links elsewhere or does not match the manifest, and
    for files that no adapter has.
    """
    local = Path(adapter).is_dir()
    if revision is not None and (local or adapter in NAMED):
        raise UserError(f"{adapter}: is a {'folder here' if local else 'name'}; a revision is one of a Hub id")
    if adapter in NAMED:
        place = locate(adapter)
        folder = place if isinstance(place, Path) else fetch(place.repo, place.commit)
    else:
        folder = Path(adapter) if local else fetch(adapter, revision)
    check_files(folder)
    check_manifest(folder)
    return folder


def open_adapter(adapter: str | Path | AdapterFolder, revision: str | None = None) -> AdapterFolder:
    """Read an adapter folder or Hub id; an opened one is returned as it is.

    Raises `UserError` as `resolve` and `read_folder` do.
    """
    return adapter if isinstance(adapter, AdapterFolder) else read_folder(resolve(str(adapter), revision))


def fetch(adapter: str, revision: str | None = None) -> Path:
    """Fetch the snapshot of one commit to the Hub's cache, and print the commit.

    Where the Hub cannot be reached, the last seen commit is taken from the cache, and the client says so. Raises
    `UserError` for everything that the Hub refuses or does not have, even if it is in the cache.
    """
    if adapter.count("/") != 1 or adapter.startswith((".", "/", "~")):
        raise UserError(f"{adapter}: no such adapter folder")
    api = hub_client()
    with hub_errors(f"{adapter}: no such folder, and the Hub did not give it", revision):
        commit = api.resolve_revision(adapter, revision=revision)
        reached = _check_sizes(api, adapter, commit)
        # If it was not reached nothing is fetched, even if it answers by now: no size was checked.
        folder = api.snapshot_download(
            adapter, revision=commit, allow_patterns=list(FILES), local_files_only=not reached
        )
    print(f"{adapter}: commit {commit.resolved}", file=sys.stderr)
    return Path(folder)


def _check_sizes(api: "HfApi", adapter: str, commit: str) -> bool:
    """Raise `UserError` for a file that is too large, before it is fetched; return whether the Hub answered."""
    files = planned_files(api, adapter, commit, list(FILES))
    for file in files or ():
        largest = largest_size(file.filename)
        if file.will_download and not (file.file_size is not None and file.file_size <= largest):
            size = "of unknown size" if file.file_size is None else f"{file.file_size >> 20:,} MiB"
            raise UserError(f"{adapter}: {file.filename}: {size}, more than the {largest >> 20:,} MiB of an adapter")
    return files is not None


def push(
    folder: Path,
    repo: str,
    private: bool = False,
    revision: str | None = None,
    message: str = "Adapter",
    details: CardDetails | None = None,
) -> Pushed:
    """Share an adapter folder as one commit; an earlier adapter in its place is updated.

    Everything is checked before any request: see `check_shareable`. Raises `UserError` for content that must not be
    shared, for a repository that holds anything but an adapter, and for everything that the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, ModelCard, get_token

    from vlm.adapter.card import EXAMPLE
    from vlm.adapter.checks import check_shareable
    from vlm.adapter.metadata import with_details

    check_shareable(folder)
    text = (folder / "README.md").read_text(encoding="utf-8").replace(f'"{EXAMPLE}"', f'"{repo}"')
    card = with_details(text, details or CardDetails(), str(folder / "README.md"))
    if repo.count("/") != 1:
        raise UserError(f"{repo}: a repository is written USER/NAME")
    if not get_token():
        raise UserError("the Hub wants a token to push; log in with `hf auth login`, or set HF_TOKEN")
    api = hub_client()
    with hub_errors(f"{repo}: nothing was pushed", revision):
        before = _make_room(api, repo, private, revision)
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(name, card.encode() if name == "README.md" else folder / name) for name in FILES],
            commit_message=message,
            revision=revision,
            parent_commit=before,  # a push in between is not overwritten
        )
    return Pushed(str(commit.repo_url), commit.oid, before, ModelCard(card).data.get("license"))


def _make_room(api: "HfApi", repo: str, private: bool, revision: str | None) -> str | None:
    """Create the repository or the branch if it does not exist; returns the parent commit."""
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private or None)  # None: the account's default
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        return None
    if private and not info.private:
        raise UserError(f"{repo}: is public already; make it private on its page, or push to another")
    _refuse_other_model(api, repo, info)
    if revision is None:
        return info.sha
    try:
        branch = api.model_info(repo, revision=revision)
    except RevisionNotFoundError:
        api.create_branch(repo, branch=revision)
        return info.sha
    _refuse_other_model(api, repo, branch)
    return branch.sha


def _refuse_other_model(api: "HfApi", repo: str, info: "ModelInfo") -> None:
    """Raise `UserError` unless the repository is new or holds an adapter of ours."""
    names = {file.rfilename for file in info.siblings or ()}
    way_out = "push to a repository of its own"
    if others := names - set(FILES) - HUB_FILES:
        raise UserError(f"{repo}: holds {min(others)}, which is no file of an adapter; {way_out}")
    if names <= HUB_FILES:
        return
    config = None
    if "config.json" in names:
        config = read_json(Path(api.hf_hub_download(repo, "config.json", revision=info.sha)), "what is there already")
    if not (isinstance(config, dict) and "clinical_vlm_version" in config):
        raise UserError(f"{repo}: holds another model; {way_out}")
