"""How a run ends before its time: each one line, nothing lost, no broken number written; see docs/reliability.md."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import read_json
from tests.training_jobs import trained, with_train
from vlm.atomic import write_manifest
from vlm.config import Config, EvaluationConfig, RunConfig
from vlm.data.ingest.sources import load_cohort
from vlm.errors import Stopped, UserError, run_program
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.checkpoints import read_weights
from vlm.training.ending import StopAtSignal, one_line_endings
from vlm.training.run import build_loop, build_model, train
from vlm.training.run_folder import RunFolder, newest_whole, read_log


def break_loss(model: ClinicalVLM) -> None:
    model.joint.head[-1].weight.data[0] = float("nan")


def break_gradient(model: ClinicalVLM) -> None:
    model.joint.head[-1].weight.register_hook(lambda gradient: gradient / 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "how"), [("loss", break_loss), ("gradient", break_gradient)], ids=["loss", "gradient"]
)
def test_a_broken_number_stops_before_the_step(what: str, how: Callable, tiny_config: Config, monkeypatch) -> None:
    folder, cohort = RunFolder(tiny_config), load_cohort(tiny_config.data)
    folder.create(tiny_config, cohort.fingerprint)
    model = build_model(tiny_config, cohort, torch.device("cpu"), torch.float32)
    loop = build_loop(tiny_config, model, cohort, folder)
    step = loop.step

    def broken(batches: list) -> tuple:
        if loop.state.global_step + 1 == 3:
            how(model)
        return step(batches)

    monkeypatch.setattr(loop, "step", broken)
    with pytest.raises(UserError, match=f"^step 3: the {what} is (nan|inf|-inf), so the step is not taken") as error:
        loop.run()
    named = str(error.value).split("cases ")[1].split(", or lower")[0].split(", ")
    assert len(named) == 4 and set(named) <= set(cohort.split("train")["id"]) and "\n" not in str(error.value)
    checkpoint, broken = newest_whole(folder.checkpoints)
    assert checkpoint == folder.checkpoints / "checkpoint-2" and not broken
    for name, value in read_weights(checkpoint).items():
        now = model.trainable_parameters()[name]
        assert torch.equal(value, now) or (what == "loss" and now.isnan().any()), f"{name} moved"
    assert max(row["step"] for row in read_log(folder.log)) == 2 and "NaN" not in folder.log.read_text()
    texts = [path.read_text() for path in folder.path.rglob("*.json*")]
    assert not any(f'"{case}"' in text for text in texts for case in named), "ids are for the user's eyes alone"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory of the CPU", "memory of a GPU", "memory of Python"])
def test_exhausted_memory_is_one_line(kind: str, tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, steps = ClinicalVLM.forward, []

    def exhausted(self, *arguments, **options):
        steps.append(self.training)
        if sum(steps) == 3:
            if kind == "memory of the CPU":
                torch.empty(2**60)
            raise MemoryError if kind == "memory of Python" else torch.OutOfMemoryError("CUDA out of memory.\nTried")
        return forward(self, *arguments, **options)

    folder = RunFolder(tiny_config)
    with monkeypatch.context() as patch:
        patch.setattr(ClinicalVLM, "forward", exhausted)
        message = r"^out of memory; set a lower --train.micro_batch_size .*; then go on from step 2 with --resume$"
        with pytest.raises(UserError, match=message), one_line_endings(folder):
            trained(tiny_config)
    if kind == "memory of Python":
        smaller = with_train(tiny_config, "tiny", micro_batch_size=2)
        trained(smaller, str(folder.check(smaller, load_cohort(smaller.data).fingerprint, resume=True)))
        assert [row["step"] for row in read_log(folder.log) if "loss" in row] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_run_on_a_full_disk_goes_on_when_there_is_room(tiny_config: Config, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    config = replace(
        with_train(tiny_config, "tiny"), run=RunConfig(name="tiny", folder=str(disk / "runs")),
        evaluation=EvaluationConfig(batch_size=8, max_new_tokens=1, bootstrap_draws=2, ablation=False),
    )  # fmt: skip
    try:
        with pytest.raises(UserError, match=r"checkpoint-4: cannot be written: No space left.*from step 2 with --res"):
            train(config)
        subprocess.run(["mount", "-o", "remount,size=4200k", disk], check=True)
        with pytest.raises(UserError, match=r"tiny: cannot be written: No space left on device; .*from step 4 with"):
            train(config, resume=True)  # the steps are made, and now the adapter is too much
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        train(config, resume=True)
        assert [row["step"] for row in read_log(RunFolder(config).log) if "loss" in row] == [1, 2, 3, 4]
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(UserError, match=r"runs/tiny: cannot be written: Read-only file system; then go on"):
            train(config, resume=True)
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


HOLD = """
import sys
from vlm.config import Config, RunConfig
from vlm.training.run_folder import RunFolder
folder = RunFolder(Config(run=RunConfig(name="tiny", folder=sys.argv[1])))
with folder.locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_in_the_folder_is_refused(tiny_config: Config) -> None:
    command = [sys.executable, "-c", HOLD, tiny_config.run.folder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        for resume in (False, True):
            with pytest.raises(UserError, match=rf"runs/tiny: process {other.pid} on .* is writing this run; wait"):
                train(tiny_config, resume)
        other.kill()
    folder = RunFolder(tiny_config)
    assert folder.lock.exists(), "of a dead process"
    with folder.locked():
        assert str(os.getpid()) in folder.lock.read_text()
    assert not folder.path.exists(), "nothing was written, and nothing stays"


def test_a_second_signal_ends_at_once(capfd: pytest.CaptureFixture[str], restored_sigint: None) -> None:
    before = signal.getsignal(signal.SIGINT)
    stop = StopAtSignal()
    with stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        assert "stopping after this step; once more to stop at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before

    def stopped() -> None:
        raise Stopped("stopped and saved", signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        run_program(stopped)
    assert end.value.code == 143 and capfd.readouterr().err == "\nstopped and saved\n"


def test_no_pickle_is_read_on_a_resume(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(with_train(tiny_config, "tiny", max_steps=4))
    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("a pickle was read"))
    checkpoint = RunFolder(tiny_config).checkpoints / "checkpoint-2"
    assert trained(tiny_config, str(checkpoint)).state.global_step == 4


@pytest.mark.slow
def test_early_stopping_counts_on_after_a_resume(tiny_config: Config) -> None:
    still = {"learning_rate": 0.0, "lora_learning_rate": 0.0, "vision_learning_rate": 0.0}
    config = with_train(tiny_config, "early", max_steps=40, eval_steps=1, patience=2, keep_checkpoints=3, **still)
    assert trained(config).state.global_step == 3
    folder = RunFolder(config)
    assert trained(config, str(folder.checkpoints / "checkpoint-2")).state.global_step == 3
    cohort = load_cohort(config.data)
    model = build_model(config, cohort, torch.device("cpu"), torch.float32)
    loop = build_loop(config, model, cohort, folder)
    loop.resume(folder.checkpoints / "checkpoint-3")
    assert loop.finished


@pytest.mark.slow
def test_broken_checkpoints_are_named_and_passed_over(tiny_config: Config) -> None:
    trained(tiny_config)
    cases = load_cohort(tiny_config.data).fingerprint

    def found() -> tuple[Path | None, list[str]]:
        folder = RunFolder(tiny_config)
        return folder.check(tiny_config, cases, resume=True), folder.warnings

    where = RunFolder(tiny_config).checkpoints
    assert found() == (where / "checkpoint-4", [])
    (where / "checkpoint-4" / "optimizer.safetensors").write_bytes(b"")
    checkpoint, warnings = found()
    assert checkpoint == where / "checkpoint-2" and len(warnings) == 1
    assert "a checkpoint is not whole and is passed over: " in warnings[0]
    assert "checkpoint-4/optimizer.safetensors: damaged: 0 bytes, " in warnings[0]
    trained(tiny_config, str(checkpoint))
    assert found() == (where / "checkpoint-4", []), "it is written again"
    for checkpoint in where.iterdir():
        (checkpoint / "manifest.json").unlink()  # as those of earlier versions were
    with pytest.raises(UserError, match=r"no whole checkpoint to resume from; .*-4/manifest.json: is missing"):
        found()


def test_a_lost_best_checkpoint_is_said(tiny_config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    config = with_train(tiny_config, "best", max_steps=6)
    trained(config)
    checkpoint = RunFolder(config).checkpoints / "checkpoint-4"
    state = read_json(checkpoint / "trainer_state.json") | {"best_global_step": 1}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    write_manifest(checkpoint)
    assert trained(config, str(checkpoint)).state.best_global_step == 6
    assert "warning: the best checkpoint so far is lost" in capsys.readouterr().err


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tiny_config: Config) -> None:
    folder, cases = RunFolder(tiny_config), load_cohort(tiny_config.data).fingerprint
    folder.create(tiny_config, cases)
    assert folder.check(tiny_config, cases, resume=True) is None
    assert "no checkpoint was written yet, so the run starts at its first step" in folder.warnings[0]
    for name in (".config.yaml.partial", ".lock"):  # of a run that died before it had a config
        (folder.path / name).write_text("x")
    folder.config.unlink(), folder.cases.unlink()
    assert RunFolder(tiny_config).check(tiny_config, cases, resume=False) is None
