"""Runs side by side, and the evaluation of an adapter from the command line."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import tiny_job
from tests.forks import Forks
from vlm.adapter.validate import rewrite_manifest
from vlm.errors import UserError
from vlm.evaluation.compare import compare
from vlm.evaluation.run import SiteOptions
from vlm.evaluation.run import test_adapter as evaluate_adapter
from vlm.inference.open_engine import open_engine
from vlm.model.vision import ImageEncoder
from vlm.training.run import train


@pytest.fixture(scope="module")
def finished(tiny_llm: str, table_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two finished runs on the same cases, the second without vitals tokens; for reading."""
    config = tiny_job(tiny_llm, table_root, tmp_path_factory.mktemp("finished"))
    without = replace(
        config,
        run=replace(config.run, name="without"),
        model=replace(config.model, vitals=replace(config.model.vitals, injection="none")),
    )
    return [train(one) for one in (config, without)]


@pytest.fixture
def runs(finished: list[Path], tmp_path: Path) -> list[str]:
    """Copies of them, which a test may change."""
    return [str(shutil.copytree(run, tmp_path / "runs" / run.name)) for run in finished]


@pytest.mark.slow
def test_a_comparison_is_paired_and_names_what_changed(runs: list[str]) -> None:
    table = compare(runs, draws=50)
    first, second = [line for line in table.splitlines() if line.startswith(f"| {Path(runs[0]).parent}")]
    assert "model.vitals.injection none" in second and "<br>" in second and "<br>" not in first
    assert "text loss per token" in table and "AUROC effusion" in table and "finding F1" in table
    same = compare([runs[0], runs[0] + "/"], draws=50)
    assert same.count("<br>+0.000 |") == 4, "a run does not differ from itself"


def test_a_label_that_one_run_lacks_is_a_dash(runs: list[str]) -> None:
    file = Path(runs[1]) / "predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["labels"]["other"] = row["labels"].pop("effusion")
        row["probabilities"]["other"] = row["probabilities"].pop("effusion")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    header, _, first, second = compare(runs, draws=50).splitlines()[2:]
    cells = [dict(zip(header.split("|"), line.split("|"), strict=True)) for line in (first, second)]
    assert (
        cells[0][" AUROC other "] == cells[1][" AUROC effusion "] == " – " and "<br>" not in cells[1][" AUROC other "]
    )


def test_runs_of_other_cases_are_not_compared(runs: list[str]) -> None:
    file = Path(runs[1]) / "predictions.jsonl"
    rows = file.read_text().splitlines()
    file.write_text("\n".join(rows[1:]) + "\n")
    with pytest.raises(UserError, match="tested on other cases"):
        compare(runs)
    changed = {**json.loads(rows[0]), "reference": "Something else."}
    file.write_text("\n".join([json.dumps(changed), *rows[1:]]) + "\n")
    with pytest.raises(UserError, match="has another reference"):
        compare(runs)
    with pytest.raises(UserError, match="no such file"):
        compare([runs[0], "/no/run"])
    with pytest.raises(UserError, match="at least two"):
        compare(runs[:1])


def test_an_adapter_is_tested_again_with_the_same_result(runs: list[str], tmp_path: Path, capsys) -> None:
    """From the run's own config: the numbers are those of the test at the end of training."""
    run = Path(runs[0])
    evaluate_adapter(str(run / "adapter"), str(run / "config.yaml"), tmp_path / "again", None, [])
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (run, tmp_path / "again"))
    before.pop("text_loss_untrained")
    assert after["labels"] == before["labels"] and after["findings"] == before["findings"]
    assert after["operating_points"] == before["operating_points"], "at the thresholds saved with the adapter"
    why = before["operating_points"]["effusion"]["sensitivity_0.9"]["threshold"]["why"]
    assert why.endswith("validation patients have effusion; a sensitivity of 0.9 needs 10")
    assert after["text_loss"]["value"] == pytest.approx(before["text_loss"]["value"], abs=1e-6)
    assert after["calibration"]["temperature"] == before["calibration"]["temperature"], "it is the adapter's own"
    assert (tmp_path / "again" / "report.html").is_file() and "precision: float32 (" in capsys.readouterr().out
    options = ["--train.precision", "bf16", "--evaluation.ablation", "false", "--evaluation.cases", "4"]
    evaluate_adapter(str(run / "adapter"), str(run / "config.yaml"), tmp_path / "coarser", None, options)
    assert "precision: bfloat16 (set by train.precision)" in capsys.readouterr().out
    with pytest.raises(UserError, match="not empty"):
        evaluate_adapter(str(run / "adapter"), str(run / "config.yaml"), tmp_path / "again", None, [])


