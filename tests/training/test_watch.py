"""The live view of a run: what it shows of any state a run's folder can be in."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from vlm.errors import UserError
from vlm.training.monitor.frame import duration, frame, sparkline
from vlm.training.monitor.run_state import LogReader, Run
from vlm.training.monitor.watch import find_run, watch
from vlm.training.run_folder import writer_of

PROJECT = Path(__file__).resolve().parents[2]
SPEEDS = {"samples_per_s": 4.0, "tokens_per_s": 300.0, "images_per_s": 3.5, "step_s": 2.0, "data_wait": 0.31,
          "memory_mib": 2048.0}  # fmt: skip


def row_of(step: int, **more: float | None) -> dict:
    return {"step": step, "loss": 4 / step, "loss_bce": 2 / step, "loss_ce": 6 / step, "learning_rate": 1e-3,
            "epoch": step / 10, **more}  # fmt: skip


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of 40 steps after its eighth, with a checkpoint, that no process writes."""
    folder = tmp_path / "runs" / "ward"
    (folder / "checkpoints" / "checkpoint-8").mkdir(parents=True)
    (folder / "config.yaml").write_text("train: {max_steps: 40, epochs: 3.0, eval_steps: 4}\n")
    rows = [row_of(step, **SPEEDS) for step in range(1, 9)]
    evaluations = [{"step": s, "eval_loss": 3 / s, "eval_loss_bce": 1 / s, "eval_loss_ce": 5 / s, "eval_runtime": 7.0}
                   for s in (4, 8)]  # fmt: skip
    rows = [*rows[:4], evaluations[0], *rows[4:], evaluations[1]]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def shown(run: Run, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(frame(run, width))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_frame_fits_and_says_it_all(run_folder: Path, width: int) -> None:
    lines = shown(Run(run_folder), width)
    assert max(map(cell_len, lines)) <= width
    if width < 80:
        return
    text = "\n".join(lines)
    assert "stopped" in lines[0] and "step 8 of 40" in text and "learning rate 0.001" in text
    for words in ("training CE       0.7500", "validation BCE    0.1250", "4.00", "300", "31%", "2,048", "--resume",
                  "last checkpoint: step 8", "best validation at step 8", "raise train.workers"):  # fmt: skip
        assert words in text, words
    assert "█" in text and "▁" in text


def test_the_log_is_read_as_it_grows(run_folder: Path) -> None:
    reader = LogReader(run_folder / "log.jsonl")
    reader.look()
    assert len(reader.rows) == 10
    line = json.dumps(row_of(9))
    with reader.file.open("a") as log:
        log.write(line[:20])
    reader.look()
    assert len(reader.rows) == 10, "a half-written line waits"
    with reader.file.open("a") as log:
        log.write(line[20:] + "\n")
    reader.look()
    assert reader.rows[-1] == row_of(9)
    new = reader.file.with_name("new")
    new.write_text(json.dumps(row_of(1)) + "\n")
    new.rename(reader.file)  # as a resumed run writes it
    reader.look()
    assert reader.rows == [row_of(1)]
    reader.file.write_text("junk\n{}\n{}\n" + " " * 100)
    with pytest.raises(UserError, match=r"log\.jsonl: line 1 is no JSON"):
        LogReader(reader.file).look()


def test_the_states_of_a_run(run_folder: Path, monkeypatch) -> None:
    holder: list[str | None] = ["process 7 on host\x1b[2J"]
    monkeypatch.setattr("vlm.training.monitor.run_state.writer_of", lambda lock: holder[0])
    run = Run(run_folder)
    assert run.state == "training" and run.seconds_left == 32 * 2.0 + 8 * 7.0
    assert "process 7 on host[2J" in shown(run, 200)[0], "what the lock file holds cannot steer the terminal"
    log = run_folder / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + json.dumps({"step": 40, "train_runtime": 9.0}) + "\n")
    run.look()
    assert run.state == "testing" and run.seconds_left is None
    (run_folder / "metrics.json").write_text("{}")
    holder[0] = None
    run.look()
    assert run.state == "finished" and not any("--resume" in note for note in run.notes)
    log.write_text("")
    (run_folder / "metrics.json").unlink()
    holder[0] = "process 7"
    empty = Run(run_folder)
    assert empty.state == "starting" and empty.step == 0 and "step 0 of 40" in "\n".join(shown(empty))


