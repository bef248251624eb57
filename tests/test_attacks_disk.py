"""Data that change, processes that meet, disks that fill, other users: what is written stays right and private."""

import importlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import read_json, table_config
from vlm.atomic import open_private, replace_file, replaced, staged
from vlm.config import Config, EvaluationConfig, RunConfig
from vlm.data.fingerprint import contents_fingerprint
from vlm.data.ingest.sources import load_cohort
from vlm.data.prepare.pack import PackOptions, pack
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine
from vlm.inference.many import TableColumns, TableJob
from vlm.inference.parts import MultiProcessJob, RankShare
from vlm.locks import locked, record_lock_holder
from vlm.training.run import train
from vlm.training.run_folder import RunFolder


@pytest.fixture
def data(table_root: Path, tmp_path: Path) -> Path:
    """A copy of the table and its images, to change."""
    return Path(shutil.copytree(table_root, tmp_path / "data"))


def edit(root: Path, change: Callable[[pd.DataFrame], object]) -> None:
    frame = pd.read_csv(root / "cases.csv", dtype=str, keep_default_na=False)
    change(frame)
    frame.to_csv(root / "cases.csv", index=False)


def cell(column: str, value: str, row: int = 0) -> Callable[[Path], None]:
    return lambda root: edit(root, lambda frame: frame.__setitem__(column, _with(frame[column], row, value)))


def _with(cells: pd.Series, row: int, value: str) -> list[str]:
    assert cells[row] != value
    return [*cells[:row], value, *cells[row + 1 :]]


def pixel(root: Path) -> None:
    """The same name and, in a BMP, the same size."""
    picture = cv2.imread(str(root / "images" / "0.png"), cv2.IMREAD_UNCHANGED)
    picture[0, 0] ^= 1
    cv2.imwrite(str(root / "images" / "0.png"), picture)


CHANGES: dict[str, Callable[[Path], None]] = {
    "a label": cell("pathology", "1"),
    "a label that was unknown": cell("pathology", "1", 3),
    "a second label": cell("effusion", "1"),
    "a report": cell("findings", "Nothing at all."),
    "a report that was missing": cell("findings", "Nothing at all.", 4),
    "a vital": cell("glucose", "9.9", 1),
    "half a pressure": cell("blood_pressure", "121/70"),
    "a category": cell("sex", "F"),
    "an image's name": cell("image", "1.png"),
    "an image's pixel": pixel,
    "every label": lambda root: edit(
        root, lambda f: f.__setitem__("effusion", [str(1 - int(v)) for v in f["effusion"]])
    ),
    "two reports": lambda root: edit(
        root, lambda f: f.__setitem__("findings", [f["findings"][1], f["findings"][0], *f["findings"][2:]])
    ),
}
HARMLESS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda root: None,
    "times": lambda root: [os.utime(file, (1, 1)) for file in root.rglob("*.png")] and None,
    "the order": lambda root: edit(root, lambda f: f.__setitem__(list(f.columns), f.iloc[::-1].to_numpy())),
    "a column that is not read": lambda root: edit(root, lambda f: f.__setitem__("note", "x")),
}


def fingerprint(root: Path) -> str:
    return contents_fingerprint(load_cohort(table_config(root)))


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_under_the_same_ids_is_seen(name: str, data: Path) -> None:
    before = fingerprint(data), load_cohort(table_config(data)).fingerprint
    CHANGES[name](data)
    assert load_cohort(table_config(data)).fingerprint == before[1], "the ids and splits say nothing of it"
    assert fingerprint(data) != before[0]


