"""What a folder promises on a disk that dies, fills or breaks, and a checkpoint on it; see docs/reliability.md."""

import errno
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.corruption import campaign
from tests.faults import Died, Disk, die, install, refuse
from vlm.atomic import MANIFEST, replace_file, staged, verify_manifest, write_file, write_manifest
from vlm.errors import UserError
from vlm.training import checkpoints
from vlm.training.run_folder import checkpoint_folder, newest_whole
from vlm.training.state import TrainState


class Job:
    """A real optimizer and schedule on a few weights: what a checkpoint holds, without a language model."""

    def __init__(self, steps: int, width: int = 40) -> None:
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.Linear(width, 1))
        groups = [{"params": [layer.weight, layer.bias], "lr": 1e-2 * (n + 1)} for n, layer in enumerate(self.layers)]
        self.optimizer = torch.optim.AdamW(groups)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (step + 3))
        self.state = TrainState()
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        self.layers(torch.randn(8, self.layers[0].in_features)).square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.state.global_step += 1
        self.state.log_history.append({"loss": random.random(), "step": self.state.global_step})

    def save(self, folder: Path) -> None:
        processes = checkpoints.process_state(torch.arange(5.0))
        write = (self.optimizer.state_dict(), self.scheduler.state_dict(), {k: v[None] for k, v in processes.items()})
        step = self.state.global_step
        checkpoints.write_checkpoint(
            checkpoint_folder(folder, step), self.layers.state_dict(), *write, self.state.to_dict()
        )
        checkpoints.prune(folder, step, keep=1, best=None)

    def load(self, checkpoint: Path) -> None:
        self.layers.load_state_dict(checkpoints.read_weights(checkpoint))
        optimizer, scheduler = checkpoints.read_optimizer(checkpoint)
        self.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict(scheduler)
        self.state = TrainState.read(checkpoint / checkpoints.STATE)
        checkpoints.set_random_state({k: v[0] for k, v in checkpoints.read_processes(checkpoint).items()})


