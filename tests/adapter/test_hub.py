"""An adapter on the Hub: what is pushed comes back the same, whatever breaks off, and its card says what it is."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import read_json, table_config, tiny_model_config
from tests.forks import PROJECT, Forks
from tests.hub_adapters import METRICS, REPO, change_tensors, edit, folder, saved, trained
from tests.hub_server import HubServer, Repo, hub
from vlm import ClinicalVLM
from vlm.adapter import FILES, load, resolve, save
from vlm.adapter.hub import fetch, push
from vlm.adapter.metadata import CardDetails
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.training.run import build_model

__all__ = ["folder", "hub", "saved", "trained"]  # fixtures

CASES = [(None, {"glucose": 5 + i, "systolic": 100 + 9 * i}) for i in range(4)]


# ------------------------------------------------------------------------------------ there and back


def test_what_comes_back_from_an_empty_cache_drafts_the_same(hub, folder, trained, tiny_llm, tmp_path, capfd) -> None:
    pushed = push(folder, REPO)
    assert (
        pushed.url == f"{hub.url}/{REPO}"
        and pushed.before is None
        and hub.repos[REPO].branches["main"] == pushed.commit
    )
    assert len(hub.repos[REPO].commits) == 2, "the Hub's own, and one of ours"
    assert hub.repos[REPO].commits[pushed.commit].keys() == {".gitattributes", *FILES}
    assert len(hub.large) == 2, "the tensors go by LFS"
    again = ClinicalVLM.from_pretrained(REPO, base=tiny_llm)
    assert capfd.readouterr().err.count(f"{REPO}: commit {pushed.commit}") == 1
    for name, value in trained.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    ours, theirs = (model.predict_many(CASES, max_new_tokens=8) for model in (trained, again))
    assert ours == theirs
    for name in set(FILES) - {"README.md"}:
        assert (resolve(REPO) / name).read_bytes() == (folder / name).read_bytes()


def test_a_second_push_is_an_update_and_each_commit_stays_to_be_had(hub, folder, tiny_llm) -> None:
    first = push(folder, REPO, details=CardDetails(license="apache-2.0"))
    edit(folder / "config.json", lambda config: config["calibration"].update(temperature=2.0))
    second = push(folder, REPO, message="warmer", details=CardDetails(license="apache-2.0"))
    assert second.before == first.commit != second.commit and hub.repos[REPO].messages[-1] == "warmer"
    assert fetch(REPO).name == second.commit and fetch(REPO, first.commit).name == first.commit
    assert load(REPO, base=tiny_llm).calibration.temperature == 2.0
    assert load(REPO, base=tiny_llm, revision=first.commit).calibration.temperature == 1.0
    same = push(folder, REPO, details=CardDetails(license="apache-2.0"))
    assert same.commit == second.commit == same.before, "nothing has changed"


def test_a_branch_is_made_and_read(hub, folder) -> None:
    push(folder, REPO)
    main = hub.repos[REPO].branches["main"]
    edit(folder / "config.json", lambda config: config["calibration"].update(temperature=2.0))
    pushed = push(folder, REPO, revision="trial")
    assert hub.repos[REPO].branches == {"main": main, "trial": pushed.commit}
    assert fetch(REPO, "trial").name == pushed.commit and fetch(REPO).name == main
    push(folder, "user/other", revision="trial", private=True)
    assert hub.repos["user/other"].private and fetch("user/other", "trial")


def test_the_model_pushes_itself(hub, trained: ClinicalVLM, monkeypatch) -> None:
    config = trained.model_config
    monkeypatch.setattr(trained, "model_config", replace(config, llm=replace(config.llm, base="org/base")))
    monkeypatch.setattr(trained.llm.peft_config["default"], "base_model_name_or_path", "org/base")
    commit = trained.push_to_hub(REPO, METRICS, private=True)
    assert json.loads(hub.repos[REPO].commits[commit]["metrics.json"]) == METRICS and hub.repos[REPO].private


# ------------------------------------------------------------------------------------------ the card


def test_the_card_says_what_the_hub_reads(hub, folder) -> None:
    from huggingface_hub import ModelCard

    details = CardDetails("cc-by-4.0", ("org/chests",), "de", "org/the-base")
    pushed = push(folder, REPO, details=details)
    assert pushed.license == "cc-by-4.0"
    card = ModelCard((fetch(REPO) / "README.md").read_text())
    data = card.data.to_dict()
    index = data.pop("model-index")
    assert data == {
        "base_model": "org/the-base", "base_model_relation": "adapter", "library_name": "clinical-vlm",
        "pipeline_tag": "image-text-to-text", "license": "cc-by-4.0", "datasets": ["org/chests"], "language": "de",
        "tags": ["clinical-vlm", "peft", "lora", "radiology", "medical"], "metrics": ["roc_auc"],
    }  # fmt: skip
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("roc_auc", 0.8134, "test")
    assert result.metric_name == "AUROC pathology, with 95 % interval 0.813 (0.701 to 0.900)"
    assert result.dataset_name == "40 unseen cases of 31 patients" and len(index) == 1
    assert f'from_pretrained("{REPO}")' in card.text and "never use it to diagnose" in card.text
    assert push(folder, "user/plain").license is None


def test_a_base_that_only_this_machine_has_is_not_named_as_one_of_the_hub(trained: ClinicalVLM, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard((save(trained, tmp_path / "a") / "README.md").read_text())
    assert card.data.base_model is None and card.data.eval_results is None
    assert str(tmp_path.parent) not in str(card)


def test_the_commit_of_a_base_on_the_hub_is_kept(hub, tiny_llm: str, table_root: Path, tmp_path: Path) -> None:
    """What a branch of somebody else's repository holds tomorrow is not what was trained on."""
    hub.repos["org/base"] = repo = Repo()
    commit = repo.commit("main", {file.name: file.read_bytes() for file in Path(tiny_llm).iterdir()}, "base")
    config = tiny_model_config(tiny_llm)
    config = Config(data=table_config(table_root), model=replace(config, llm=replace(config.llm, base="org/base")))
    model = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)
    folder = save(model, tmp_path / "adapter")
    assert read_json(folder / "config.json")["model"]["llm"]["revision"] == commit
    assert read_json(folder / "adapter_config.json")["revision"] == commit
    repo.commit("main", {"config.json": b"{}"}, "another model")
    assert load(folder).base_fingerprint == model.base_fingerprint


