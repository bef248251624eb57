"""Answers reach the disk as a whole, are given once, and are checked as untrusted when they are read."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.reader_studies import answer, line, small_study
from vlm.errors import UserError
from vlm.reader_study.answers import LONGEST_LINE, AnswerLog, read_answers

STUDY = small_study()


def test_an_answer_is_kept_once_and_the_reader_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    log = AnswerLog(file, STUDY)
    assert log.next_page(1) == 1
    assert log.append(answer(STUDY, 1, 1, ["minor_edits"], [["other"]]))
    assert not log.append(answer(STUDY, 1, 1, ["not_acceptable"]))
    assert log.append(answer(STUDY, 2, 1, ["as_it_stands"]))
    log.close()
    assert file.stat().st_mode & 0o077 == 0
    again = AnswerLog(file, STUDY)
    assert again.cut == 0 and again.next_page(1) == again.next_page(2) == 2
    kept = again.answers[1, 1]
    assert kept.judgements[0].verdict == "minor_edits" and kept.judgements[0].errors == ["other"]
    again.close()
    assert AnswerLog(tmp_path / "none.jsonl", STUDY).next_page(1) == 1


def test_a_crash_in_a_line_loses_that_line_alone(tmp_path: Path) -> None:
    """Anywhere in the second line: the first is kept, the rest is cut off, and the answer can be given again."""
    first, second = line(answer(STUDY, 1, 1, ["as_it_stands"])), line(answer(STUDY, 1, 2, ["major_edits"]))
    for size in [*range(0, len(second), 16), len(second) - 1]:
        file = tmp_path / f"{size}.jsonl"
        file.write_bytes(first + second[:size])
        assert list(read_answers(file, STUDY)[0]) == [(1, 1)]
        log = AnswerLog(file, STUDY)
        assert log.cut == size and log.next_page(1) == 2
        assert log.append(answer(STUDY, 1, 2, ["major_edits"]))
        log.close()
        assert file.read_bytes() == first + second


def test_a_full_disk_keeps_no_half_of_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "answers.jsonl"
    log = AnswerLog(file, STUDY)
    log.append(answer(STUDY, 1, 1, ["as_it_stands"]))
    before, write = file.read_bytes(), os.write

    def fail(descriptor: int, data: bytes) -> int:
        if len(data) < 60:
            raise OSError(28, "No space left on device")
        return write(descriptor, bytes(data)[:-40])

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(UserError, match="No space left"):
        log.append(answer(STUDY, 1, 2, ["as_it_stands"]))
    monkeypatch.undo()
    assert file.read_bytes() == before and log.next_page(1) == 2
    assert log.append(answer(STUDY, 1, 2, ["as_it_stands"])) and len(read_answers(file, STUDY)[0]) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"study": "0" * 16}, "another study"),
        ({"reader": 3}, "reader 3 has no page"),
        ({"reader": 0}, "reader 0 has no page"),
        ({"page": 25}, "no page 25"),
        ({"page": True}, "page: must be a whole number"),
        ({"seconds": -1.0}, "out of range"),
        ({"showings": 1.5}, "showings"),
        ({"given": "x" * 41}, "out of range"),
        ({"judgements": []}, "judges 0 texts"),
        ({"judgements": [{"verdict": "fine", "errors": []}]}, "'fine' is none of as_it_stands"),
        ({"judgements": [{"verdict": "minor_edits", "errors": ["typo"]}]}, "errors must be some of"),
        ({"judgements": [{"verdict": "minor_edits", "errors": ["other", "other"]}]}, "each once"),
        ({"name": "Dr X"}, "unknown key name"),
    ],
)
def test_a_hostile_line_is_named(changes: dict, said: str, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    values = asdict(answer(STUDY, 1, 1, ["as_it_stands"])) | changes
    file.write_bytes(line(answer(STUDY, 2, 1, ["as_it_stands"])) + json.dumps(values).encode() + b"\n")
    with pytest.raises(UserError, match="line 2") as error:
        read_answers(file, STUDY)
    assert said in str(error.value)


@pytest.mark.parametrize("data", [b"{}\n", b"[]\n", b'{"a": NaN}\n', b"\xff\n", b"[" * 3000 + b"\n", b"\n"])
def test_what_is_no_answer_is_one_line(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(data)
    with pytest.raises(UserError, match="line 1"):
        read_answers(file, STUDY)


def test_a_second_answer_and_an_endless_line_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(line(answer(STUDY, 1, 1, ["as_it_stands"])) + line(answer(STUDY, 1, 1, ["minor_edits"])))
    with pytest.raises(UserError, match="line 2: reader 1 has answered page 1 on line 1 already"):
        read_answers(file, STUDY)
    file.write_bytes(b"x" * (LONGEST_LINE + 10))
    with pytest.raises(UserError, match="longer than 64 KiB"):
        AnswerLog(file, STUDY)
    assert file.stat().st_size == LONGEST_LINE + 10, "what we did not write is not cut off"
