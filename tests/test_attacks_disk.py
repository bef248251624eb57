"""Disks that fill, other users, other systems: what is written stays whole and private."""

import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file

from tests.changed_tables import data, draft, job
from tests.conftest import table_config
from vlm.atomic import open_private, replace_file, replaced, staged
from vlm.config import Config, EvaluationConfig, RunConfig
from vlm.data.ingest.sources import load_cohort
from vlm.data.prepare.pack import PackOptions, pack
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine
from vlm.inference.parts import MultiProcessJob, RankShare
from vlm.locks import record_lock_holder
from vlm.training.run import train
from vlm.training.run_folder import RunFolder

__all__ = ["data", "job"]  # fixtures


# ------------------------------------------------------------------------------------ a disk that is full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def _evaluate(adapter: Path, data: Path, out: Path) -> None:
    from vlm.evaluation.run import test_adapter as evaluate

    options = ["--data.image_size", "32", "--evaluation.ablation", "false", "--evaluation.bootstrap_draws", "2",
               "--evaluation.max_new_tokens", "2", "--data.table.id", "case", "--data.table.images", "images",
               "--data.table.report", '[{"column": "findings"}]']  # fmt: skip
    evaluate(str(adapter), str(data / "cases.csv"), out, None, options)


def _merge(adapter: Path, data: Path, out: Path) -> None:
    from vlm.adapter.export.merge import merge

    merge(str(adapter), out, most=1)


def _gguf(adapter: Path, data: Path, out: Path) -> None:
    from vlm.adapter.export.gguf import write_lora

    write_lora(str(adapter), out)


def _save(adapter: Path, data: Path, out: Path) -> None:
    with staged(out) as staging:
        for file in adapter.iterdir():
            shutil.copyfile(file, staging / file.name)


def _safetensors(adapter: Path, data: Path, out: Path) -> None:
    with staged(out) as staging:
        save_file({"a": torch.zeros(10_000)}, staging / "a.safetensors")


def _figure(adapter: Path, data: Path, out: Path) -> None:
    from vlm.evaluation.figures import correlation_figure

    correlation_figure(np.random.default_rng(0).random((50, 3)), ["a", "b", "c"], out, "")


def _check(adapter: Path, data: Path, out: Path) -> None:
    from vlm.data.prepare.check import CheckOptions, check_table
    from vlm.data.prepare.check_page import write_html

    write_html(check_table(data / "cases.csv", CheckOptions(None, {}, ["pathology"])), out)


