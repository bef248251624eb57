"""The wheel in an empty environment: one command, presets inside, and a public API whose mistakes are one line."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

import vlm
from tests.runs import write_config
from vlm import cli
from vlm.cli import COMMANDS, build_parser, completion, main
from vlm.config.parsing import PRESETS, load_config, parse_config
from vlm.data.case import CaseSpec
from vlm.data.dataset import CaseDataset
from vlm.data.ingest.sources import load_cohort
from vlm.errors import EXTRAS, UserError, missing_extras, require
from vlm.model.encoders.build import image_pictures, image_spec

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
"""Without this tree, which a new environment must not see."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment that holds the built wheel; other packages are those of this one."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("environment")
    shutil.copytree(PROJECT / "vlm", source / "vlm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(source), str(source)]
    subprocess.run([*pip, *wheel], check=True, capture_output=True)
    venv.create(target, symlinks=os.name != "nt")
    scripts = target / ("Scripts" if os.name == "nt" else "bin")
    (file,) = source.glob("*.whl")
    python = str(scripts / "python")
    install = [*pip, "--python", python, "install", "--no-deps", "--no-index", str(file)]
    subprocess.run(install, env=ENVIRONMENT, check=True)
    place = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                           check=True, capture_output=True, text=True).stdout.strip()  # fmt: skip
    (Path(place) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return scripts


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess:
    words = [str(installed / command[0]), *command[1:]]
    return subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def test_the_wheel_trains_and_drafts_from_an_empty_folder(
    installed: Path, tiny_llm: str, table_root: Path, tmp_path: Path
) -> None:
    config = write_config(tiny_llm, table_root, tmp_path, max_steps=2, eval_steps=1, log_steps=1)
    empty = tmp_path / "empty"
    empty.mkdir()
    shown = run(installed, empty, "clinical-vlm", "--help")
    assert shown.returncode == 0 and all(f"    {name}" in shown.stdout for name in COMMANDS)
    assert run(installed, empty, "clinical-vlm", "--version").stdout == f"clinical-vlm {vlm.__version__}\n"
    names = "vlm.__file__, version('clinical-vlm'), vlm.load_config('demo').run.name"
    code = f"import vlm; from importlib.metadata import version; print({names})"
    inside = run(installed, empty, "python", "-c", code)
    assert "environment" in inside.stdout and inside.stdout.split()[1:] == [vlm.__version__, "demo"], inside.stderr
    trained = run(installed, empty, "clinical-vlm", "train", "--config", str(config))
    assert trained.returncode == 0, trained.stderr[-2000:]
    adapter = tmp_path / "runs" / "whole" / "adapter"
    case = ("--image", str(table_root / "images" / "0.png"), "--vitals", "glucose=8.7")
    draft = ("draft", "--adapter", str(adapter), *case, "--max_new_tokens", "4", "--json")
    drafted = run(installed, empty, "clinical-vlm", *draft)
    assert drafted.returncode == 0, drafted.stderr[-2000:]
    assert set(json.loads(drafted.stdout)["probabilities"]) == {"pathology", "effusion"}
    assert not any(empty.iterdir())


def test_help_imports_no_heavy_library() -> None:
    heavy = "torch", "transformers", "pandas", "datasets", "matplotlib", "fastapi", "gradio"
    code = f"import sys, vlm.cli; vlm.cli.build_parser(); print([name for name in {heavy} if name in sys.modules])"
    start = time.perf_counter()
    shown = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert shown.stdout.strip() == "[]", shown.stderr
    assert time.perf_counter() - start < 5, "0.3 s on an idle machine"


def test_every_command_says_what_it_does(capsys: pytest.CaptureFixture) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert len(capsys.readouterr().out) > 100, name
    with pytest.raises(SystemExit, match="2"):
        main(["draft", "--imag", "case.png"])
    assert "unrecognized arguments: --imag" in capsys.readouterr().err


def test_messages_name_commands_that_exist() -> None:
    files = [*(PROJECT / "vlm").rglob("*.py"), *(PROJECT / "vlm").rglob("*.j2")]
    known = {*COMMANDS, *(alias for aliases in cli.ALIASES.values() for alias in aliases)}
    for file in files:
        for named in re.findall(r"`clinical-vlm ([a-z-]+)", file.read_text(encoding="utf-8")):
            assert named in known, f"{file}: clinical-vlm {named}"


@pytest.mark.parametrize(
    ("old", "new"),
    [("adapter gguf", "export"), ("app", "serve"), ("data check", "check"), ("evaluation compare", "compare"),
     ("evaluation", "evaluate"), ("explanation check", "explain"), ("training watch", "watch")],
)  # fmt: skip
def test_an_earlier_command_runs_under_its_new_name(old: str, new: str) -> None:
    module, *words = old.split()
    command = [sys.executable, "-m", f"vlm.{module}", *words, "--help"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    names = {new, *(alias for alias in cli.ALIASES.get(new, []))}
    assert done.returncode == 0 and f"usage: clinical-vlm {new}" in done.stdout
    assert done.stderr.count("\n") == 1
    assert any(f"python -m vlm.{module} is now: clinical-vlm {name}" in done.stderr for name in names)


def test_presets_are_configs_by_name_and_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    assert set(PRESETS) == {file.stem for file in (PROJECT / "configs").glob("*.yaml")}
    for name in PRESETS:
        by_name, by_path = load_config(name), load_config(f"configs/{name}.yaml")
        assert by_name == by_path == parse_config([f"--config={name}"])[0]
    changed = load_config("demo", {"train.max_steps": 2, "run.name": "short", "data.withhold": ["image"]})
    assert (changed.train.max_steps, changed.run.name, changed.data.withhold) == (2, "short", ["image"])
    with pytest.raises(UserError, match=r"train\.max_step; did you mean --train\.max_steps\?"):
        load_config("demo", {"train.max_step": 2})
    with pytest.raises(UserError, match="demos: no such file; the presets are covid_cxr, demo, ecg, ham10000, single"):
        load_config("demos")


def test_the_pictures_of_the_quick_start_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("skin")
    cohort = load_cohort(config.data)
    assert {name: len(cohort.split(name)) > 100 for name in ("train", "validation", "test")} and not cohort.warnings
    shown = [file.stem for file in config.data.folder.glob("*.jpg")]
    assert shown and set(shown) <= set(cohort.split("test")["id"]), "the picture that the README shows is an unseen one"
    assert sum(file.stat().st_size for file in config.data.folder.iterdir()) < 3e6, "the wheel carries them"
    image = image_spec(image_pictures(config.model.vision, config.data.image_size)[0], True)
    example = CaseDataset(cohort.split("test"), CaseSpec.fit(cohort, image, 8), cohort.sections)[0]
    assert example["has_image"] and example["pixel_values"].shape[-3:] == (3, 160, 160)


def test_the_public_names_are_there_and_typed() -> None:
    assert sorted(vlm.__all__) == sorted({*vlm._PLACES, "__version__"}) and len(vlm.__all__) <= 12
    for name in vlm.__all__:
        value = getattr(vlm, name)
        for member in [value, *(getattr(value, name) for name in dir(value))] if isinstance(value, type) else [value]:
            kinds = getattr(getattr(member, "__func__", member), "__annotations__", {})
            assert "options" not in kinds and "kwargs" not in kinds, (name, member)
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = vlm.evalute
    with pytest.raises(TypeError, match="max_token"):
        vlm.ClinicalVLM.predict(None, max_token=3)  # type: ignore[call-arg]
    assert (PROJECT / "vlm" / "py.typed").is_file()


def test_an_adapter_is_evaluated_from_python(tiny_adapter: Path, table_root: Path, tmp_path: Path) -> None:
    small = {"evaluation.max_new_tokens": 2, "evaluation.bootstrap_draws": 5, "evaluation.ablation": False}
    table = {"data.table.images": "images", "data.table.patient": "patient", "data.image_size": 32}
    metrics = vlm.evaluate(tiny_adapter, table_root / "cases.csv", tmp_path / "out", overrides=small | table)
    assert metrics["cases"] == 24 and (tmp_path / "out" / "report.html").is_file()
    with pytest.raises(UserError, match="did you mean --evaluation"):
        vlm.evaluate(tiny_adapter, table_root / "cases.csv", tmp_path / "new", overrides={"evaluation.max_tokens": 2})


def test_a_missing_extra_is_one_line() -> None:
    line = r"^openpyxl is not installed; pip install 'clinical-vlm\[excel\]'$"
    with pytest.raises(UserError, match=line), missing_extras():
        raise ModuleNotFoundError("No module named 'openpyxl.cell'", name="openpyxl.cell")
    with pytest.raises(ModuleNotFoundError), missing_extras():
        raise ModuleNotFoundError("No module named 'nonsense'", name="nonsense")
    require("json", "never said")
    extras = importlib.metadata.metadata("clinical-vlm").get_all("Provides-Extra") or []
    text = (PROJECT / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", text, re.MULTILINE) for extra in {*EXTRAS.values(), *extras})
    core = text.partition("\ndependencies = [")[2].partition("]\n\n")[0]
    assert core.count(">=") <= 12


def test_the_namesake_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimpleNamespace(version="0.0.1", locate_file=lambda name: PROJECT / name)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: here)
    with pytest.raises(UserError, match=r"holds the package vlm 0\.0\.1, on aerodynamics, as well; pip uninstall"):
        main(["--help"])
    elsewhere = SimpleNamespace(version="0.0.1", locate_file=lambda name: Path("/elsewhere") / name)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: elsewhere)
    cli.refuse_namesake()


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_a_shell_completes_commands_and_keys(shell: str) -> None:
    pytest.importorskip("shtab")
    script = completion(shell)
    assert "evaluate" in script and "--train.max_steps" in script and "--allowed_hosts" in script
    assert build_parser().prog == "clinical-vlm"
