"""What an earlier version wrote stays good: its adapter drafts the same, its run goes on; see tests/golden/make.py."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import read_json
from vlm.adapter import load
from vlm.config.parsing import parse_config
from vlm.inference.engine import ReportEngine
from vlm.training.run import train
from vlm.training.run_folder import read_log

GOLDEN = Path(__file__).parents[1] / "golden"
ADAPTERS = (".", "sparse", "0.2.0")  # with all options, and without those at their default
RUNS = (".", "0.2.0")


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to write in, as the working folder: the paths of the golden config are relative to it."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "golden", ignore=shutil.ignore_patterns("make.py", "__pycache__")))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("written", ADAPTERS)
def test_a_golden_adapter_drafts_what_it_drafted(written: str, golden: Path) -> None:
    folder, base = golden / written / "adapter", str(golden / "base")
    model = load(folder, base=base, device=torch.device("cpu"), dtype=torch.float32)
    for case in read_json(golden / written / "expected.json")["cases"]:
        image = str(golden / "data" / "images" / case["image"]) if case["image"] else None
        report = ReportEngine(model).predict([(image, case["vitals"])], max_new_tokens=16)[0]
        assert report.text == case["text"]
        assert report.probabilities == pytest.approx(case["probabilities"], abs=1e-4)


@pytest.mark.parametrize("written", RUNS)
def test_a_golden_run_goes_on_as_it_would_have(written: str, golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = golden / written
    cnn = {name.removeprefix("vision.cnn."): value
           for name, value in load_file(folder / "adapter" / "vlm.safetensors").items()
           if name.startswith("vision.cnn.")}  # fmt: skip
    save_file({name: value.float() if value.is_floating_point() else value for name, value in cnn.items()},
              "cnn.safetensors")  # fmt: skip
    steps = read_json(folder / "expected.json")["steps"]
    options = ["--config", str(folder / "run" / "config.yaml"), "--train.max_steps", str(steps[-1]["step"])]
    config, resume = parse_config([*options, "--resume"])
    train(config, resume)
    warned = "begun by an earlier version; whether reports, labels, vitals and images are" in capsys.readouterr().err
    assert warned == (written == "."), "0.1 did not write the digests of its cases"
    rows = {row["step"]: row for row in read_log(folder / "run" / "log.jsonl") if "loss_ce" in row}
    for step in steps:
        assert {name: rows[step["step"]][name] for name in step} == pytest.approx(step, abs=1e-4)
    assert (folder / "run" / "adapter" / "manifest.json").is_file()