WRITERS = {
    "evaluation": _evaluate,
    "merge": _merge,
    "gguf": _gguf,
    "adapter": _save,
    "safetensors": _safetensors,
    "figure": _figure,
    "check": _check,
    "pack": lambda adapter, data, out: pack(table_config(data), out, PackOptions()),
    "text": lambda adapter, data, out: replace_file(out, "x" * 100_000),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_no_half(what: str, disk: Path, data: Path, tiny_adapter: Path) -> None:
    (disk / "filling").write_bytes(b"x" * 12_000)
    with pytest.raises(UserError, match=r"out.*: cannot be written: No space left on device$"):
        WRITERS[what](tiny_adapter, data, disk / "out")
    assert [path.name for path in disk.iterdir()] == ["filling"]


def test_an_earlier_file_stays_where_the_new_one_has_no_room(disk: Path) -> None:
    replace_file(disk / "out", "first")
    with pytest.raises(UserError, match="out: cannot be written: No space left"):
        replace_file(disk / "out", "x" * 100_000)
    with pytest.raises(UserError, match="out: cannot be written: No space left"), replaced(disk / "out") as partial:
        partial.write_bytes(b"x" * 100_000)
    assert (disk / "out").read_text() == "first" and len(list(disk.iterdir())) == 1


def test_drafts_on_a_full_disk_go_on_later(disk, job, tiny_model, tiny_adapter) -> None:
    full = replace(job, output=disk / "drafts.jsonl")
    (disk / "filling").write_bytes(b"x" * 8_000)
    with pytest.raises(UserError, match=r"drafts\.jsonl.*: cannot (be written|write): No space left"):
        draft(full, tiny_model, tiny_adapter)
    (disk / "filling").unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
    assert [line["row"] for line in draft(full, tiny_model, tiny_adapter, resume=True)] == list(range(2, 26))


# ------------------------------------------------------------------------------------ other users


def wide(root: Path) -> list[str]:
    """What others than the owner may read or enter."""
    return [str(path.relative_to(root)) for path in (root, *root.rglob("*")) if path.lstat().st_mode & 0o077]


@pytest.fixture
def as_usual() -> Iterator[None]:
    """The umask of most systems."""
    before = os.umask(0o022)
    yield
    assert os.umask(before) == 0o022, "it is as it was"


def test_a_whole_run_is_its_owners_alone(as_usual, tiny_config: Config, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    options = EvaluationConfig(batch_size=8, max_new_tokens=2, bootstrap_draws=2, ablation=False)
    tracked = replace(tiny_config.train, report_to=["tensorboard"])
    folder = train(replace(tiny_config, evaluation=options, train=tracked))
    files = {path.name for path in folder.rglob("*")}
    assert {"config.yaml", "log.jsonl", "predictions.jsonl", "report.html", "losses.png", "trainable.safetensors",
            "adapter_config.json", "README.md"} <= files  # fmt: skip
    assert any("tfevents" in name for name in files) and wide(tmp_path / "runs") == []


def test_a_folder_of_the_users_stays_as_it_is(as_usual, tiny_config: Config, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir(mode=0o755)
    (runs / "tiny").mkdir(mode=0o755)
    folder = RunFolder(tiny_config)
    with folder.locked():
        folder.create(tiny_config, "a", contents="b")
        assert sorted(wide(runs)) == [".", "tiny"]
    replace_file(runs / "file", "x")
    with open_private(runs / "other", "a") as file:
        file.write("x")
    assert sorted(wide(runs)) == [".", "tiny"]


@pytest.mark.parametrize("what", sorted(WRITERS))
def test_what_is_written_is_its_owners_alone(what: str, as_usual, data: Path, tiny_adapter: Path, tmp_path) -> None:
    WRITERS[what](tiny_adapter, data, tmp_path / "out")
    assert (tmp_path / "out").exists() and wide(tmp_path / "out") == []


@pytest.mark.parametrize("planted", ["a link", "a file"])
def test_nothing_is_written_to_what_another_user_planted(planted: str, as_usual, tmp_path: Path) -> None:
    partial, elsewhere = tmp_path / ".out.partial", tmp_path / "elsewhere"
    elsewhere.write_text("theirs")
    partial.symlink_to(elsewhere) if planted == "a link" else os.link(elsewhere, partial)
    replace_file(tmp_path / "out", "a patient's")
    assert (tmp_path / "out").read_text() == "a patient's" and elsewhere.read_text() == "theirs"
    assert not (tmp_path / "out").is_symlink() and (tmp_path / "out").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("shared", [False, True])
def test_drafts_are_their_owners_alone(shared: bool, as_usual, job, tiny_model, tiny_adapter) -> None:
    if shared:
        metadata = job.check(tiny_adapter, tiny_model.spec.schema, False)
        MultiProcessJob(job, RankShare(0, 2)).run(ReportEngine(tiny_model), metadata)
    else:
        draft(job, tiny_model, tiny_adapter)
    assert len(list(job.output.parent.rglob("*"))) >= 2 and wide(job.output.parent) == []


def test_rows_in_the_temporary_folder_are_their_owners_alone(as_usual, data: Path) -> None:
    from vlm.data.storage import _folder, new_array

    load_cohort(table_config(data))
    new_array((3, 4))
    assert len(list(_folder().iterdir())) >= 2 and wide(_folder()) == []


# ------------------------------------------------------------------------------------ other systems


def _on_another_system(missing: set[str], folder: Path, answers) -> None:
    """In a process of its own: our modules are imported again, without what that system does not have."""
    del os.posix_fallocate
    for name in [name for name in sys.modules if name.split(".")[0] == "vlm"] + sorted(missing):
        del sys.modules[name]
    sys.modules |= dict.fromkeys(missing)  # importing it raises ImportError
    if missing:
        psutil.Process = lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=5))
        sys.modules["msvcrt"] = SimpleNamespace(LK_NBLCK=2, locking=lambda *_: None)
    room = importlib.import_module
    for name in (
        "training.run",
        "inference.command",
        "inference.parts",
        "evaluation.run",
        "training.monitor.watch",
        "app",
    ):
        room(f"vlm.{name}")
    run = room("vlm.training.run_folder").RunFolder(room("vlm.config").Config(run=RunConfig(folder=str(folder))))
    with run.locked(), room("vlm.locks").locked(folder / "out"):
        room("vlm.atomic").replace_file(folder / "file", "x")
    array = room("vlm.data.storage").new_array((1000, 1000))
    array[:] = 1
    peak = room("vlm.training.monitor.throughput").peak_memory(torch.device("cpu"))
    locks = room("vlm.locks").fcntl is not None
    answers.put((float(array.sum()), os.path.getsize(array.filename), peak == 5, locks))


@pytest.mark.parametrize("missing", [set(), {"fcntl", "resource"}], ids=["a Mac", "Windows"])
def test_all_is_imported_and_writes_on_another_system(missing: set[str], tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    process = context.Process(target=_on_another_system, args=(missing, tmp_path, answers))
    process.start()
    answer = answers.get(timeout=120)
    process.join()
    assert answer == (1e6, 4_000_000, bool(missing), not missing) and (tmp_path / "file").read_text() == "x"


def test_a_lock_of_a_run_names_its_process(tiny_config: Config) -> None:
    folder = RunFolder(tiny_config)
    with folder.locked():
        assert record_lock_holder(folder.lock) is None, "one's own is none of another"