@pytest.mark.slow
def test_an_adapter_is_tested_on_a_table(runs: list[str], table_root: Path, tmp_path: Path) -> None:
    options = ["--data.table.images", "images", "--data.table.id", "case", "--data.table.patient", "patient",
               "--evaluation.bootstrap_draws", "20", "--evaluation.max_new_tokens", "4",
               "--data.table.report", '[{"column": "findings"}]']  # fmt: skip
    table, adapter = str(table_root / "cases.csv"), Path(runs[0]) / "adapter"
    given = json.loads((adapter / "metrics.json").read_text())
    fixed = given["operating_points"]["effusion"]["sensitivity_0.9"]
    fixed["threshold"] = {"value": 0.25, "low": None, "high": None}
    (adapter / "metrics.json").write_text(json.dumps(given))
    rewrite_manifest(adapter)
    evaluate_adapter(str(adapter), table, tmp_path / "out", None, options)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["cases"] == 24 and metrics["patients"] == 20 and metrics["baselines"] == {}
    found = metrics["beside"]
    assert found["patients"] == given["patients"] and found["results"]["text loss"]["own"] == given["text_loss"]
    assert found["results"]["text loss"]["here"] == metrics["text_loss"]
    assert "Beside the adapter" in (tmp_path / "out" / "report.html").read_text()
    point = metrics["operating_points"]["effusion"]["sensitivity_0.9"]
    assert point["threshold"]["value"] == 0.25, "the adapter's own: a table of another site has no validation split"
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    called = sum(row["probabilities"]["effusion"] >= 0.25 for row in rows)
    assert point["true_positives"] + point["false_positives"] == called
    same = str(shutil.copytree(tmp_path / "out", tmp_path / "same"))
    table = compare([str(tmp_path / "out"), same], draws=20)
    assert "sensitivity effusion (sensitivity 0.9)" in table and "specificity effusion (sensitivity 0.9)" in table


@pytest.mark.slow
def test_an_adapter_is_recalibrated_for_a_site(tiny_adapter: Path, table_root: Path, tmp_path: Path) -> None:
    """On patients who are not tested; the file is used where it is named, and moves no decision."""
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    options = ["--data.table.images", "images", "--data.table.id", "case", "--data.table.patient", "patient",
               "--evaluation.bootstrap_draws", "20", "--evaluation.max_new_tokens", "2", "--evaluation.ablation",
               "false"]  # fmt: skip
    table = str(table_root / "cases.csv")
    fit = SiteOptions(recalibrate_on=5, name="north")
    evaluate_adapter(str(adapter), table, tmp_path / "out", None, options, site=fit)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["patients"] == 15 and metrics["splits"]["validation"]["patients"] == 5
    assert metrics["calibration"]["site"] == "north" and "effusion" in metrics["before_recalibration"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Recalibrated for the site north on" in page and "At the adapter's own calibration" in page
    file = tmp_path / "site-north.json"
    values = json.loads(file.read_text())
    values["labels"]["effusion"] = {"temperature": 2.0, "offset": -1.0}
    file.write_text(json.dumps(values))
    evaluate_adapter(str(adapter), table, tmp_path / "with", None, options, site=SiteOptions(str(file)))
    for row in map(json.loads, (tmp_path / "with" / "predictions.jsonl").read_text().splitlines()):
        wanted = 1 / (1 + math.exp(1 - row["logits"]["effusion"] / 2))
        assert row["probabilities"]["effusion"] == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(UserError, match=r"site-north\.json: is there already"):
        evaluate_adapter(str(adapter), table, tmp_path / "no", None, options, site=fit)
    with pytest.raises(UserError, match="--site_name: 'a b' is no name"):
        evaluate_adapter(str(adapter), table, tmp_path / "no", None, options, site=SiteOptions(None, 5, "a b"))
    with pytest.raises(UserError, match="leave one of them away"):
        evaluate_adapter(str(adapter), table, tmp_path / "no", None, options, site=SiteOptions(str(file), 5))
    report = open_engine(str(adapter), site=str(file)).predict([(None, {"glucose": 8})], 1, 2)[0]
    assert report.calibration.startswith("probabilities recalibrated for the site north on")


def test_data_that_do_not_fit_the_adapter_are_refused(runs: list[str], table_root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    text = (Path(runs[0]) / "config.yaml").read_text()
    other.write_text(text.replace("- pathology\n", "", 1))
    with pytest.raises(UserError, match=r"its labels are effusion, the adapter's pathology, effusion"):
        evaluate_adapter(str(Path(runs[0]) / "adapter"), str(other), tmp_path / "out", None, [])
    assert not (tmp_path / "out").exists()


def test_the_command_ends_in_one_line_for_a_mistake(forks: Forks) -> None:
    result = forks.command("compare", "/no/a", "/no/b", program="vlm.cli")
    assert result.returncode == 2 and result.stderr.startswith("error: /no/a") and result.stderr.count("\n") == 1


@pytest.mark.slow
def test_each_picture_is_encoded_once(runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the scores, the drafts and the nearest case together."""
    encoded = []
    grid = ImageEncoder.grid
    monkeypatch.setattr(ImageEncoder, "grid", lambda self, pixels: encoded.append(len(pixels)) or grid(self, pixels))
    options = ["--evaluation.ablation", "false", "--evaluation.bootstrap_draws", "20"]
    run = Path(runs[0])
    evaluate_adapter(str(run / "adapter"), str(run / "config.yaml"), tmp_path / "again", None, options)
    splits = json.loads((tmp_path / "again" / "metrics.json").read_text())["splits"]
    assert sum(encoded) <= splits["train"]["cases"] + splits["test"]["cases"]
