"""The bar of a job: shares, time left, and what a terminal, a log and the other ranks get to see."""

import re
from itertools import pairwise

import pytest
import tqdm.std

import vlm.progress
from vlm.distributed import log_rank0
from vlm.progress import Job, Phase, announce, counting, progress, whole_job

Captured = pytest.CaptureFixture[str]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(tqdm.std, "time", clock := Clock())
    return clock


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> Captured:
    monkeypatch.setattr(vlm.progress, "_on_terminal", lambda: True)
    monkeypatch.delenv("COLUMNS", raising=False)  # a narrow one would cut the bar's text
    return capsys


def run_phases() -> list[Phase]:
    """A hundred units: the ten steps on text cost five times the ten of the head alone."""
    return [Phase("scoring", (1, 20)), Phase("training step", (10, 10), (10, 50)), Phase("drafting", (1, 20))]


def test_each_loop_moves_the_bar_by_its_cost() -> None:
    with whole_job(run_phases()) as job:
        shown = []
        for _ in progress(range(4), "scoring"):
            shown.append(job.bar.n)
        with counting("training step", 20) as steps:
            for _ in range(20):
                steps.update()
                shown.append(job.bar.n)
        assert shown == pytest.approx([0, 5, 10, 15, *range(21, 31), *range(35, 85, 5)])
        list(progress(iter("ab"), "drafting", 2))
    assert job.bar.n == job.bar.total == 100 and Job.active is None


def test_a_loop_within_another_shows_its_title_and_adds_nothing(terminal: Captured) -> None:
    with whole_job(run_phases()) as job, counting("training step", 20) as steps:
        steps.update(4)
        steps.set_postfix({"BCE": "0.123"})
        before = job.bar.n
        for _ in progress(range(3), "scoring: validation"):
            assert job.bar.n == before and "BCE=0.123" in str(job.bar)
        assert str(job.bar).startswith("scoring: validation 3/3")
        steps.update()
        assert str(job.bar).startswith("training step 5/20 ") and "BCE=0.123" in str(job.bar)
    assert "BCE" not in str(job.bar) and job.bar.n == 100


def test_what_ends_early_or_is_left_out_is_done_but_tells_nothing_of_the_speed(terminal, clock: Clock) -> None:
    with whole_job(run_phases()) as job:
        with counting("training step", 20) as steps:  # without scoring
            clock.now = 15
            steps.update(11)
            assert job.bar.n == 35 and "00:15, about 01:05 left" in str(job.bar)
        assert job.bar.n == 80 and "00:15, about 00:20 left" in str(job.bar)


def test_a_resumed_run_begins_at_its_share(terminal: Captured, clock: Clock) -> None:
    with whole_job(run_phases()) as job:
        list(progress(range(4), "scoring"))
        clock.now = 20
        with counting("training step", 20, done=15) as steps:
            assert job.bar.n == 55 and "about 00:45 left" in str(job.bar)
            clock.now = 30
            steps.update(2)
            assert str(job.bar).startswith("training step 17/20 ") and "about 00:35 left" in str(job.bar)


def test_of_two_phases_of_one_title_the_one_left_out_is_passed_over() -> None:
    phases = [Phase("drafting", (1, 10)), Phase("scoring", (1, 30)), Phase("drafting", (1, 60))]
    with whole_job(phases) as job:
        list(progress(range(3), "scoring"))
        assert job.bar.n == 40
        for _ in progress(range(2), "drafting"):
            pass
        assert job.bar.n == 100


def test_a_phase_without_a_count_is_over_where_the_next_begins(terminal: Captured, clock: Clock) -> None:
    with whole_job([Phase("measures", (1, 10)), Phase("figures", (1, 5)), Phase("page", (1, 5))]) as job:
        announce("measures")
        assert job.bar.n == 0 and str(job.bar).startswith("measures ")
        clock.now = 20
        announce("figures")
        assert job.bar.n == 10 and "about 00:20 left" in str(job.bar)
    assert job.bar.n == 20
    announce("measures")  # of no job


def test_a_failed_job_stays_where_it_was() -> None:
    with pytest.raises(ValueError), whole_job(run_phases()) as job, counting("training step", 20) as steps:
        steps.update(10)
        raise ValueError
    assert job.bar.n == 30 and Job.active is None


def test_a_line_goes_above_the_bar(terminal: Captured) -> None:
    with whole_job(run_phases()):
        list(progress(range(4), "scoring"))
        log_rank0("step 22: validation  BCE 0.212", "two\nlines \x1b[31m")
    shown = terminal.readouterr().err
    assert re.search(r"\r +\rstep 22: validation  BCE 0\.212\n", shown)
    assert re.search(r"\r +\rtwo\nlines \\x1b\[31m\n", shown)
    assert shown.endswith("\n") and "100%" in shown.splitlines()[-1]


def test_a_loop_alone_has_a_bar_that_goes(terminal: Captured, clock: Clock) -> None:
    for _ in progress(range(4), "packing \x1b[31m"):
        clock.now += 5
        shown = str(Job.active.bar)
    assert shown.startswith("packing \\x1b[31m 3/4  75%") and "00:20, about 00:06 left" in shown
    assert Job.active is None and terminal.readouterr().err.split("\r")[-2].strip() == ""


def test_a_log_gets_a_line_now_and_then(capsys: Captured, clock: Clock) -> None:
    times = []
    with whole_job(run_phases()), counting("training step", 10_000) as steps:
        for step in range(10_000):
            clock.now += 0.1
            steps.update()
            steps.set_postfix({"BCE": f"{step / 1e4:.1f}"})
            if said := capsys.readouterr().err:
                times.append((clock.now, said))
        log_rank0("step 10000: validation")
    lines = [line for _, line in times]
    assert 8 < len(lines) <= 20 and all(line.count("\n") == 1 and line.endswith("\n") for line in lines)
    assert min(later - earlier for (earlier, _), (later, _) in pairwise(times)) >= 30
    assert not re.search(r"[\r\x1b|]", "".join(lines))
    assert re.fullmatch(r"21% after 00:30, about [\d:]+ left: training step \d+/10000, BCE=0.\d\n", lines[0])
    end = capsys.readouterr().err
    assert re.fullmatch(r"step 10000: validation\n100% after 16:40, about 00:00 left: training step .*\n", end)


def test_a_log_gets_no_line_of_a_short_job(capsys: Captured, clock: Clock) -> None:
    for _ in progress(range(290), "scoring"):
        clock.now += 0.1
    assert capsys.readouterr().err == ""


def test_the_other_ranks_show_nothing(terminal: Captured, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with whole_job(run_phases()), counting("training step", 20, done=3) as steps:
        clock.now = 100
        steps.update(17)
        steps.set_postfix({"BCE": "0.1"})
        assert list(progress("abc", "scoring: validation")) == ["a", "b", "c"]
        announce("measures")
    assert list(progress("abc", "alone")) == ["a", "b", "c"] and terminal.readouterr().err == ""


def test_loops_of_nothing(terminal: Captured) -> None:
    assert list(progress([], "drafting")) == []
    with whole_job(run_phases()) as job:
        assert list(progress([], "drafting")) == [] and job.bar.n == 100
