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


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to write in, as the working folder: the paths of the golden config are relative to it."""
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "golden", ignore=shutil.ignore_patterns("make.py", "__pycache__")))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("written", [".", "sparse"])  # with all options, and without those at their default
def test_a_golden_adapter_drafts_what_it_drafted(written: str, golden: Path) -> None:
    folder, base = golden / written / "adapter", str(golden / "base")
    model = load(folder, base=base, device=torch.device("cpu"), dtype=torch.float32)
    for case in read_json(golden / written / "expected.json")["cases"]:
        image = str(golden / "data" / "images" / case["image"]) if case["image"] else None
        report = ReportEngine(model).predict([(image, case["vitals"])], max_new_tokens=16)[0]
        assert report.text == case["text"]
        assert report.probabilities == pytest.approx(case["probabilities"], abs=1e-4)


def test_a_golden_run_goes_on_as_it_would_have(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cnn = {name.removeprefix("vision.cnn."): value for name, value in load_file("adapter/vlm.safetensors").items()
           if name.startswith("vision.cnn.")}  # fmt: skip
    save_file({name: value.float() if value.is_floating_point() else value for name, value in cnn.items()},
              "cnn.safetensors")  # fmt: skip
    steps = read_json(golden / "expected.json")["steps"]
    options = ["--config", "run/config.yaml", "--train.max_steps", str(steps[-1]["step"])]
    config, resume = parse_config([*options, "--resume"])
    train(config, resume)
    assert "begun by an earlier version; whether reports, labels, vitals and images are" in capsys.readouterr().err
    rows = {row["step"]: row for row in read_log(Path("run/log.jsonl")) if "loss_ce" in row}
    for step in steps:
        assert {name: rows[step["step"]][name] for name in step} == pytest.approx(step, abs=1e-4)
    assert (golden / "run" / "adapter" / "manifest.json").is_file()
