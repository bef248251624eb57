"""The process that Ray runs in: whatever becomes of it, the user reads one line, and no draft is lost or doubled."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests import ray_drivers
from tests.forks import PROJECT
from vlm.errors import UserError
from vlm.inference.on_ray import ATTEMPTS, Cluster, run_driver

WINDOWS = ["a", "b", "c", "d"]


@pytest.mark.slow
def test_a_process_that_dies_at_once_is_one_line() -> None:
    line = r"^--ray: core worker has already been shutdown; what was drafted is kept: go on with --resume$"
    with pytest.raises(UserError, match=line):
        next(run_driver(ray_drivers.die_at_once, WINDOWS))


@pytest.mark.slow
def test_deaths_in_between_lose_and_repeat_nothing() -> None:
    """Four deaths, more than may be in a row: each had drafted something."""
    assert len(WINDOWS) > ATTEMPTS
    assert list(run_driver(ray_drivers.die_after_each, WINDOWS)) == ["A", "B", "C", "D"]


@pytest.mark.slow
def test_a_start_that_fails_is_tried_again(tmp_path: Path) -> None:
    assert list(run_driver(ray_drivers.raise_once, WINDOWS, str(tmp_path / "begun"))) == ["A", "B", "C", "D"]


@pytest.mark.parametrize(("drive", "before"), [(ray_drivers.refuse, ["A"]), (ray_drivers.refuse_and_die, [])])
def test_what_the_user_must_mend_is_not_tried_again(drive, before: list[str]) -> None:
    seen = []
    with pytest.raises(UserError, match=r"^--ray: /no/such/base: does not exist; go on with --resume$"):
        seen.extend(answer for answer in _kept(run_driver(drive, WINDOWS), seen))
    assert seen == before


def _kept(source, seen: list[str]):
    for answer in source:
        seen.append(answer)
        yield from ()


def test_nothing_is_left_when_the_work_is_stopped(tmp_path: Path) -> None:
    """As after Ctrl-C: whoever reads the answers goes, and the process goes too."""
    here = tmp_path / "pid"
    stopped = run_driver(ray_drivers.wait, WINDOWS, str(here))
    assert next(stopped) == "A"
    process = psutil.Process(int(here.read_text()))
    stopped.close()
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


STOPPED = """
import sys, time
from tests import ray_drivers
from vlm.errors import run_program
from vlm.inference.on_ray import run_driver

def main():
    for answer in run_driver(ray_drivers.wait, ["a", "b"], sys.argv[1]):
        print(answer, flush=True)
        if sys.argv[2] == "busy":
            time.sleep(600)

run_program(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["waiting", "busy"])
def test_ctrl_c_ends_both_processes(moment: str, tmp_path: Path, restored_sigint: None) -> None:
    """While it waits for an answer, and while it does something with one."""
    here = tmp_path / "pid"
    command = [sys.executable, "-c", STOPPED, str(here), moment]
    with subprocess.Popen(command, cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout.readline() == "A\n"
        process = psutil.Process(int(here.read_text()))
        process.send_signal(signal.SIGINT)  # a terminal sends it to all
        program.send_signal(signal.SIGINT)
        try:
            said = program.communicate(timeout=60)[1]
        finally:
            program.kill()  # else the end of the block would wait for it
    assert program.returncode == 130 and said == "interrupted\n", said
    assert not process.is_running()


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_command_is_killed(kill: signal.Signals, tmp_path: Path) -> None:
    here = tmp_path / "pid"
    command = [sys.executable, "-c", STOPPED, str(here), "waiting"]
    with subprocess.Popen(command, cwd=PROJECT, text=True, stdout=subprocess.PIPE) as program:
        assert program.stdout.readline() == "A\n"
        process = psutil.Process(int(here.read_text()))
        program.send_signal(kill)
        program.wait()
    psutil.wait_procs([process], timeout=60)
    assert not process.is_running()


@pytest.mark.slow
def test_a_process_that_is_killed_is_started_again(tmp_path: Path) -> None:
    here, found = tmp_path / "pid", []

    def kill() -> None:
        for _ in range(2):
            while not here.exists():
                time.sleep(0.01)
            process = int(here.read_text() or 0)
            here.unlink()
            time.sleep(0.2)
            found.append(process)
            psutil.Process(process).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    assert list(run_driver(ray_drivers.wait, WINDOWS[:2], str(here))) == ["A", "B"]
    killer.join()
    assert len(set(found)) == 2


@pytest.mark.parametrize("address", ["localhost:1", "localhost:nan", "localhost:99999999", "ray://localhost:1"])
def test_an_address_that_does_not_answer_is_one_line(address: str) -> None:
    with pytest.raises(UserError, match=rf"^--ray {address}: ") as error:
        Cluster(address).check()
    assert "\n" not in str(error.value)
