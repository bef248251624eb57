"""The adapter that a run starts from: one commit of the Hub, which the run keeps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tests.hub_adapters import REPO, edit, folder, saved, trained
from tests.hub_server import hub
from vlm.adapter import starting_weights
from vlm.adapter.hub import push
from vlm.config import Config
from vlm.config.parsing import load_config, to_yaml
from vlm.errors import UserError
from vlm.training.run import train
from vlm.training.start_point import open_start

__all__ = ["folder", "hub", "saved", "trained"]  # fixtures


def job(adapter: str | None, revision: str | None = None) -> Config:
    config = Config()
    return replace(config, train=replace(config.train, start_from=adapter, start_revision=revision))


@pytest.fixture
def commits(hub, folder: Path) -> list[str]:
    """Two commits of one adapter, the first as a branch too."""
    first = push(folder, REPO).commit
    hub.repos[REPO].branches["first"] = first
    edit(folder / "config.json", lambda config: config["calibration"].update(temperature=2.0))
    return [first, push(folder, REPO).commit]


def test_the_commit_of_a_revision_is_opened_and_kept(commits, capfd) -> None:
    first, second = commits
    for revision, commit, temperature in ((None, second, 2.0), ("first", first, 1.0), (first, first, 1.0)):
        config, opened = open_start(job(REPO, revision))
        assert config.train.start_revision == commit and opened.config.calibration.temperature == temperature
        assert f"{REPO}: commit {commit}" in capfd.readouterr().err
    with pytest.raises(UserError, match="no revision nowhere"):
        open_start(job(REPO, "nowhere"))


def test_a_resumed_run_keeps_its_commit_whatever_the_branch_holds_by_now(hub, commits, tmp_path: Path, capfd) -> None:
    first, second = commits
    begun = tmp_path / "config.yaml"
    begun.write_text(to_yaml(open_start(job(REPO, "first"))[0]))
    hub.repos[REPO].branches["first"] = second
    asked = len(hub.seen)
    for revision in (None, "first", first):
        config, opened = open_start(job(REPO, revision), begun)
        assert config.train.start_revision == first and opened.config.calibration.temperature == 1.0
    assert f"train.start_revision: {first} (the run began with it)" in capfd.readouterr().err
    assert len(hub.seen) == asked, "what is in the cache is asked of nobody"
    config, _ = open_start(job(REPO, second), begun)
    assert config.train.start_revision == second, "which the run's folder refuses"


def test_a_run_of_an_earlier_version_kept_no_commit(commits, tmp_path: Path) -> None:
    begun = tmp_path / "config.yaml"
    begun.write_text(yaml.safe_dump({"train": {"start_from": REPO}}))
    config, opened = open_start(job(REPO), begun)
    assert config.train.start_revision is None and opened.path.name == commits[1]


def test_a_folder_has_no_revision(folder: Path, tmp_path: Path) -> None:
    config, opened = open_start(job(str(folder)))
    assert config.train.start_revision is None and opened.path == folder
    assert open_start(job(None)) == (job(None), None)
    with pytest.raises(UserError, match="is a folder here; a revision is one of a Hub id"):
        open_start(job(str(folder), "main"))
    (tmp_path / "job.yaml").write_text("train: {start_revision: main}")
    with pytest.raises(UserError, match=r"train\.start_revision: must be null where train\.start_from is null"):
        load_config(tmp_path / "job.yaml")


@pytest.mark.slow
def test_a_run_starts_from_the_commit_and_is_resumed_with_its_frozen_encoder(
    hub, saved, trained, tiny_config: Config, capfd
) -> None:
    commit = push(saved, REPO).commit
    vision = replace(tiny_config.model.vision, train=False)
    options = {"start_from": REPO, "start_revision": "main", "max_steps": 1, "eval_steps": 1}
    config = replace(
        tiny_config, model=replace(tiny_config.model, vision=vision), train=replace(tiny_config.train, **options)
    )
    run = train(config)
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["start_revision"] == commit
    fitting = starting_weights(trained, saved)
    assert f"starting from {REPO}, commit {commit}: {len(fitting)} tensors fit" in capfd.readouterr().err
    del hub.repos[REPO]
    train(replace(config, train=replace(config.train, max_steps=2)), resume=True)
    frozen = {name: value for name, value in fitting.items() if name.startswith("vision.cnn.")}
    kept = starting_weights(trained, run / "adapter")
    assert frozen and all(torch.equal(value, kept[name]) for name, value in frozen.items())
