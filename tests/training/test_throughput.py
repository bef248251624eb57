"""What the log says of speed, waiting and memory; and the trackers that get it."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from vlm.config import Config, LossConfig
from vlm.data.collate import Collator
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.training.monitor.throughput import MIB, Throughput, peak_memory, speeds
from vlm.training.run import build_loop, build_model, case_dataset, train
from vlm.training.run_folder import RunFolder, read_log

CPU = torch.device("cpu")


def test_counts_are_those_of_the_batch(tiny_config: Config, tiny_model) -> None:
    config = replace(tiny_config, data=replace(tiny_config.data, dropout=replace(tiny_config.data.dropout, image=0)))
    dataset = case_dataset(config, tiny_model.spec, load_cohort(config.data), "train")
    examples = [dataset[index] for index in range(len(dataset))]
    batch = Collator(tiny_model.prompt)(examples)
    throughput = Throughput(CPU)
    throughput.count(batch, text=True)
    throughput.count(batch, text=False)  # a head-only step: nothing is read by the language model
    samples, tokens, supervised, images = throughput.row()[:4].tolist()
    reports = [len(tiny_model.prompt.report_ids(e["report"])) if e["report"] else 0 for e in examples]
    prompt = sum(map(len, tiny_model.prompt.ids())) + tiny_model.evidence_tokens
    assert 0 in reports, "a case without a report is among them"
    assert samples == 2 * len(examples) and supervised == sum(reports)
    assert tokens == sum(prompt + report for report in reports if report)
    assert images == 2 * sum(bool(e["has_image"]) for e in examples) < samples
    assert throughput.row()[:4].tolist() == [0, 0, 0, 0], "a row begins anew"


def test_the_wait_is_the_time_until_a_batch_is_there() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.05)
            yield number

    throughput, batches = Throughput(CPU), slow()
    assert throughput.read(batches, 2) == [0, 1]
    time.sleep(0.1)
    throughput.end_step()
    row = throughput.row()
    found = speeds(row[None])
    assert 0.1 <= row[5] < row[4] and row[6] == 1
    assert found["step_s"] >= 0.2 and found["data_wait"] == pytest.approx(float(row[5] / row[4]))
    assert throughput.read(batches, 2) == [2], "the loader goes on where it was"
    assert not any("_rank" in name for name in found), "one process alone is the run"


def test_several_processes_stand_side_by_side() -> None:
    rows = torch.tensor([[8, 80, 16, 4, 2.0, 0.5, 2, 100.0], [8, 40, 16, 8, 1.0, 0.1, 2, 300.0]], dtype=torch.float64)
    found = speeds(rows)
    assert found["samples_per_s"] == 8 and found["tokens_per_s"] == 60 and found["step_s"] == 1
    assert found["data_wait"] == pytest.approx(0.2) and found["memory_mib"] == 300
    assert found["tokens_per_s_rank0"] == 40 and found["tokens_per_s_rank1"] == 40
    assert (found["memory_mib_rank0"], found["memory_mib_rank1"]) == (100, 300)
    assert found["data_wait_rank1"] == pytest.approx(0.1)


def test_the_memory_of_a_cpu_is_what_the_process_has_held() -> None:
    before = peak_memory(CPU)
    held = torch.ones(64 * MIB // 4)
    assert 64 * MIB < before + held.nbytes * 0.5 <= peak_memory(CPU) + 64 * MIB
    assert peak_memory(CPU) >= before > 64 * MIB


def logged(config: Config) -> list[dict]:
    """Train without the test at the end; the rows of training steps."""
    folder, cohort = RunFolder(config), load_cohort(config.data)
    folder.create(config, cohort.fingerprint)
    build_loop(config, build_model(config, cohort, CPU, torch.float32), cohort, folder).run()
    return [row for row in read_log(folder.log) if "loss" in row]


@pytest.mark.slow
def test_rows_hold_the_speeds_and_tensorboard_gets_them_by_name(tiny_config: Config, monkeypatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    changed = replace(tiny_config.train, report_to=["tensorboard"], micro_batch_size=2, log_steps=2)
    config = replace(tiny_config, train=changed, loss=LossConfig(alpha=0.4, head_only_steps=2))
    rows = logged(config)
    names = {"samples_per_s", "tokens_per_s", "supervised_tokens_per_s", "images_per_s"}
    assert all({*names, "step_s", "data_wait", "memory_mib"} <= row.keys() for row in rows)
    assert rows[0]["tokens_per_s"] == 0 < rows[1]["tokens_per_s"], "in head-only steps no token is read"
    assert all(row["samples_per_s"] == pytest.approx(4 / row["step_s"]) for row in rows)
    assert all(0 < row["data_wait"] < 1 and row["memory_mib"] > 64 for row in rows)
    events = accumulator.EventAccumulator(str(RunFolder(config).path / "tensorboard" / config.run.name))
    events.Reload()
    for name in (*names, "loss_bce", "data_wait", "memory_mib"):
        told = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert told == pytest.approx({row["step"]: row[name] for row in rows}, rel=1e-5), name
    assert events.Scalars("eval/loss_ce")
    texts = " ".join(file.read_text() for file in RunFolder(config).path.rglob("hparams.yml"))
    assert "max_steps" in texts, "the options are told"
    for private in (config.data.root, "cases.csv", "glucose", "pathology", "opacity", "c1.png"):
        assert private not in texts


@pytest.mark.parametrize(
    ("name", "message"),
    [("tensorbord", "no tracker tensorbord; did you mean tensorboard"), ("x", "accelerate has aim, "),
     ("clearml", "clearml is not installed; pip install clearml")],
)  # fmt: skip
def test_a_tracker_that_is_not_there_is_said_before_anything_is_read(tiny_config: Config, name, message) -> None:
    data = replace(tiny_config.data, root="/no/such/folder")
    config = replace(tiny_config, train=replace(tiny_config.train, report_to=[name]), data=data)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not RunFolder(config).path.exists()