def test_the_length_of_a_run_of_epochs_is_seen_from_its_rows(run_folder: Path) -> None:
    (run_folder / "config.yaml").write_text("train: {max_steps: -1, epochs: 2.5}\n")
    assert Run(run_folder).steps == 25
    (run_folder / "log.jsonl").unlink()
    assert Run(run_folder).steps is None and "step 0" in "\n".join(shown(Run(run_folder)))


def test_notes_name_what_deserves_a_look(run_folder: Path) -> None:
    rows = [{"step": step, "eval_loss": loss} for step, loss in ((12, 0.1), (16, 0.2), (20, 0.3), (24, None), (28, 1))]
    with (run_folder / "log.jsonl").open("a") as log:
        log.writelines(json.dumps(row) + "\n" for row in [*rows, row_of(29) | {"loss": None}])
    notes = Run(run_folder).notes
    assert any("no better validation loss since step 12" in note for note in notes)
    assert any("the loss of the row of step 29 is no number" in note for note in notes)
    shown(Run(run_folder))  # null values do not break the frame


def test_every_process_has_its_line(run_folder: Path) -> None:
    each = {f"{name}_rank{rank}": value for name, value in SPEEDS.items() for rank in (0, 1) if name != "step_s"}
    with (run_folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(row_of(9, **SPEEDS, **each)) + "\n")
    lines = shown(Run(run_folder))
    assert [line.split("  ")[0] for line in lines if line.startswith(("all", "process"))] == [
        "all", "process 0", "process 1"]  # fmt: skip


def test_the_lock_tells_whether_its_process_lives(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    assert writer_of(lock) is None
    lock.write_text("process 1 on host\n")
    assert writer_of(lock) is None, "a dead process left it"
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold, str(lock)], stdin=-1, stdout=-1) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        assert writer_of(lock) == "process 1 on host"
        process.stdin.close()
    assert writer_of(lock) is None


def test_a_run_is_found_by_folder_or_name(run_folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(run_folder.parent.parent)
    assert find_run("ward") == Path("runs/ward") and find_run(str(run_folder)) == run_folder
    with pytest.raises(UserError, match="no such run; name its folder"):
        find_run("nothing")
    with pytest.raises(UserError, match=r"has no config\.yaml, so it is no run"):
        find_run("runs")


def test_it_ends_by_itself_when_the_run_is_done(run_folder: Path, monkeypatch, capsys) -> None:
    looks = iter(["process 7", "process 7", None])
    monkeypatch.setattr("vlm.training.monitor.run_state.writer_of", lambda lock: next(looks))
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the captured output for a terminal
    watch(run_folder, seconds=0)
    assert "step 8 of 40" in capsys.readouterr().out and next(looks, "all asked") == "all asked"


def test_the_command_prints_one_frame_without_pytorch(run_folder: Path) -> None:
    code = "import sys, runpy; runpy.run_module('vlm.cli', run_name='__main__'); assert 'torch' not in sys.modules"
    options = {"cwd": PROJECT, "capture_output": True, "text": True, "env": os.environ | {"COLUMNS": "80"}}
    done = subprocess.run([sys.executable, "-c", code, "watch", str(run_folder), "--once"], timeout=60, **options)
    assert done.returncode == 0, done.stderr
    assert "step 8 of 40" in done.stdout and "\x1b" not in done.stdout
    command = [sys.executable, "-m", "vlm.cli", "watch", str(run_folder / "no")]
    missing = subprocess.run(command, timeout=60, **options)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1 and "no such run" in missing.stderr


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [([], 8, ""), ([1.0], 8, "▁"), ([1, 10, 100], 8, "▁▅█"), ([0, 1, 2], 8, "▁▅█"), ([4, 4, 1, 1], 2, "█▁"),
     ([1.0, float("nan"), 2.0], 8, "▁█")],
)  # fmt: skip
def test_a_course_in_blocks(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_a_time_in_words() -> None:
    assert [duration(s) for s in (-1, 59.9, 61, 3600, 90061)] == ["0 s", "59 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"]