@pytest.mark.parametrize("name", HARMLESS)
def test_what_means_the_same_is_the_same(name: str, data: Path, tmp_path: Path) -> None:
    before = fingerprint(data)
    HARMLESS[name](data)
    shutil.move(data, tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == before


def test_of_many_images_sizes_are_compared(data: Path, monkeypatch) -> None:
    monkeypatch.setattr("vlm.data.fingerprint.MOST_READ", 1000)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    before = fingerprint(data)
    with (data / "images" / "0.png").open("ab") as file:
        file.write(b"x")
    assert fingerprint(data) != before


def test_a_run_resumes_on_the_cases_that_it_began_with_alone(tiny_config: Config, data: Path) -> None:
    config = replace(tiny_config, data=replace(tiny_config.data, root=str(data)))
    folder, cohort = RunFolder(config), load_cohort(config.data)
    known = cohort.fingerprint, contents_fingerprint(cohort)
    folder.create(config, known[0], contents=known[1])
    assert folder.cases.read_text().split() == list(known)
    folder.check(config, known[0], resume=True, contents=known[1])
    CHANGES["every label"](data)
    with pytest.raises(UserError, match="reports, labels, vitals, contexts or images changed under the same ids"):
        folder.check(config, known[0], resume=True, contents=fingerprint(data))
    folder.cases.write_text(known[0] + "\n")  # as an earlier version wrote it
    old = RunFolder(config)
    old.check(config, known[0], resume=True, contents=fingerprint(data))
    assert any("begun by an earlier version; whether reports, labels" in warning for warning in old.warnings)


def test_a_run_resumes_on_the_base_that_it_began_with_alone(tiny_config: Config, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_config.model.llm.base, tmp_path / "base"))
    model = replace(tiny_config.model, llm=replace(tiny_config.model.llm, base=str(base)))
    short = replace(tiny_config.train, max_steps=2)
    config = replace(
        tiny_config, model=model, train=short, evaluation=EvaluationConfig(max_new_tokens=2, ablation=False)
    )
    folder = train(config)
    log, settings = (folder / "log.jsonl").read_text(), (base / "config.json").read_text()
    (base / "config.json").write_text(json.dumps(json.loads(settings) | {"rms_norm_eps": 0.5}))
    with pytest.raises(UserError, match="tiny: the config or tokenizer of the base changed since the run began; put"):
        train(replace(config, train=replace(short, max_steps=4)), resume=True)
    (base / "config.json").write_text(settings)
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] += 0.01
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="tiny: the weights of the base changed since the run began; put them back"):
        train(replace(config, train=replace(short, max_steps=4)), resume=True)
    assert (folder / "log.jsonl").read_text() == log


# ------------------------------------------------------------------------------------ a batch of drafts


@pytest.fixture
def job(data: Path, tmp_path: Path) -> TableJob:
    return TableJob(
        data / "cases.csv", tmp_path / "out" / "drafts.jsonl", data / "images", TableColumns(id="case"), 8, 2
    )


def draft(job: TableJob, model, adapter: Path, resume: bool = False) -> list[dict]:
    job.run(ReportEngine(model), job.check(adapter, model.spec.schema, resume))
    return [json.loads(line) for line in job.output.read_text().splitlines()]


@pytest.mark.parametrize("name", ["a vital", "a report", "an image's name", "every label"])
def test_a_batch_goes_on_with_the_table_that_it_began_with_alone(name, job, data, tiny_model, tiny_adapter) -> None:
    lines = draft(job, tiny_model, tiny_adapter)
    job.output.write_text("".join(json.dumps(line) + "\n" for line in lines[:8]))
    assert draft(job, tiny_model, tiny_adapter, resume=True)[:8] == lines[:8]
    job.output.write_text("".join(json.dumps(line) + "\n" for line in lines[:8]))
    CHANGES[name](data)
    with pytest.raises(UserError, match=r"drafts\.jsonl: the table changed since its first drafts; put it back"):
        draft(job, tiny_model, tiny_adapter, resume=True)
    assert len(job.output.read_text().splitlines()) == 8


def test_a_batch_goes_on_with_the_images_that_it_began_with_alone(job, data, tiny_model, tiny_adapter) -> None:
    draft(job, tiny_model, tiny_adapter)
    (data / "images" / "0.png").unlink()
    with pytest.raises(UserError, match="a size or a name of the images in the table changed since"):
        draft(job, tiny_model, tiny_adapter, resume=True)


def test_a_batch_knows_its_images_by_their_bytes(job, data, tiny_model, tiny_adapter) -> None:
    bitmap, named = data / "images" / "0.png", cv2.imread(str(data / "images" / "0.png"), cv2.IMREAD_UNCHANGED)
    bitmap.write_bytes(cv2.imencode(".bmp", named)[1].tobytes())
    draft(job, tiny_model, tiny_adapter)
    size = bitmap.stat().st_size
    bitmap.write_bytes(cv2.imencode(".bmp", named ^ 1)[1].tobytes())
    assert bitmap.stat().st_size == size
    with pytest.raises(UserError, match="the content, a size or a name of the images in the table changed since"):
        draft(job, tiny_model, tiny_adapter, resume=True)


