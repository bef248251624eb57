"""What must not leave for the Hub, or be replaced there, is named in one line, and nothing is pushed."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub_adapters import REPO, change_tensors, edit, folder, saved, trained
from tests.hub_server import TOKEN, hub
from vlm.adapter import load
from vlm.adapter.checks import check_shareable
from vlm.adapter.hub import fetch, push
from vlm.errors import UserError

__all__ = ["folder", "hub", "saved", "trained"]  # fixtures


# ------------------------------------------------------------------------------------ before pushing


def add(name: str, text: str):
    def apply(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(text)

    return apply


def change_config(part: str, **values):
    return lambda folder: edit(folder / "config.json", lambda config: config["model"][part].update(values))


def change_metadata(folder: Path) -> None:
    save_file(load_file(folder / "vlm.safetensors"), folder / "vlm.safetensors", {"from": "/home/me/cases.csv"})


def rename_first(tensors) -> None:
    tensors["stranger.weight"] = tensors.pop(min(tensors))


def widen_first(tensors) -> None:
    name = min(tensors)
    tensors[name] = torch.cat([tensors[name]] * 2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (add("cases.csv", "patient,1"), r"holds cases\.csv, which is no file of an adapter"),
        (add("scan.png", "\x89PNG"), r"holds scan\.png, which is no file of an adapter"),
        (lambda folder: (folder / "checkpoints").mkdir(), "holds checkpoints, which"),
        (lambda folder: ((folder / "README.md").unlink(), (folder / "README.md").symlink_to("/etc/passwd")), "out of"),
        (lambda folder: (folder / "manifest.json").unlink(), r"no manifest\.json; `clinical-vlm seal"),
        (change_metadata, r"vlm\.safetensors: names /home/me/cases\.csv, a path of this machine"),
        (lambda folder: (folder / "metrics.json").unlink(), r"no metrics\.json; not a complete"),
        (lambda folder: shutil.rmtree(folder), r"no adapter_config\.json; not a complete"),
        (lambda folder: (folder / "vlm.safetensors").write_bytes(b"\0" * 64), r"vlm\.safetensors: broken"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "cannot read the LoRA's config"),
        (change_tensors("adapter_model.safetensors", rename_first), "is no part of a LoRA|other half is missing"),
        (change_tensors("adapter_model.safetensors", widen_first), "not of the rank 2"),
        (change_tensors("vlm.safetensors", rename_first), r"stranger\.weight is no part of an adapter"),
        (change_tensors("vlm.safetensors", dict.clear), r"vlm\.safetensors: holds no tensor"),
        (change_config("llm", base="/models/llama"), "the base, /models/llama, is a folder of this machine"),
        (change_config("llm", base="./llama"), r"the base, \./llama, is a folder .* write its Hub id"),
        (change_config("vision", weights="cnn.safetensors"), "write random in its place"),
        (add("README.md", f"\nlogin with {TOKEN}"), r"README\.md: holds what looks like a token, hf_ab1…"),
        (add("README.md", "\ntrained on /home/me/ward-7/cases.csv"), "names /home/me/ward-7/cases.csv, a path"),
        (lambda folder: edit(folder / "metrics.json", lambda m: m.update(x="C:\\Users\\me")), "a path of this machine"),
    ],
)  # fmt: skip
def test_what_must_not_be_shared_is_named_before_the_hub_is_asked(spoil, message: str, folder: Path, hub) -> None:
    check_shareable(folder)
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        push(folder, REPO)
    assert "\n" not in str(error.value) and TOKEN not in str(error.value) and hub.seen == []


@pytest.mark.parametrize(
    "text", ["see https://example.org/a/b/c", "mmol/L and 145/90", "10^9/L", "[card](docs/a/b)", "and/or/not", "1 / 2"]
)
def test_what_only_looks_like_a_path_may_be_shared(text: str, folder: Path) -> None:
    add("README.md", f"\n{text}\n")(folder)
    check_shareable(folder)


def test_without_a_token_the_hub_is_not_asked(hub, folder: Path, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nonexistent")
    with pytest.raises(UserError, match="log in with `hf auth login`"):
        push(folder, REPO)
    with pytest.raises(UserError, match="ward-7: a repository is written USER/NAME"):
        push(folder, "ward-7")
    assert hub.seen == []


# ----------------------------------------------------------------------------------------- refusals


def test_another_model_is_never_written_over(hub, folder: Path) -> None:
    hub.add("user/notes", {"thesis.tex": b"years of work"})
    hub.add("user/peft", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"1", "README.md": b"mine"})
    hub.add("user/llm", {"config.json": b'{"model_type": "llama"}', "README.md": b"mine"})
    hub.add("user/branch", {})
    hub.repos["user/branch"].commit("old", {"thesis.tex": b""}, "old")
    hub.add("user/card", {"README.md": b"---\nlicense: mit\n---\n"})
    before = {name: len(repo.commits) for name, repo in hub.repos.items()}
    with pytest.raises(UserError, match=r"user/notes: holds thesis\.tex, .* a repository of its own"):
        push(folder, "user/notes")
    for name in ("user/peft", "user/llm"):
        with pytest.raises(UserError, match=f"{name}: holds another model"):
            push(folder, name)
    with pytest.raises(UserError, match=r"holds thesis\.tex"):
        push(folder, "user/branch", revision="old")
    with pytest.raises(UserError, match="user/card: is public already"):
        push(folder, "user/card", private=True)
    assert {name: len(repo.commits) for name, repo in hub.repos.items()} == before
    assert push(folder, "user/card").commit, "one that was made on the Hub's page is empty"


def test_a_refused_token_says_which_and_changes_nothing(hub, folder: Path, monkeypatch) -> None:
    with pytest.raises(UserError, match="other/name: nothing was pushed: the token may not do this"):
        push(folder, "other/name")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "z" * 34)
    with pytest.raises(UserError, match="nothing was pushed: the token was refused; log in again") as error:
        push(folder, REPO)
    assert "zzz" not in str(error.value) and not hub.repos
    with pytest.raises(UserError, match="the Hub did not give it: the token was refused"):
        load(REPO)


def test_a_push_in_between_is_not_written_over(hub, folder: Path, monkeypatch) -> None:
    from huggingface_hub import HfApi

    push(folder, REPO)
    edit(folder / "config.json", lambda config: config["calibration"].update(temperature=2.0))
    lfs = HfApi.preupload_lfs_files

    def somebody_is_quicker(self, *args, **options):
        hub.repos[REPO].commit("main", {"config.json": b"theirs"}, "theirs")
        return lfs(self, *args, **options)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", somebody_is_quicker)
    with pytest.raises(UserError, match="it was changed in the meantime"):
        push(folder, REPO)
    assert hub.repos[REPO].messages[-1] == "theirs"


def test_a_card_that_the_hub_refuses_is_said(hub, folder: Path) -> None:
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(card.replace("pipeline_tag:", "license: [a, b]\npipeline_tag:"))
    with pytest.raises(UserError, match=r'Invalid metadata in README\.md\. - "license" must be a string'):
        push(folder, REPO)
    (folder / "README.md").write_text("---\nlicense: {\n---\n")
    with pytest.raises(UserError, match=r"README\.md: the Hub cannot read the card's head"):
        push(folder, REPO)


def test_what_is_not_there_is_said(hub, folder: Path, monkeypatch) -> None:
    with pytest.raises(UserError, match="user/none: no such folder, and the Hub did not give it: no such repository"):
        load("user/none")
    push(folder, REPO, private=True)
    with pytest.raises(UserError, match="no revision v9"):
        load(REPO, revision="v9")
    with pytest.raises(UserError, match="is a folder here; a revision is one of a Hub id"):
        load(folder, revision="v9")
    fetch(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "z" * 34)
    with pytest.raises(UserError, match="the token was refused"):
        fetch(REPO)  # though it is in the cache
