"""A table drafted by several processes: one output, each row once, whoever dies on the way."""

import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from tests.forks import PROJECT, Forks
from vlm.adapter import save
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine
from vlm.inference.many import Counts, TableColumns, TableJob
from vlm.inference.parts import MultiProcessJob, RankShare
from vlm.model.clinical_vlm import ClinicalVLM


@dataclass(frozen=True)
class Work:
    """A table, and what drafts it."""

    job: TableJob
    model: ClinicalVLM
    adapter: Path

    def draft(self, rank: int, of: int, resume: bool = False) -> Counts:
        """What one of the processes does."""
        metadata = self.job.check(self.adapter, self.model.spec.schema, resume)
        shared = MultiProcessJob.needed(self.job, RankShare(rank, of))
        if shared:
            shared.check(resume)
        return (shared or self.job).run(ReportEngine(self.model), metadata)

    def to(self, output: Path) -> "Work":
        return replace(self, job=replace(self.job, output=output))

    @property
    def lines(self) -> list[dict]:
        return lines_of(self.job.output)


def lines_of(output: Path) -> list[dict]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def same(ours: list[dict], theirs: list[dict]) -> None:
    """Row for row; probabilities to what another batch rounds."""
    assert [line["row"] for line in ours] == [line["row"] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert {**a, "probabilities": 0} == {**b, "probabilities": 0}
        assert a.get("probabilities") == pytest.approx(b.get("probabilities"), abs=1e-5)


@pytest.fixture
def work(tiny_model: ClinicalVLM, table_root: Path, tmp_path: Path) -> Work:
    columns = TableColumns(id="case", context="findings")
    output = tmp_path / "out" / "reports.jsonl"
    job = TableJob(table_root / "cases.csv", output, table_root / "images", columns, 2, 5)
    return Work(job, tiny_model, save(tiny_model, tmp_path / "adapter"))


@pytest.fixture
def alone(work: Work, tmp_path: Path) -> list[dict]:
    """The output of one process."""
    alone = work.to(tmp_path / "alone.jsonl")
    assert alone.draft(0, 1).lines == 24
    return alone.lines


@pytest.mark.parametrize("processes", [2, 4])
def test_the_parts_become_the_output_of_one_process(processes: int, work: Work, alone: list[dict]) -> None:
    written = 0
    for rank in reversed(range(processes)):
        assert not work.job.output.exists()
        counts = work.draft(rank, processes)
        written += counts.lines * (counts.lines < 24)
    assert counts.lines == 24 and 0 < written < 24, "the last one made the output, and each had a share"
    same(work.lines, alone)
    assert not work.job.parts.exists() and work.draft(0, processes, resume=True).lines == 24
    same(work.lines, alone)


def test_another_number_of_processes_goes_on(work: Work, alone: list[dict]) -> None:
    """One alone, cut off; then one of two, cut off; then two of three, and at last one alone again."""
    work.job.output.parent.mkdir()
    work.job.output.write_text("".join(json.dumps(line) + "\n" for line in alone[:5]) + '{"row": 7, "te')
    (work.job.metadata_file).write_text((work.job.output.parent.parent / "alone.jsonl.job.json").read_text())
    work.draft(1, 2, resume=True)
    part = MultiProcessJob(work.job, RankShare(1, 2)).part
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    work.draft(2, 3, resume=True)
    work.draft(0, 3, resume=True)
    assert work.job.parts.is_dir(), "rows are missing, so the output is not made"
    assert work.draft(0, 1, resume=True).lines == 24
    same(work.lines, alone)
    assert not work.job.parts.exists()


def test_what_is_there_is_not_written_over(work: Work, tmp_path: Path) -> None:
    work.draft(0, 2)
    with pytest.raises(UserError, match=r"reports\.jsonl\.parts: is there already; go on with --resume"):
        work.draft(0, 2)
    other = replace(work, job=replace(work.job, max_new_tokens=6))
    with pytest.raises(UserError, match="was begun with another max_new_tokens"):
        other.draft(1, 2)
    part = MultiProcessJob(work.job, RankShare(0, 2)).part
    with part.open("a") as held, pytest.raises(UserError, match="another process is writing it"):
        fcntl.flock(held, fcntl.LOCK_EX)
        work.draft(0, 3, resume=True)
    changed = tmp_path / "cases.csv"
    last = json.loads(part.read_text().splitlines()[-1])["id"]
    changed.write_text(work.job.table.read_text().replace(f"{last},", "c99,"))
    with pytest.raises(UserError, match="where the table has another case now"):
        replace(work, job=replace(work.job, table=changed)).draft(1, 2, resume=True)


def kill_workers(forks: Forks, work: Work, moments: int, seed: int) -> None:
    """Kill one of two processes at random moments, each in a run of its own; the other and a resume end it."""
    rng, found = random.Random(seed), []
    options = ("--adapter", str(work.adapter), "--input", str(work.job.table), "--images", str(work.job.images),
               "--id_column", "case", "--context_column", "findings", "--batch_size", "1",
               "--max_new_tokens", "40")  # fmt: skip
    whole, said = work.job.output.with_name("whole.jsonl"), work.job.output.with_name("said.txt")
    whole.parent.mkdir()
    assert forks.run(*options, "--output", str(whole), said=said, program="infer") == 0, said.read_text()[-2000:]
    for moment in range(moments):
        output, most = whole.with_name(f"{moment}.jsonl"), rng.randint(0, 16)
        processes = forks.start(*options, "--output", str(output), said=said, program="infer", ranks=2)
        while not output.exists() and drafted_so_far(output) < most:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.3))
        found.append(drafted_so_far(output))
        os.kill(rng.choice(processes), signal.SIGKILL)
        forks.wait()
        by = rng.choice([1, 2, 3])
        again = forks.run(*options, "--output", str(output), "--resume", said=said, program="infer", ranks=by)
        assert again == 0, said.read_text()[-2000:]
        same(lines_of(output), lines_of(whole))
        assert not output.with_name(f"{output.name}.parts").exists()
    print(f"rows drafted when one of two was killed: {found}")
    assert any(0 < rows < 24 for rows in found), "no moment was one of the work"