def test_a_batch_of_an_earlier_version_goes_on_and_says_what_it_cannot_know(
    job, tiny_model, tiny_adapter, capsys
) -> None:
    lines = draft(job, tiny_model, tiny_adapter)
    stamp = read_json(job.metadata_file)
    job.metadata_file.write_text(json.dumps({k: v for k, v in stamp.items() if k not in ("contents", "pictures")}))
    job.output.write_text(json.dumps(lines[0]) + "\n")
    assert len(draft(job, tiny_model, tiny_adapter, resume=True)) == len(lines)
    assert "begun by an earlier version; whether the table and its images" in capsys.readouterr().err
    assert read_json(job.metadata_file) == stamp
    job.metadata_file.write_text("[")
    with pytest.raises(UserError, match=r"drafts\.jsonl\.job\.json: cannot read"):
        draft(job, tiny_model, tiny_adapter, resume=True)


# ------------------------------------------------------------------------------------ two at once


def test_two_at_once_draft_no_row_twice(job, tiny_model, tiny_adapter) -> None:
    metadata = job.check(tiny_adapter, tiny_model.spec.schema, False)
    with locked(job.output):
        with pytest.raises(UserError, match=r"drafts\.jsonl: process \d+ on .* is writing it; wait for it"):
            job.run(ReportEngine(tiny_model), metadata)
        with pytest.raises(UserError, match="is writing it; wait for it"):
            job.check(tiny_adapter, tiny_model.spec.schema, resume=True)
        with pytest.raises(UserError, match="is writing it; wait for it"):
            MultiProcessJob(job, RankShare(0, 2)).run(ReportEngine(tiny_model), metadata)
    assert not job.output.exists()
    with locked(job.output, shared=True):  # those who share the work
        MultiProcessJob(job, RankShare(0, 2)).run(ReportEngine(tiny_model), metadata)
        with pytest.raises(UserError, match="is writing it; wait"):
            job.run(ReportEngine(tiny_model), metadata)
    MultiProcessJob(job, RankShare(1, 2)).run(ReportEngine(tiny_model), metadata)
    assert [json.loads(line)["row"] for line in job.output.read_text().splitlines()] == list(range(2, 26))
    assert {file.name for file in job.output.parent.iterdir()} == {"drafts.jsonl", "drafts.jsonl.job.json"}


def _hold(path: Path, ready, go_on) -> None:
    with locked(path):
        ready.set()
        go_on.wait(20)


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, go_on = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(tmp_path / "out", ready, go_on))
    holder.start()
    assert ready.wait(20)
    with pytest.raises(UserError, match=f"out: process {holder.pid} on .* is writing it"), locked(tmp_path / "out"):
        pass
    holder.kill()
    holder.join()
    assert (tmp_path / ".out.lock").exists(), "a killed process leaves its file"
    with locked(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["pack", "merge", "gguf", "evaluation"])
def test_two_at_once_write_no_output_together(what: str, tiny_adapter, data, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"

    def write() -> None:
        from vlm.adapter.export.gguf import write_lora
        from vlm.adapter.export.merge import merge
        from vlm.evaluation.run import test_adapter as evaluate

        options = ["--data.image_size", "32", "--evaluation.ablation", "false", "--evaluation.bootstrap_draws", "2",
                   "--data.table.id", "case", "--data.table.images", "images"]  # fmt: skip
        {
            "pack": lambda: pack(table_config(data), out, PackOptions()),
            "merge": lambda: merge(str(tiny_adapter), out, most=1),
            "gguf": lambda: write_lora(str(tiny_adapter), out),
            "evaluation": lambda: evaluate(str(tiny_adapter), str(data / "cases.csv"), out, None, options),
        }[what]()

    with locked(out), pytest.raises(UserError, match=r"out: process \d+ on .* is writing it"):
        write()
    assert not out.exists()


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
