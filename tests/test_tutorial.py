"""The tutorial, run as a reader runs it: its files are saved, its commands run in order, on the real base model.

Its Hub is one on loopback. Blocks of ```text show what a command prints; their words must be in what it printed here,
but not their numbers, which differ from machine to machine. What a model drafted stands in blocks of ```draft.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import read_json
from tests.fhir_bundles import of_type, validate
from tests.hub_server import HubServer

PROJECT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    section: str
    language: str
    text: str


def blocks() -> list[Block]:
    """The fenced blocks of the tutorial, in order, each with the heading it stands under."""
    found = []
    for part in re.split(r"^## ", (PROJECT / "docs" / "tutorial.md").read_text(encoding="utf-8"), flags=re.M)[1:]:
        section = part.partition("\n")[0]
        found += [Block(section, language, text) for language, text in _BLOCK.findall(part)]
    return found


@dataclass
class Reader:
    """Somebody who follows the tutorial in a folder of their own."""

    folder: Path
    hub: HubServer

    def save(self, text: str) -> None:
        """A file's name is the comment in its first line."""
        name = text.splitlines()[0].removeprefix("# ")
        (self.folder / name).write_text(text, encoding="utf-8")

    def run(self, commands: str) -> str:
        """What they print; they must succeed."""
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env=os.environ | self.hub.environment(self.folder / "hub") | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert result.returncode == 0, f"{commands}\n{result.stdout[-1500:]}\n{result.stderr[-1500:]}"
        assert "Traceback" not in result.stderr
        return result.stdout + result.stderr


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reader")
    for name in ("vlm", "train_lora.py", "infer.py"):
        (folder / name).symlink_to(PROJECT / name)
    with HubServer() as hub:
        yield Reader(folder, hub)


def masked(text: str) -> list[str]:
    """Its lines without numbers, hashes and the kind of device, which differ from run to run."""
    return [
        re.sub(r"[0-9a-f]{12,}|[\d.,-]+|\b(cpu|cuda|MiB|GiB)\b", "#", line).strip()
        for line in text.replace("\r", "\n").splitlines()
    ]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_tutorial_runs_as_written(reader: Reader) -> None:
    printed = ""
    for block in blocks():
        if block.language in ("python", "yaml"):
            reader.save(block.text)
        elif block.language == "bash":
            printed = reader.run(block.text)
        elif block.language == "text":
            missing = [line for line in masked(block.text) if line not in masked(printed) and line != "…"]
            assert not missing, f"{block.section}: never printed: {missing}\n{printed[-3000:]}"
    assert (reader.folder / "runs" / "ward" / "report.html").stat().st_size > 10_000
    assert (reader.folder / "check.html").is_file() and (reader.folder / "why.png").stat().st_size > 10_000
    bundle = read_json(reader.folder / "draft.json")
    validate(bundle)
    coded = {
        coding["code"] for resource in of_type(bundle, "Observation") for coding in resource["code"].get("coding", [])
    }
    assert {"14749-6", "85354-9", "30525-0"} <= coded, "the ready-made vitals bring their codes"
    lines = [json.loads(line) for line in (reader.folder / "today.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and all(line["text"] for line in lines)
    assert [name for name, repo in reader.hub.repos.items() if repo.private] == ["user/ward"]
