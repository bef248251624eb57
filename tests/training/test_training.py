"""Training: accumulation, head-only steps, schedule, logs, and what a whole run writes."""

import json
from dataclasses import replace

import pytest
import torch

from tests.conftest import steady
from tests.training_jobs import trained, with_train
from vlm import ClinicalVLM
from vlm.config import Config, LossConfig, VisionConfig
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.evaluation.scoring import score_cases
from vlm.evaluation.temperature import fit_temperature
from vlm.model.encoders.build import image_pictures
from vlm.progress import Job
from vlm.training.loop import split_batch
from vlm.training.optimizer import parameter_groups, rate_factor
from vlm.training.run import build_model, case_dataset, train
from vlm.training.run_folder import RunFolder, read_log


def test_accumulating_1_x_4_equals_4_x_1(tiny_config: Config) -> None:
    """Both terms are divided by the counts of the whole effective batch, whatever the micro batches hold."""
    whole = trained(with_train(tiny_config, "whole", micro_batch_size=4))
    parts = trained(with_train(tiny_config, "parts", micro_batch_size=1))
    for (name, a), b in zip(
        whole.model.trainable_parameters().items(), parts.model.trainable_parameters().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)
    for a, b in zip(whole.state.log_history, parts.state.log_history, strict=True):
        for key in a.keys() & {"loss", "loss_bce", "loss_ce", "eval_loss"}:
            assert a[key] == pytest.approx(b[key], rel=1e-4)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny_config: Config) -> None:
    losses = [
        [
            row["loss"]
            for row in trained(with_train(tiny_config, f"run{index}", seed=seed)).state.log_history
            if "loss" in row
        ]
        for index, seed in enumerate((0, 0, 1))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_in_the_head_only_steps_the_text_parts_rest(tiny_config: Config) -> None:
    config = replace(with_train(tiny_config, "head", max_steps=3), loss=LossConfig(alpha=0.5, head_only_steps=3))
    start = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32).trainable_parameters()
    end = trained(config).model.trainable_parameters()
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert any(name.startswith("joint.") for name in moved) and any(name.startswith("vision.cnn.") for name in moved)
    assert not any(name.startswith(("llm.", "evidence.", "vision.projector.", "vitals.projector")) for name in moved)
    assert all(row["loss_ce"] is None for row in read_log(RunFolder(config).log) if "loss_ce" in row)


