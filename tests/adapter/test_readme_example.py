"""The first lines of Python in the README run as they stand, for a newcomer with the adapter and picture they name."""

import ast
import re
from pathlib import Path

import pytest

from vlm.config.parsing import load_config
from vlm.training.run import train

PROJECT = Path(__file__).resolve().parents[2]
SMALL = {
    "model.llm.sha256": None, "model.llm.lora_rank": 2, "model.vision.name": "test_efficientnet",
    "model.vision.weights": "random", "model.vision.sha256": None, "model.vision.grid": 1, "model.fusion.size": 8,
    "data.image_size": 32, "data.split.test": 0.03, "loss.head_only_steps": 1, "train.max_steps": 2,
    "train.batch_size": 4, "train.micro_batch_size": 4, "train.warmup_steps": 1, "train.eval_steps": 2,
    "train.threads": 1, "evaluation.batch_size": 16, "evaluation.max_new_tokens": 2, "evaluation.bootstrap_draws": 20,
    "evaluation.ablation": False, "evaluation.sentence_cases": 0,
}  # fmt: skip
"""The quick start on a tiny base, with two steps."""
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
def code(tiny_llm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The lines, in a folder with the adapter of `make skin`, and the pictures of the project that they name."""
    code = first_python((PROJECT / "README.md").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    run = train(load_config("skin", {**SMALL, "model.llm.base": tiny_llm}))
    assert ast.literal_eval(call(code, "from_pretrained").args[0]) == f"{run}/adapter"
    for name in strings(code):
        if isinstance(name, str) and name.endswith((".png", ".jpg", ".jpeg")):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes((PROJECT / name).read_bytes())
    return code


def test_the_lines_of_the_readme_run_as_they_stand(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    exec(code, names)
    printed = capsys.readouterr().out
    report = eval(compile(ast.Expression(call(code, "predict")), "README.md", "eval"), names)
    assert report.text and f"{report}" in printed
    assert "no image given" not in report.warnings and report.vitals, "it shows both kinds of evidence"
    assert len(ast.parse(code).body) <= MOST_STATEMENTS