def drafted_so_far(output: Path) -> int:
    """Whole lines in the parts."""
    return sum(part.read_bytes().count(b"\n") for part in output.parent.glob(f"{output.name}.parts/*-of-*"))


@pytest.mark.slow
def test_a_killed_worker_loses_and_repeats_nothing(forks: Forks, work: Work) -> None:
    """A sample; `make soak` kills at 20 moments."""
    kill_workers(forks, work, 2, seed=3)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_worker_killed_at_twenty_moments(forks: Forks, work: Work) -> None:
    kill_workers(forks, work, 20, seed=4)


def on_ray(work: Work, *options: str) -> subprocess.Popen:
    """The command, in a process of its own: Ray ends the one that it runs in when its own processes die."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    command = [sys.executable, "infer.py", "--adapter", str(work.adapter), "--input", str(work.job.table), "--images",
               str(work.job.images), "--output", str(work.job.output), "--id_column", "case", "--context_column",
               "findings", "--batch_size", "1", "--max_new_tokens", str(work.job.max_new_tokens), *options]  # fmt: skip
    work.job.output.parent.mkdir(exist_ok=True)
    return subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_ray_cluster_drafts_the_same_though_a_worker_dies(work: Work, alone: list[dict]) -> None:
    process, killed = on_ray(work, "--ray", "local", "--ray_workers", "2"), False
    while process.poll() is None and not killed:
        if drafted_so_far(work.job.output):
            workers = psutil.Process(process.pid).children(recursive=True)
            for worker in [one for one in workers if "ray::Map" in " ".join(one.cmdline())][:1]:
                worker.kill()
                killed = True
        time.sleep(0.005)
    said = process.communicate()[1]
    assert process.returncode == 0, said[-2000:]
    assert killed, "no worker was killed while rows were left"
    same(work.lines, alone)


@pytest.mark.slow
def test_what_ray_cannot_do_is_one_line(work: Work) -> None:
    for options, message in (
        (("--ray", "--base", "/no/such/base"), r"error: --ray: .*/no/such/base"),
        (("--resume", "--ray", "localhost:1"), r"error: --ray localhost:1: "),
    ):
        process = on_ray(work, *options)
        said = process.communicate()[1]
        assert process.returncode == 2 and re.search(message, said) and "Traceback" not in said, said[-2000:]
    assert work.job.parts.is_dir(), "to go on with --resume"
