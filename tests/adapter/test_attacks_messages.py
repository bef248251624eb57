"""What a stranger wrote, where it is shown: cut, escaped and one line, however long it is."""

from pathlib import Path

import pytest

from tests.untrusted_adapters import config, folder, saved, trained, watched  # noqa: F401
from vlm.adapter import load
from vlm.atomic import write_manifest
from vlm.distributed import log_rank0
from vlm.errors import UserError, run_program
from vlm.report import Report

LONG = "\u202e\x1b[31m" + "A" * 1_500_000


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update({"A" * 1_500_000: 1}),
        lambda c: c.update({"A" * 1_500_000: "\x1b[31m"}),
        lambda c: c.update({"A" * 1_500_000: ["a"] * 1025}),
        lambda c: c.update({"A" * 1_000_000: [["b"] * 1000] * 100}),  # a path for each would be 100 GB
        lambda c: c["model"].update({"A" * 1_500_000: 1}),
        lambda c: c.update(format="A" * 1_500_000),
        lambda c: c.update(base_fingerprint="A" * 1_500_000),
        lambda c: c.update(labels=["A" * 1_500_000]),
        lambda c: c["model"]["llm"].update(base="A" * 1_500_000),
        lambda c: c["model"]["vision"].update(name="A" * 1_500_000),
    ],
)
def test_a_megabyte_of_untrusted_text_is_cut(change, folder: Path) -> None:  # noqa: F811
    config(change)(folder)
    write_manifest(folder)
    with watched():
        try:
            load(folder)
        except UserError as error:
            assert len(str(error)) < 4200 and str(error).isprintable()


def test_a_message_is_cut_and_escaped_whoever_wrote_what_it_quotes() -> None:
    said = str(UserError(f"x.csv: row 3: {LONG}"))
    assert said.startswith(r"x.csv: row 3: \u202e\x1b[31mAAA") and len(said) < 4100 and said.endswith("…")
    assert str(UserError("Größe ≥ 3 °C: 脑")) == "Größe ≥ 3 °C: 脑", "other languages stay as they are"


def test_a_message_is_one_line_whoever_wrote_what_it_quotes(capsys) -> None:
    forged = UserError("x.parquet: column a\nerror: fine unpacks to 64 MiB")
    wrapped = UserError(
        f"Caught UserError in DataLoader worker process 0.\nTraceback …\nvlm.errors.UserError: {forged}\n"
    )
    for error in (forged, wrapped):

        def fail(error: UserError = error) -> None:
            raise error

        with pytest.raises(SystemExit):
            run_program(fail)
        assert capsys.readouterr().err == "error: x.parquet: column a\\nerror: fine unpacks to 64 MiB\n"
    log_rank0("warning: \x1b[2J\u202e", "two\nlines")
    assert capsys.readouterr().err == "warning: \\x1b[2J\\u202e\ntwo\nlines\n"


def test_what_is_printed_of_a_report_has_an_end() -> None:
    labels = {f"{n} " + "a" * 190: n / 1000 for n in range(1000)}
    printed = Report("Draft.", labels, warnings=tuple("b" * 500 for _ in range(300))).after_text()
    assert len(printed) < 12_000 and "and 960 less probable labels; --json holds them all" in printed
    assert "999 aaa" in printed and "260 more; --json holds them all" in printed
    assert "\x1b" not in Report("", {"a\x1b[2J": 1.0}, warnings=("\x1b]0;x\x07",)).after_text()
    few = {"pathology": 0.2, "effusion": 0.9}
    assert Report("", few).probability_lines() == ["pathology   20.0%", "effusion    90.0%"], "a few stay in order"