def test_a_validation_of_the_head_alone_reads_no_text_and_is_never_the_best(tiny_config: Config, monkeypatch) -> None:
    config = with_train(tiny_config, "phases", max_steps=6, eval_steps=1, keep_checkpoints=9)
    config = replace(config, loss=LossConfig(alpha=0.4, head_only_steps=3))
    passes: list[int] = []
    trunk = ClinicalVLM.trunk
    model_class = "vlm.model.clinical_vlm.ClinicalVLM"
    monkeypatch.setattr(f"{model_class}.trunk", lambda self, *a: (passes.append(self.training), trunk(self, *a))[1])
    trainer = trained(config)
    rows = [row for row in read_log(RunFolder(config).log) if "eval_loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["eval_loss_ce"] is None for row in rows] == [row["eval_loss"] is None for row in rows]
    assert [row["eval_loss"] is None for row in rows] == [True, True, False, False, False, False]
    assert all(row["eval_loss_bce"] > 0 for row in rows)
    assert passes.count(False) == 4, "one validation batch a step, from the end of the head-only steps on"
    joint = {row["step"]: row["eval_loss"] for row in rows if row["eval_loss"] is not None}
    assert trainer.state.best_global_step == min(joint, key=joint.__getitem__)
    assert trainer.state.best_metric == pytest.approx(min(joint.values()))
    for row in rows[2:]:
        assert row["eval_loss"] == pytest.approx(0.4 * row["eval_loss_bce"] + 0.6 * row["eval_loss_ce"])
    again = trained(config, str(RunFolder(config).checkpoints / "checkpoint-2"))
    assert again.state.best_global_step == trainer.state.best_global_step
    assert steady([row for row in read_log(RunFolder(config).log) if "eval_loss" in row]) == steady(rows)


def test_validations_of_the_head_alone_do_not_stop_a_run_early(tiny_config: Config) -> None:
    still = dict.fromkeys(("learning_rate", "lora_learning_rate", "vision_learning_rate"), 0.0)
    config = with_train(tiny_config, "patient", max_steps=40, eval_steps=1, patience=1, **still)
    config = replace(config, loss=LossConfig(alpha=0.5, head_only_steps=5))
    trainer = trained(config)
    assert trainer.state.global_step == 6, "5 is the first that reads text, 6 the first that is no better"
    assert trainer.state.best_global_step == 5
    longer, checkpoints = with_train(config, "patient", max_steps=60), RunFolder(config).checkpoints
    assert trained(longer, str(checkpoints / "checkpoint-6")).state.global_step == 6, "it has ended"
    assert trained(longer, str(checkpoints / "checkpoint-5")).state.global_step == 6, "what was counted is counted on"


def test_a_run_of_the_head_alone_ends_with_its_last_step(tiny_config: Config) -> None:
    config = replace(with_train(tiny_config, "head", max_steps=4), loss=LossConfig(alpha=0.5, head_only_steps=9))
    assert trained(config).state.best_global_step is None
    only = trained(replace(with_train(tiny_config, "bce", max_steps=4), loss=LossConfig(alpha=1.0)))
    rows = [row for row in only.state.log_history if "eval_loss" in row]
    assert only.state.best_global_step and all(row["eval_loss"] == row["eval_loss_bce"] for row in rows)


@pytest.mark.slow
def test_the_temperature_is_fitted_on_the_validation_split_alone(tiny_config: Config) -> None:
    train(tiny_config)
    cohort = load_cohort(tiny_config.data)
    model = ClinicalVLM.from_pretrained(RunFolder(tiny_config).adapter, device=torch.device("cpu"))
    fitted = {}
    for split in ("train", "validation", "test"):
        cases = replace(case_dataset(tiny_config, model.spec, cohort, split), dropout=None)
        fitted[split] = fit_temperature(score_cases(model, cases, 4, split, text=False), cases.rows["patient"])
    assert len({one.temperature for one in fitted.values()}) == 3, "else the test could not tell them apart"
    assert model.calibration.temperature == pytest.approx(fitted["validation"].temperature, rel=1e-3)
    assert model.calibration.patients == fitted["validation"].patients


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("resnet18", 0.449, 0.226), ("tf_efficientnet_lite0", 0.5, 0.5), ("no_such_cnn", 0.5, 0.5)],
)
def test_images_are_scaled_as_the_cnn_was_trained(name: str, mean: float, std: float) -> None:
    """Means of ImageNet's 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225."""
    if name == "no_such_cnn":
        with pytest.raises(UserError, match="timm has no model no_such_cnn"):
            image_pictures(VisionConfig(name, weights="random"), 224)
        return
    pictures, line = image_pictures(VisionConfig(name, weights="random"), 224)
    assert (pictures.mean, pictures.std) == pytest.approx((mean, std), abs=1e-6)
    assert (pictures.interpolation, pictures.channels) == ("area", 3) and f"{name} of timm" in line


@pytest.mark.slow
def test_a_row_that_straddles_the_head_only_steps_averages_the_text_loss_over_its_own_steps(
    tiny_config: Config,
) -> None:
    config = with_train(tiny_config, "every", max_steps=4, log_steps=1)
    config = replace(config, loss=LossConfig(alpha=0.5, head_only_steps=2))
    each = [row["loss_ce"] for row in trained(config).state.log_history if "loss_ce" in row]
    one = trained(replace(config, run=replace(config.run, name="one"), train=replace(config.train, log_steps=4)))
    row = next(row for row in one.state.log_history if "loss_ce" in row)
    assert row["loss_ce"] == pytest.approx((each[2] + each[3]) / 2, rel=1e-5)


