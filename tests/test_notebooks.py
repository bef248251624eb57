"""The notebooks: each runs from top to bottom, cut small, on a tiny base; each holds cells in plain words, and no more.

As papermill does, what the test sets follows the cell tagged `parameters`; all other cells run as they stand.
"""

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / "docs" / "notebooks"
NOTEBOOKS = {file.stem: file for file in sorted(FOLDER.glob("*.ipynb"))}
SMALL: dict[str, Any] = {
    "model.llm.sha256": None,
    "model.llm.lora_rank": 2,
    "model.vision.name": "test_efficientnet",
    "model.vision.weights": "random",
    "model.vision.sha256": None,
    "model.vision.frozen_stages": 0,
    "model.vision.grid": 1,
    "model.fusion.size": 8,
    "data.image_size": 32,
    "data.phantom.cases": 60,
    "data.split.validation": 0.2,
    "data.split.test": 0.2,
    "loss.head_only_steps": 1,
    "train.max_steps": 3,
    "train.batch_size": 4,
    "train.micro_batch_size": 4,
    "train.warmup_steps": 1,
    "train.eval_steps": 2,
    "train.log_steps": 1,
    "train.threads": 1,
    "evaluation.batch_size": 16,
    "evaluation.max_new_tokens": 2,
    "evaluation.bootstrap_draws": 20,
    "evaluation.ablation": False,
}


def read(name: str) -> Any:
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def sources(name: str, kind: str) -> list[str]:
    return [cell.source for cell in read(name).cells if cell.cell_type == kind]


def run(notebook: Any, folder: Path) -> Any:
    """Run all cells in `folder`, which must not raise; returns the notebook with its outputs."""
    notebook = copy.deepcopy(notebook)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    paths = filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])
    client.execute(env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "IPYTHONDIR": str(folder / "ipython")})
    return notebook


def run_small(name: str, tiny_llm: str, folder: Path, **values: Any) -> str:
    """Run a notebook of these parameters; returns what it printed and showed as text."""
    notebook = read(name)
    tagged = [place for place, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    values = {"OVERRIDES": SMALL | {"model.llm.base": tiny_llm}, **values}
    lines = [f"{key} = {value!r}" for key, value in values.items()]
    assert len(tagged) == 1 and all(f"{key} = " in notebook.cells[tagged[0]].source for key in values)
    notebook.cells.insert(tagged[0] + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    outputs = [output for cell in run(notebook, folder).cells for output in cell.get("outputs", ())]
    data = [output.get("data", {}) for output in outputs]
    shown = [
        output.get("text") or of.get("text/html") or of.get("text/plain", "")
        for output, of in zip(outputs, data, strict=True)
    ]
    pictures = sum(source.count("display(Image(") for source in sources(name, "code"))
    assert sum("image/png" in of for of in data) == pictures
    return "\n".join(shown)


def missing_files(name: str, folder: Path) -> set[str]:
    """Names of files that the notebook speaks of and its run did not leave."""
    named = set(re.findall(r"`([\w-]+\.(?:csv|json|jsonl|html|png))`", "\n".join(sources(name, "markdown"))))
    return named - {file.name for file in folder.rglob("*")}


@pytest.mark.slow
def test_the_tutorial_runs_from_top_to_bottom(tiny_llm: str, tmp_path: Path) -> None:
    shown = run_small("tutorial", tiny_llm, tmp_path, PATIENTS=60)
    assert not missing_files("tutorial", tmp_path) and (tmp_path / "runs" / "tutorial" / "run" / "adapter").is_dir()
    assert "Opacity in the" in shown and "cases.csv: 0 errors" in shown and "unseen cases of" in shown
    assert "warning: no image given" in shown and "20 cases, AUROC of opacity" in shown
    assert "opacity probability" in shown, "Table 1 is shown"


@pytest.mark.slow
def test_the_papers_experiment_runs_from_top_to_bottom(tiny_llm: str, tmp_path: Path) -> None:
    shown = run_small("paper", tiny_llm, tmp_path)
    assert not missing_files("paper", tmp_path)
    assert "cases: train" in shown and "pathology probability" in shown and "synthetic cohort" in shown
    for row in ("BCE", "text loss per token", "AUROC pathology"):
        assert row in shown
    assert re.search(r"<th>train</th>\s*<th>validation</th>\s*<th>test</th>", shown), "the splits side by side"


@pytest.mark.slow
def test_the_gpu_recipe_runs_from_top_to_bottom_on_a_cpu(tiny_llm: str, tmp_path: Path) -> None:
    shown = run_small("colab", tiny_llm, tmp_path)
    assert not missing_files("colab", tmp_path) and (tmp_path / "runs" / "colab" / "adapter.zip").stat().st_size > 1000
    assert "torch.float32: " in shown and "one forward and backward" in shown and "Not a diagnosis" in shown


def test_a_cell_that_raises_fails(tmp_path: Path) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in ("x = 1", "assert x == 2, 'x is one'", "x = 3")]
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="x is one"):
        run(nbformat.v4.new_notebook(cells=cells), tmp_path)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_holds_cells_in_plain_words_and_nothing_else(name: str) -> None:
    """No output, no path of a machine; a sentence before every cell of code; links that lead somewhere."""
    text, notebook = NOTEBOOKS[name].read_text(encoding="utf-8"), read(name)
    nbformat.validate(notebook)
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n", "as Jupyter writes it"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert set(notebook.metadata) == {"kernelspec", "language_info"} and notebook.metadata.kernelspec.name == "python3"
    assert not re.findall(r"(?<![\w.:/`])/(?:[a-z]+/)+|file://|[A-Z]:\\\\|~/", text), "a path of a machine"
    for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        assert cell.cell_type == "markdown" or (before and before.cell_type == "markdown"), cell.source
        assert cell.cell_type == "code" or re.search(r"[a-z`]\.", cell.source), "a sentence"
    links = re.findall(r"\]\(([^)#\s]+)", "\n".join(sources(name, "markdown")))
    assert links and all((FOLDER / link).exists() for link in links if "://" not in link), links
    assert "!" not in [source.strip()[0] for source in sources(name, "code")], "functions, not shell commands"


def test_the_notebooks_are_those_of_the_docs() -> None:
    assert set(NOTEBOOKS) == {"tutorial", "paper", "colab"}
    for page in ("index.md", "tutorial.md", "paper.md"):
        linked = set(re.findall(r"\(notebooks/(\w+)\.ipynb\)", (PROJECT / "docs" / page).read_text(encoding="utf-8")))
        assert linked == {"index.md": set(NOTEBOOKS), "tutorial.md": {"tutorial", "colab"}, "paper.md": {"paper"}}[page]


def test_what_the_gpu_recipe_installs_is_a_requirement() -> None:
    from packaging.requirements import Requirement

    line = next(source for source in sources("colab", "code") if "REQUIREMENT = " in source).splitlines()[0]
    requirement = Requirement(json.loads(line.removeprefix("REQUIREMENT = ")))
    assert requirement.name == "clinical-vlm" and requirement.extras == {"train"} and requirement.url
