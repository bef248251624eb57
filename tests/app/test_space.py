"""A written Space: its app.py serves the page with the adapter, and what must not be shared is refused."""

import ast
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.hub_adapters import REPO, edit, folder, saved, trained
from tests.hub_server import HubServer, hub
from vlm.adapter import FILES
from vlm.adapter.checks import PATH, TOKEN
from vlm.adapter.hub import fetch, push
from vlm.app.space import write_space
from vlm.cli import main
from vlm.errors import UserError
from vlm.report import NOTICE
from vlm.version import __version__

__all__ = ["folder", "hub", "saved", "trained"]  # fixtures

PROJECT = Path(__file__).resolve().parents[2]
OWN = {".gitattributes", "README.md", "app.py", "requirements.txt"}


def start(space: Path, *options: str, **environment: str) -> subprocess.Popen:
    """`python app.py` in the Space, as Spaces start it."""
    variables = {name: value for name, value in os.environ.items() if name != "CLINICAL_VLM_TOKEN"}
    variables |= {"PYTHONPATH": str(PROJECT), **environment}
    return subprocess.Popen([sys.executable, "app.py", *options], cwd=space, stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.STDOUT, env=variables)  # fmt: skip


def drafted(space: Path, base: str, **environment: str) -> tuple[str, dict]:
    """The page, and a draft, of a Space that runs with the base at hand."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    options = ["--host", "127.0.0.1", "--port", port, "--base", base, "--max_new_tokens", "4", "--max_seconds", "300"]
    process = start(space, *options, **environment)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            while True:
                assert process.poll() is None, process.communicate()[0]
                try:
                    client.get("/healthz").raise_for_status()
                    break
                except httpx.ConnectError:
                    time.sleep(0.2)
            answer = client.post("/v1/report", json={"vitals": {"glucose": 8.7}})
            answer.raise_for_status()
            return client.get("/").raise_for_status().text, answer.json()
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_a_space_with_its_adapter_serves_the_page_and_drafts(
    folder: Path, tiny_llm: str, tmp_path: Path, capsys
) -> None:
    space = tmp_path / "space"
    main(["space", str(folder), str(space)])
    assert f"hf upload USER/NAME {space} . --type space" in capsys.readouterr().out
    assert {path.name for path in space.iterdir()} == OWN | {"adapter"}
    assert {path.name for path in (space / "adapter").iterdir()} == set(FILES)
    for name in FILES:
        assert (space / "adapter" / name).read_bytes() == (folder / name).read_bytes()
    shutil.move(space, tmp_path / "elsewhere")  # it stands alone
    page, answer = drafted(tmp_path / "elsewhere", tiny_llm)
    written = page.replace(r"\u0027", "'")  # within the page's script
    assert NOTICE in written and answer["notice"] == NOTICE
    assert set(answer["probabilities"]) == {"pathology", "effusion"} and answer["vitals"]["glucose"] == 8.7


def test_a_space_names_a_commit_of_the_hub(hub: HubServer, folder: Path, tiny_llm: str, tmp_path: Path) -> None:
    first = push(folder, REPO).commit
    space = tmp_path / "space"
    write_space(REPO, space)
    edit(folder / "config.json", lambda config: config.update(labels=["other", "names"]))
    push(folder, REPO)
    assert {path.name for path in space.iterdir()} == OWN
    assert f"`{REPO}` at commit `{first}`" in (space / "README.md").read_text()
    _, answer = drafted(space, tiny_llm, **hub.environment(tmp_path / "home"))
    assert set(answer["probabilities"]) == {"pathology", "effusion"}, "that of the commit, not the newest"
    other = tmp_path / "other"
    write_space(REPO, other, revision="main")
    assert fetch(REPO).name in (other / "app.py").read_text()


def test_its_files_say_what_spaces_and_visitors_need(folder: Path, tmp_path: Path) -> None:
    from huggingface_hub import SpaceCard

    space = tmp_path / "space"
    assert set(write_space(str(folder), space)) == OWN | {"adapter"}
    card = SpaceCard((space / "README.md").read_text(encoding="utf-8"))
    assert (card.data.sdk, card.data.app_file) == ("gradio", "app.py")
    assert len(card.data.short_description) <= 60, "the Hub's limit"
    assert NOTICE in card.text and "patient's data" in card.text and "CLINICAL_VLM_TOKEN" in card.text
    assert f"=={__version__}\n" in (space / "requirements.txt").read_text()
    for name in OWN:
        text = (space / name).read_text(encoding="utf-8")
        assert not TOKEN.search(text) and not PATH.search(text.replace("https://", "")), name
    assert NOTICE in (ast.get_docstring(ast.parse((space / "app.py").read_text(encoding="utf-8"))) or "")


def test_a_space_is_not_open_to_everybody(folder: Path, tmp_path: Path) -> None:
    space = tmp_path / "space"
    write_space(str(folder), space)
    process = start(space, SPACE_HOST="user-name.hf.space")
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and said.startswith("error: --host 0.0.0.0") and "CLINICAL_VLM_TOKEN" in said
    assert said.count("\n") == 1


def test_an_adapter_with_a_name_is_copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "runs/demo/adapter")
    assert "adapter" in write_space("demo", Path("space"))
    assert sorted(path.name for path in Path("space/adapter").iterdir()) == sorted(FILES)
    with pytest.raises(UserError, match="demo: is a name; a revision is one of a Hub id"):
        write_space("demo", Path("other"), revision="main")


def test_what_must_not_be_shared_is_refused(folder: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    space = tmp_path / "space"
    with pytest.raises(UserError, match="is a folder of this machine"):
        write_space(str(tiny_adapter), space)
    with pytest.raises(UserError, match="no such adapter folder"):
        write_space(str(tmp_path / "nowhere"), space)
    with pytest.raises(UserError, match="a revision is one of a Hub id"):
        write_space(str(folder), space, revision="main")
    (folder / "cases.csv").write_text("a patient")
    with pytest.raises(UserError, match=r"cases\.csv, which is no file of an adapter"):
        write_space(str(folder), space)
    (folder / "cases.csv").unlink()
    (folder / "metrics.json").write_text(json.dumps({"cases": 1}))
    with pytest.raises(UserError, match="damaged"):
        write_space(str(folder), space)
    assert not list(tmp_path.glob("*space*")), "nothing is left of it"
    space.mkdir()
    with pytest.raises(UserError, match="is there already; name a new folder"):
        write_space(str(folder), space)