@pytest.fixture(autouse=True)
def same_random_numbers() -> Iterator[None]:
    random.seed(0)
    np.random.seed(0)
    yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of a run at step 2; `tmp_path/other` holds the one of step 3 for comparison."""
    job = Job(2)
    job.save(tmp_path / "checkpoints")
    job.step()
    job.save(tmp_path / "other")
    return tmp_path / "checkpoints"


def fresh(folder: Path, work: Path) -> Path:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(folder, work / "checkpoints")
    return work / "checkpoints"


def contents(checkpoint: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in checkpoint.iterdir()}


def next_checkpoint(checkpoint: Path) -> Callable[[Path], None]:
    """What a run does after a checkpoint: a step, and the next one."""

    def save(where: Path) -> None:
        job = Job(0)
        job.load(checkpoint)
        job.step()
        job.save(where)

    return save


def test_a_loaded_job_goes_on_to_the_bit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((torch, "load"), (torch, "save"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("a pickle on the path of a checkpoint"))
    random.gauss(0, 1), np.random.normal()  # both hold a second normal number now
    whole = Job(3)
    whole.save(tmp_path / "three")
    drawn = [random.gauss(0, 1), np.random.normal(), np.random.rand(), torch.rand(3).tolist()]
    for _ in range(4):
        whole.step()
    resumed = Job(0)
    resumed.load(tmp_path / "three" / "checkpoint-3")
    assert [random.gauss(0, 1), np.random.normal(), np.random.rand(), torch.rand(3).tolist()] == drawn
    for _ in range(4):
        resumed.step()
    for a, b in zip(whole.layers.state_dict().values(), resumed.layers.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert resumed.state.log_history == whole.state.log_history
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_a_nested_state_with_shared_tensors_is_whole_again() -> None:
    """8-bit optimizers nest their state, and all of it shares one table."""
    table = torch.arange(4.0)
    state = {"state": {0: {"quantised": {"codes": torch.ones(3, dtype=torch.uint8), "table": table}, "step": 3}},
             "param_groups": [{"params": [0], "betas": (0.9, 0.999), "fused": None}]}  # fmt: skip
    tensors, rest = checkpoints.split_tensors(state)
    back = checkpoints.join_tensors(json.loads(json.dumps(rest)), tensors)
    assert back["state"]["0"]["quantised"]["table"] is table and back["state"]["0"]["step"] == 3
    assert back["param_groups"] == [{"params": [0], "betas": [0.9, 0.999], "fused": None}]


@pytest.mark.parametrize("power", [False, True], ids=["the process dies", "the power fails"])
def test_death_at_every_change_leaves_a_checkpoint_that_loads(
    power: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = contents(folder / "checkpoint-2"), contents(tmp_path / "other" / "checkpoint-3")
    save, work = next_checkpoint(folder / "checkpoint-2"), tmp_path / "work"
    with monkeypatch.context() as patch:
        counted = install(Disk(), patch)
        save(fresh(folder, work))
    found = []
    for at in range(1, counted.count + 1):
        where = fresh(folder, work)
        with monkeypatch.context() as patch:
            disk = install(Disk(at, die), patch)
            with pytest.raises(Died):
                save(where)
        if power:
            disk.lose_power(work)
        newest, broken = newest_whole(where)
        assert newest is not None and (power or not broken), disk.changes[-1]
        assert contents(newest) == (before if newest.name == "checkpoint-2" else after), disk.changes[-1]
        Job(0).load(newest)
        found.append(newest.name)
        save(where)  # and what was left behind is in nobody's way
        assert [path.name for path in where.iterdir()] == ["checkpoint-3"]
    print(f"died at each of {counted.count} changes ({'power' if power else 'process'}), 0 lost")
    assert counted.count > 30 and set(found) == {"checkpoint-2", "checkpoint-3"} and found == sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=["full", "failing", "read-only"])
def test_a_disk_that_refuses_at_any_change_costs_nothing(
    number: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, work = next_checkpoint(folder / "checkpoint-2"), tmp_path / "work"
    refused = 0
    for at in range(1, 60):
        where = fresh(folder, work)
        with monkeypatch.context() as patch:
            install(Disk(at, refuse(number)), patch)
            try:
                save(where)
                continue
            except UserError as error:
                assert str(error) == f"{where}/checkpoint-3: cannot be written: {os.strerror(number)}"
        refused += 1
        assert {path.name for path in where.iterdir()} - {"checkpoint-3"} == {"checkpoint-2"}, "no half is left"
        newest, broken = newest_whole(where)
        assert newest is not None and not broken
        Job(0).load(newest)
    print(f"refused at {refused} changes ({os.strerror(number)}), 0 lost")
    assert refused > 15


def test_a_disk_that_is_really_full(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        shutil.copytree(folder, disk / "checkpoints")
        big = Job(3, width=400)
        with pytest.raises(UserError, match=r"checkpoint-3: cannot be written: No space left on device$"):
            big.save(disk / "checkpoints")
        assert [path.name for path in (disk / "checkpoints").iterdir()] == ["checkpoint-2"]
        Job(0).load(disk / "checkpoints" / "checkpoint-2")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(UserError, match=r"checkpoint-3: cannot be written: Read-only file system$"):
            next_checkpoint(folder / "checkpoint-2")(disk / "checkpoints")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("where", ["weights", "state of the optimizer"])
def test_no_nan_is_written(where: str, folder: Path) -> None:
    job = Job(3)
    values = job.layers[1].weight.data if where == "weights" else job.optimizer.state[job.layers[1].weight]["exp_avg"]
    values[0, 0] = float("nan")
    with pytest.raises(UserError, match=f"checkpoint-3: not written: the {where} hold a value that is not finite"):
        job.save(folder)
    assert newest_whole(folder) == (folder / "checkpoint-2", [])
    job = Job(3)
    job.state.log_history.append({"loss_ce": float("nan"), "step": 3})
    job.save(folder)
    text = (folder / "checkpoint-3" / checkpoints.STATE).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["log_history"][-1]["loss_ce"] is None


def test_old_checkpoints_go_and_the_best_stays(folder: Path) -> None:
    job = Job(2)
    for _ in range(4):
        job.step()
        job.save(folder.parent / "new")
    assert [path.name for path in (folder.parent / "new").iterdir()] == ["checkpoint-6"]
    for step in (1, 3, 4, 9):
        shutil.copytree(folder / "checkpoint-2", folder / f"checkpoint-{step}")
    checkpoints.prune(folder, 4, keep=2, best=1)
    assert sorted(path.name[-1] for path in folder.iterdir()) == ["1", "3", "4", "9"], "9 is of no step yet made"


def loads(checkpoint: Path) -> None:
    Job(0).load(checkpoint)


def test_every_damage_to_a_checkpoint_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    """A sample; `make soak` tries 1,000."""
    tried = campaign(folder / "checkpoint-2", tmp_path / "other" / "checkpoint-3", tmp_path / "work", loads, 150)
    assert len(tried) == 8


@pytest.mark.soak
def test_a_thousand_damages_to_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    tried = campaign(folder / "checkpoint-2", tmp_path / "other" / "checkpoint-3", tmp_path / "work", loads, 1000, 1)
    print(f"damaged {tried.total()} checkpoints, 0 loaded: {dict(tried)}")


def test_a_manifest_is_accepted_only_as_it_was_written(folder: Path) -> None:
    file = folder / "checkpoint-2" / MANIFEST
    written = json.loads(file.read_text())

    def says(change: Callable[[dict], object], sign: bool = True) -> str:
        values = json.loads(json.dumps(written))
        change(values)
        if sign:
            values["sha256"] = hashlib.sha256(json.dumps(values["files"]).encode()).hexdigest()
        file.write_text(json.dumps(values, indent=2) + "\n")
        with pytest.raises(UserError) as error:
            loads(folder / "checkpoint-2")
        return str(error.value)

    assert "it does not list optimizer.json" in says(lambda m: m["files"].pop("optimizer.json"))
    assert "gone.json: cannot be read: No such file" in says(
        lambda m: m["files"].update({"gone.json": m["files"]["scheduler.json"]})
    )
    assert "it is not as it was written" in says(lambda m: m.update(format=2))
    assert "it is not as it was written" in says(lambda m: m["files"].pop("optimizer.json"), sign=False)
    for odd in ([], {"scheduler.json": 3}, None):
        assert f"{MANIFEST}: damaged" in says(lambda m, odd=odd: m.update(files=odd))
    file.unlink()
    with pytest.raises(UserError, match=r"manifest\.json: is missing; not written to its end, or by an earlier"):
        loads(folder / "checkpoint-2")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(text: str) -> None:
        with staged(tmp_path / "adapter") as staging:
            write_file(staging / "words", text.encode())

    with monkeypatch.context() as patch:
        counted = install(Disk(), patch)
        write("first")
    for at in range(1, counted.count + 5):
        shutil.rmtree(tmp_path / "adapter")
        write("first")
        with monkeypatch.context() as patch:
            disk = install(Disk(at, die), patch)
            try:
                write("second")
            except Died:
                disk.lose_power(tmp_path)
        if not (tmp_path / "adapter").exists():  # dead between two renames: the next writer puts it back first
            with pytest.raises(RuntimeError), staged(tmp_path / "adapter"):
                raise RuntimeError
        verify_manifest(tmp_path / "adapter", ["words"])
        assert (tmp_path / "adapter" / "words").read_text() in ("first", "second")
    write("third")
    (tmp_path / "adapter" / "words").write_text("edited")
    (tmp_path / "adapter" / "note").write_text("sealed again by hand")
    write_manifest(tmp_path / "adapter")
    verify_manifest(tmp_path / "adapter", ["words", "note"])


def test_a_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    for at in range(1, 7):
        replace_file(file, "first")
        with monkeypatch.context() as patch:
            disk = install(Disk(at, die), patch)
            try:
                replace_file(file, "second")
            except Died:
                disk.lose_power(tmp_path)
        assert file.read_text() in ("first", "second")
    assert file.read_text() == "second"
