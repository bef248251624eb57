"""The first lines of Python in the README run as they stand, for a newcomer with the adapter and picture they name."""

import ast
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.hub_adapters import trained
from vlm import ClinicalVLM
from vlm.adapter import save
from vlm.adapter.named import NAMED, trained_folder

__all__ = ["trained"]  # fixture

README = Path(__file__).resolve().parents[2] / "README.md"
MOST_STATEMENTS = 4
"""Imports, loading and a draft: what one reads at a glance."""


def first_python(page: str) -> str:
    found = re.search(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert found, "the README shows no Python"
    return found[1]


def strings(code: str) -> list[str]:
    return [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant) and node.value]


def call(code: str, method: str) -> ast.Call:
    """The one call of a method in the code."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    (found,) = [node for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr == method]
    return found


@pytest.fixture
def code(trained: ClinicalVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The lines, in a folder that holds the adapter and the pictures that they name."""
    code = first_python(README.read_text(encoding="utf-8"))
    adapter = ast.literal_eval(call(code, "from_pretrained").args[0])
    save(trained, tmp_path / (trained_folder(adapter) if adapter in NAMED else adapter))
    picture = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    for name in strings(code):
        if isinstance(name, str) and name.endswith((".png", ".jpg", ".jpeg")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / name), picture)
    monkeypatch.chdir(tmp_path)
    return code


def test_the_lines_of_the_readme_run_as_they_stand(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(code, names)
    printed = capsys.readouterr().out
    report = eval(compile(ast.Expression(call(code, "predict")), "README.md", "eval"), names)
    assert report.text and f"{report}" in printed
    assert "no image given" not in report.warnings and report.vitals, "it shows both kinds of evidence"
    assert len(ast.parse(code).body) <= MOST_STATEMENTS
