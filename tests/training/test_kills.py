"""Real runs that are killed, stopped, or kept out, and go on: see docs/reliability.md."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.forks import PROJECT, Forks
from tests.runs import Run, write_config
from vlm.training.run_folder import checkpoints_of, read_log


@pytest.fixture(scope="module")
def config_file(tiny_llm: str, table_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tiny_llm, table_root, tmp_path_factory.mktemp("kills"))


@pytest.fixture(scope="module")
def whole(forks: Forks, config_file: Path) -> Run:
    """A run that nobody disturbs."""
    run, start = Run(config_file, "whole"), time.monotonic()
    process, *_ = forks.start(*run.argv, said=run.said)
    run.wait_until(run.adapter.exists, process)
    run.seconds = time.monotonic() - start
    assert forks.wait() == 0, run.said.read_text()[-2000:]
    weights, rows = run.result()
    assert len(weights) == 2 and [row["step"] for row in rows if "loss" in row] == [2, 4, 6, 8, 10, 12]
    assert len([row for row in rows if "eval_loss" in row]) == 4
    return run


@pytest.fixture(scope="module")
def by_two(forks: Forks, config_file: Path) -> Run:
    """The same by two processes."""
    return Run(config_file, "by-two").to_its_end(forks, ranks=2)


def kill_once(forks: Forks, run: Run, rng: random.Random, seconds: float) -> str | None:
    """Start or resume a run and kill it: at a random moment, or at one change of its disk; None if it was too quick."""
    options = (*run.argv, *(["--resume"] if run.has_begun() else []))
    if rng.random() < 0.5:
        code = forks.run(*options, said=run.said, die_at=rng.randint(1, 180))
        return "at a change of the disk" if code == 137 else None
    process, *_ = forks.start(*options, said=run.said)
    time.sleep(rng.uniform(0.1, 0.9) * seconds)
    os.kill(process, signal.SIGKILL)
    return "at a moment" if forks.wait() == -signal.SIGKILL else None


def resumes(forks: Forks, run: Run, rng: random.Random) -> bool:
    """Let a run go on; most of them no longer than until the adapter is there, for the test after it is a long one."""
    has_adapter = run.adapter.exists()
    process, *_ = forks.start(*run.argv, *(["--resume"] if run.has_begun() else []), said=run.said)
    if has_adapter or rng.random() < 0.1:
        return forks.wait() == 0
    run.wait_until(run.adapter.exists, process)
    os.kill(process, signal.SIGKILL)
    return forks.wait() == -signal.SIGKILL


def kill_campaign(forks: Forks, whole: Run, config_file: Path, kills: int, seed: int) -> Counter[str]:
    """Kill runs, one in four again while it resumes, until so many kills; every run must end as the undisturbed one."""
    rng, done = random.Random(seed), Counter[str]()
    number = 0
    while done["at a change of the disk"] + done["at a moment"] < kills:
        number += 1
        run = Run(config_file, f"killed-{seed}-{number}")
        kind = kill_once(forks, run, rng, whole.seconds)
        done[kind or "not killed"] += 1
        if kind and rng.random() < 0.25:
            done[kill_once(forks, run, rng, whole.seconds) or "not killed"] += 1
        if not resumes(forks, run, rng) or run.result() != whole.result():
            done["failed"] += 1
            print(run.said.read_text()[-3000:])
        else:
            shutil.rmtree(run.folder)
        print(f"{number} runs: {dict(done)}", flush=True)
    return done


@pytest.mark.slow
def test_killed_runs_end_as_an_undisturbed_one(forks: Forks, whole: Run, config_file: Path) -> None:
    """A sample; `make soak` kills 200."""
    done = kill_campaign(forks, whole, config_file, 3, seed=0)
    assert not done["failed"], done


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_two_hundred_kills(forks: Forks, whole: Run, config_file: Path) -> None:
    done = kill_campaign(forks, whole, config_file, 200, seed=1)
    assert not done["failed"], done


@pytest.mark.slow
def test_a_launched_run_is_killed_and_goes_on(whole: Run, config_file: Path) -> None:
    """As users launch it, in processes that share nothing with the other runs, not even the order of their sets."""
    run = Run(config_file, "launched")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "train_lora.py", *run.argv]
    with run.said.open("w") as said:
        launched = subprocess.Popen(command, cwd=PROJECT, stderr=said, start_new_session=True)
        run.wait_until(lambda: run.has_made(6), launched.pid)
        os.killpg(launched.pid, signal.SIGKILL)
        launched.wait()
    assert checkpoints_of(run.folder / "checkpoints") and not run.adapter.exists()
    assert (run.folder / ".lock").read_text().startswith("process "), "the lock of a dead process is no obstacle"
    again = subprocess.run([*command, "--resume"], cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-2000:]
    assert run.result() == whole.result()


@pytest.mark.slow
def test_each_of_two_processes_stands_in_the_log(by_two: Run) -> None:
    rows = [row for row in read_log(by_two.log) if "loss" in row]
    for row in rows:
        assert row["loss_bce_rank0"] + row["loss_bce_rank1"] == pytest.approx(row["loss_bce"], rel=1e-6)
        assert row["memory_mib"] == max(row["memory_mib_rank0"], row["memory_mib_rank1"])
        assert row["samples_per_s"] == pytest.approx(4 / row["step_s"])
        assert row["samples_per_s_rank1"] > 0 and 0 < row["data_wait_rank1"] < 1
    text = rows[-1]
    assert text["loss_ce_rank0"] + text["loss_ce_rank1"] == pytest.approx(text["loss_ce"], rel=1e-6)
    assert text["tokens_per_s_rank0"] > 0 and rows[0]["tokens_per_s"] == 0, "no text in the head-only steps"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2], ids=["Ctrl-C", "SIGTERM to one of two processes"])
def test_a_signal_saves_and_the_run_goes_on(ranks: int, forks: Forks, config_file: Path, request) -> None:
    undisturbed = request.getfixturevalue("whole" if ranks == 1 else "by_two")
    run, number = Run(config_file, f"stopped-{ranks}"), signal.SIGINT if ranks == 1 else signal.SIGTERM
    process, *_ = forks.start(*run.argv, said=run.said, ranks=ranks)
    run.wait_until(lambda: run.has_made(4), process)
    os.kill(process, number)
    code, said = forks.wait(), run.said.read_text()
    step = checkpoints_of(run.folder / "checkpoints")[0]
    assert code == 128 + number and step < 12, said[-2000:]
    assert "stopping after this step; once more to stop at once" in said and "Traceback" not in said
    assert f"stopped and saved after step {step}; go on with --resume" in said.splitlines()
    assert forks.run(*run.argv, "--resume", said=run.said, ranks=ranks) == 0
    assert run.result() == undisturbed.result()