# --------------------------------------------------------------------------------- broken connections


def test_a_download_that_breaks_off_goes_on_where_it_was(hub, folder: Path) -> None:
    push(folder, REPO)
    large = [oid for oid in hub.large if hub.large[oid] == (folder / "vlm.safetensors").read_bytes()]
    hub.cut[f"GET /large/{large[0]}"] = 1
    fetched = fetch(REPO)
    assert (fetched / "vlm.safetensors").read_bytes() == (folder / "vlm.safetensors").read_bytes()
    assert hub.seen.count(f"GET /large/{large[0]}") == 2


def test_a_broken_upload_leaves_the_repository_as_it_was(hub, folder: Path, monkeypatch) -> None:
    first = push(folder, REPO)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    change_tensors("vlm.safetensors", lambda tensors: tensors[min(tensors)].add_(1))(folder)
    hub.cut["PUT /large/"] = 100
    with pytest.raises(UserError, match=r"nothing was pushed: the connection broke .*try again"):
        push(folder, REPO)
    assert hub.repos[REPO].branches["main"] == first.commit
    hub.cut.clear()
    hub.broken.add("POST /commit/")
    with pytest.raises(UserError, match=r"nothing was pushed: the Hub is out of order \(500\)"):
        push(folder, REPO)
    assert hub.repos[REPO].branches["main"] == first.commit
    hub.broken.clear()
    assert push(folder, REPO).before == first.commit


def test_without_a_network_the_last_commit_seen_is_taken_from_the_cache(
    hub, folder, tiny_llm, monkeypatch, caplog
) -> None:
    from huggingface_hub import constants

    commit = push(folder, REPO).commit
    with_network = fetch(REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.seen)
    assert fetch(REPO) == with_network == fetch(REPO, commit) and len(hub.seen) == asked
    assert load(REPO, base=tiny_llm)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.broken.add("GET /api/")
    assert fetch(REPO) == with_network, "a Hub that is out of order is no Hub"
    (with_network / "vlm.safetensors").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in (REPO, "user/never-seen"):
        with pytest.raises(UserError, match="cannot be reached, and the cache does not hold all of it"):
            fetch(name)


# ----------------------------------------------------------------------------------- the command line


def run(hub: HubServer, home: Path, *command: str, **variables: str) -> subprocess.CompletedProcess:
    environment = os.environ | hub.environment(home) | {"HF_HUB_DISABLE_TELEMETRY": "1"} | variables
    return subprocess.run([sys.executable, *command], cwd=PROJECT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_push_and_draft_from_the_command_line(
    hub, folder: Path, trained: ClinicalVLM, tiny_llm, tmp_path: Path, forks: Forks
) -> None:
    """In programs of their own: nothing of the client is patched. The last is refused before the client is asked."""
    pushed = run(hub, tmp_path / "a", "-m", "vlm.cli", "push", str(folder), REPO, "--message", "first")
    commit = hub.repos[REPO].branches["main"]
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.splitlines()[:2] == [f"{hub.url}/{REPO}", f"commit {commit}"] and "--license" in pushed.stdout
    draft = [
        "infer.py",
        "--adapter",
        REPO,
        "--base",
        tiny_llm,
        "--vitals",
        "glucose=7",
        "--max_new_tokens",
        "5",
        "--json",
    ]
    first = run(hub, tmp_path / "b", *draft, "--revision", "main")
    offline = run(hub, tmp_path / "b", *draft, HF_ENDPOINT="http://127.0.0.1:9")
    wanted = trained.predict(vitals={"glucose": 7}, max_new_tokens=5)
    for drafted in (first, offline):
        assert drafted.returncode == 0, drafted.stderr
        assert json.loads(drafted.stdout)["text"] == wanted.text and f"{REPO}: commit {commit}" in drafted.stderr
    assert "Could not reach the Hub" in offline.stderr and "Could not reach" not in first.stderr
    (folder / "notes.txt").write_text("")
    refused = forks.command("push", str(folder), REPO, program="vlm.cli")
    assert refused.returncode == 2 and refused.stderr.startswith("error: ") and "notes.txt" in refused.stderr
    assert "Traceback" not in refused.stderr