def test_learning_rates_by_part_and_their_schedule(tiny_config: Config) -> None:
    config = with_train(
        tiny_config,
        "rates",
        max_steps=20,
        learning_rate=1e-3,
        lora_learning_rate=2e-3,
        vision_learning_rate=3e-3,
        warmup_steps=4,
    )
    config = replace(config, loss=LossConfig(head_only_steps=10))
    cohort = load_cohort(config.data)
    model = build_model(config, cohort, torch.device("cpu"), torch.float32)
    groups = parameter_groups(model, config.train)
    assert sum(len(group["params"]) for group in groups) == len(model.trainable_parameters())
    assert {group["lr"] for group in groups} == {1e-3, 2e-3, 3e-3}
    head = [rate_factor(step, config.train, 0, 20) for step in range(21)]
    text = [rate_factor(step, config.train, 10, 20) for step in range(21)]
    assert head[4] == 1 and head[:4] == sorted(head[:4]) and head[20] == 0 and head[12] == pytest.approx(0.5)
    assert not any(text[:10]) and text[14] == 1 and text[20] == 0 and head[0] > 0


@pytest.mark.slow
def test_early_stopping_stops(tiny_config: Config) -> None:
    config = with_train(
        tiny_config,
        "early",
        max_steps=40,
        eval_steps=1,
        patience=1,
        learning_rate=0.0,
        lora_learning_rate=0.0,
        vision_learning_rate=0.0,
    )
    assert trained(config).state.global_step == 2


@pytest.mark.slow
def test_a_whole_run_writes_what_it_promises(tiny_config: Config, capsys, monkeypatch) -> None:
    folder, begun, begin = RunFolder(tiny_config), [], Job.begin
    monkeypatch.setattr(Job, "begin", lambda job, title: (begun.append((title, job.phases)), begin(job, title))[1])
    train(tiny_config)
    expected = {phase.title for phase in begun[-1][1]}
    assert {title for title, phases in begun if phases is begun[-1][1]} == expected | {"scoring: validation"}
    said = capsys.readouterr().err
    assert "parameters: trained" in said and "precision: float32 (" in said and "cases: train" in said
    assert "label sets of 90% coverage: none: pathology (" in said, "a handful of validation patients"
    names = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "log.jsonl",
        "metrics.json",
        "predictions.jsonl",
        "table1.csv",
        "figures/correlation.png",
        "figures/losses.png",
    } <= names
    assert {
        f"adapter/{name}"
        for name in (
            "adapter_config.json",
            "adapter_model.safetensors",
            "vlm.safetensors",
            "config.json",
            "metrics.json",
            "README.md",
        )
    } <= names
    rows = read_log(folder.log)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert {"step", "epoch", "loss", "loss_bce", "loss_ce", "learning_rate"} <= steps[0].keys()
    assert steps[0]["loss"] == pytest.approx(0.4 * steps[0]["loss_bce"] + 0.6 * steps[0]["loss_ce"], rel=1e-5)
    assert {"eval_loss", "eval_loss_bce", "eval_loss_ce"} <= next(row for row in rows if "eval_loss" in row).keys()
    predictions = [json.loads(line) for line in folder.predictions.read_text().splitlines()]
    metrics = json.loads(folder.metrics.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert list(metrics["by_split"]) == ["train", "validation", "test"]
    assert metrics["by_split"]["test"]["text_loss"] == metrics["text_loss"]
    assert metrics["by_split"]["train"]["drawn_from"] == metrics["splits"]["train"]["cases"]
    assert "Classification loss (BCE)" in (folder.path / "report.html").read_text()
    assert len(predictions) == metrics["cases"] > 0
    assert {"id", "reference", "report", "labels", "probabilities"} <= predictions[0].keys()
    assert all(value in (0, 1, None) for row in predictions for value in row["labels"].values())
    assert all(0 <= value <= 1 for row in predictions for value in row["probabilities"].values())


@pytest.mark.slow
@pytest.mark.parametrize("without", ["vitals", "labels", "report", "image"])
def test_a_table_may_lack_any_kind_of_evidence(tiny_config: Config, without: str) -> None:
    nothing = None if without == "image" else []
    table = replace(tiny_config.data.table, **{without: nothing})
    if without == "image":
        table = replace(table, report=[replace(table.report[0], needs=[])])
    config = replace(tiny_config, data=replace(tiny_config.data, table=table))
    train(config)
    assert (RunFolder(config).adapter / "vlm.safetensors").is_file()


def test_batch_size_must_fit_the_processes() -> None:
    assert split_batch(4, 2, processes=1) == (2, 2) and split_batch(4, 4, processes=2) == (2, 1)
    with pytest.raises(UserError, match="not a multiple of micro_batch_size x processes"):
        split_batch(4, 4, processes=3)
