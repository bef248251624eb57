"""A table of cases drafted to a file: the same drafts as one at a time, resumable, nothing lost."""

import itertools
import json
import pkgutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from tests.forks import Forks
from tests.picture_files import tiff
from vlm.adapter import save
from vlm.errors import UserError
from vlm.inference import many
from vlm.inference.engine import ReportEngine
from vlm.inference.many import TableColumns, TableJob
from vlm.inference.parts import MultiProcessJob, RankShare
from vlm.model.clinical_vlm import ClinicalVLM


@pytest.fixture
def adapter(tiny_model: ClinicalVLM, tmp_path: Path) -> Path:
    return save(tiny_model, tmp_path / "adapter")


@pytest.fixture
def job(table_root: Path, tmp_path: Path) -> TableJob:
    columns = TableColumns(id="case", context="findings")
    return TableJob(table_root / "cases.csv", tmp_path / "out" / "reports.jsonl", table_root / "images", columns, 3, 6)


def run(job: TableJob, model: ClinicalVLM, adapter: Path, resume: bool = False) -> list[dict]:
    job.run(ReportEngine(model), job.check(adapter, model.spec.schema, resume))
    return [json.loads(line) for line in job.output.read_text().splitlines()]


def test_a_table_is_drafted_as_its_cases_are_one_by_one(job, tiny_model, adapter, table_root) -> None:
    lines = run(job, tiny_model, adapter)
    frame = pd.read_csv(table_root / "cases.csv", dtype=str, keep_default_na=False)
    assert [line["id"] for line in lines] == list(frame["case"]) and lines[0]["row"] == 2
    engine = ReportEngine(tiny_model)
    for line, row in zip(lines, frame.to_dict("records"), strict=True):
        vitals = {name: row[name] for name in ("glucose", "blood_pressure", "sex")}
        image = job.images / row["image"] if row["image"] else None
        alone = next(engine.reports([engine.prepare(image, vitals, row["findings"])], 1, 6))
        assert line["text"] == alone.text and line["warnings"] == list(alone.warnings)
        assert line["vitals"] == alone.vitals and line["notice"] == alone.notice
        assert line["probabilities"] == pytest.approx(alone.probabilities, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [0, 1, 700, -1, -40])
def test_a_run_cut_off_anywhere_ends_the_same(cut: int, job, tiny_model, adapter) -> None:
    whole = run(job, tiny_model, adapter)
    text = job.output.read_bytes()
    job.output.write_bytes(text[:cut] if cut else b"")
    again = run(job, tiny_model, adapter, resume=True)
    for a, b in zip(whole, again, strict=True):
        assert {**a, "probabilities": 0} == {**b, "probabilities": 0}
        assert a["probabilities"] == pytest.approx(b["probabilities"], abs=1e-5)
    assert len(run(job, tiny_model, adapter, resume=True)) == len(whole), "and once more adds nothing"


def test_an_unreadable_row_costs_its_own_report_alone(job, tiny_model, adapter, tmp_path, table_root) -> None:
    text = (table_root / "cases.csv").read_text().replace("1.png", "gone.png", 1).replace("122/72", "high", 1)
    (tmp_path / "cases.csv").write_text(text)
    lines = run(replace(job, table=tmp_path / "cases.csv"), tiny_model, adapter)
    wrong = {line["id"]: line["error"] for line in lines if "error" in line}
    assert set(wrong) == {"c1", "c2"} and len(lines) == 24
    assert "gone.png: cannot read the image" in wrong["c1"] and "'high' is no blood pressure" in wrong["c2"]
    assert all("text" not in line for line in lines if "error" in line)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "error", "shared"),
    [
        ("vlm.inference.engine.read_file", MemoryError(), False),
        ("vlm.inference.engine.read_file", cv2.error("-215: assertion"), True),
        ("vlm.inference.engine.decode_square", ZeroDivisionError("secret of the case"), False),
        ("vlm.inference.engine.make_example", RecursionError(), True),
        ("vlm.data.prompt.Prompt.ids", AssertionError(), False),
        ("vlm.data.prompt.Prompt.ids", UnicodeError("ascii"), True),
    ],
)
def test_whatever_is_raised_in_reading_a_row_costs_its_own_report_alone(
    part, error, shared, job, tiny_model, adapter, monkeypatch
) -> None:
    whole = run(replace(job, output=job.output.with_name("whole.jsonl")), tiny_model, adapter)
    original, calls = pkgutil.resolve_name(part), itertools.count()

    def sometimes(*arguments, **named):
        if next(calls) in (1, 4):
            raise error
        return original(*arguments, **named)

    monkeypatch.setattr(part, sometimes)
    if shared:
        metadata = job.check(adapter, tiny_model.spec.schema, False)
        MultiProcessJob(job, RankShare()).run(ReportEngine(tiny_model), metadata)
        lines = [json.loads(line) for line in job.output.read_text().splitlines()]
    else:
        lines = run(job, tiny_model, adapter)
    wrong = [line for line in lines if "error" in line]
    assert len(lines) == len(whole) and [line["id"] for line in lines] == [line["id"] for line in whole]
    assert [line["error"] for line in wrong] == [f"this row cannot be read: {type(error).__name__}"] * 2
    for line, expected in zip(lines, whole, strict=True):
        assert "error" in line or line["text"] == expected["text"]


def test_a_table_of_every_odd_image_is_drafted_to_its_end(tiny_model, adapter, tmp_path: Path) -> None:
    """Those that can be read are, also where the name is written otherwise; of each other one its line says why."""
    images = tmp_path / "images"
    images.mkdir()
    ramp = np.tile(np.linspace(0, 1, 40), (30, 1))
    files = {
        "real.tif": tiff(np.dstack([ramp, ramp, ramp])),
        "deep.png": cv2.imencode(".png", (ramp * 60000).astype("u2"))[1],
        "signed.tif": tiff((ramp * 900 - 400).astype("i4")), "empty.png": b"", "page.png": b"<html></html>",
        "cut.png": cv2.imencode(".png", (ramp * 255).astype("u1"))[1].tobytes()[:50], "blank.bmp":
        cv2.imencode(".bmp", np.zeros((9, 9), np.uint8))[1], "pointer.png": b"version https://git-lfs.github.com/spec/v1",
    }  # fmt: skip
    for name, data in files.items():
        (images / name).write_bytes(bytes(data))
    names = ["real.tif", "REAL.TIF", "deep", "images\\signed.tif", "empty.png", "page.png", "cut.png", "blank.bmp",
             "pointer.png", "../cases.csv", "none.png", ""]  # fmt: skip
    pd.DataFrame({"image": names, "glucose": 6}).to_csv(tmp_path / "cases.csv", index=False)
    lines = run(TableJob(tmp_path / "cases.csv", tmp_path / "out.jsonl", images, batch_size=2), tiny_model, adapter)
    said = {name: line.get("error") or "; ".join(line["warnings"]) for name, line in zip(names, lines, strict=True)}
    assert [name for name, line in zip(names, lines, strict=True) if "error" in line] == [
        "empty.png", "page.png", "cut.png", "pointer.png", "../cases.csv", "none.png"
    ]  # fmt: skip
    expected = {"REAL.TIF": "is read from real.tif", "deep": "is read from deep.png",
                        "images\\signed.tif": "is read from signed.tif", "empty.png": "the file is empty",
                        "page.png": "a web page", "cut.png": "cut off", "blank.bmp": "the image is blank",
                        "pointer.png": "Git LFS", "../cases.csv": "leads outside",
                        "none.png": "no image file"}  # fmt: skip
    for name, words in expected.items():
        assert words in said[name], name
    assert lines[0]["text"] == lines[1]["text"] and "read from" not in said["real.tif"]


def test_only_a_window_is_in_memory(job, tiny_model, adapter, monkeypatch, tmp_path) -> None:
    """A long table is never in memory: no more rows are read than two windows beyond what is written."""
    (tmp_path / "long.csv").write_text("id,glucose\n" + "".join(f"{i},{5 + i % 9}\n" for i in range(4000)))
    ahead, prepared = [], 0
    prepare, write = many._prepare, many.write_lines

    def counted(*arguments):
        nonlocal prepared
        prepared += 1
        return prepare(*arguments)

    written = 0

    def watched(out, lines):
        nonlocal written
        write(out, lines)
        written += len(lines)
        ahead.append(prepared - written)
        if written > 400:
            raise KeyboardInterrupt

    monkeypatch.setattr(many, "_prepare", counted)
    monkeypatch.setattr(many, "write_lines", watched)
    long = replace(job, table=tmp_path / "long.csv", columns=TableColumns(id="id"), batch_size=16, max_new_tokens=1)
    with pytest.raises(KeyboardInterrupt):
        run(long, tiny_model, adapter)
    assert max(ahead) <= 2 * many.WINDOW * 16
    assert len(long.output.read_text().splitlines()) == written, "what was drafted is there"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": TableColumns(id="cases")}, "no column cases; the table has case, patient"),
        ({"columns": TableColumns(context="indication")}, "no column indication"),
        ({"table": Path("none.csv")}, "none.csv: no such table"),
        ({"images": Path("/no/images")}, "/no/images: no such folder; set --images"),
    ],
)
def test_a_wrong_job_costs_no_wait(change: dict, message: str, job, tiny_model, adapter) -> None:
    with pytest.raises(UserError, match=message):
        replace(job, **change).check(adapter, tiny_model.spec.schema, resume=False)


def test_no_run_goes_on_with_what_another_began(job, tiny_model, adapter, tmp_path) -> None:
    run(job, tiny_model, adapter)
    schema = tiny_model.spec.schema
    with pytest.raises(UserError, match="is there already; go on with --resume"):
        job.check(adapter, schema, resume=False)
    with pytest.raises(UserError, match="was begun with another max_new_tokens"):
        replace(job, max_new_tokens=7).check(adapter, schema, resume=True)
    (adapter / "config.json").write_text((adapter / "config.json").read_text() + "\n")
    with pytest.raises(UserError, match="was begun with another adapter"):
        job.check(adapter, schema, resume=True)
    changed = replace(job, output=tmp_path / "other.jsonl", table=tmp_path / "cases.csv")
    changed.table.write_text(job.table.read_text())
    run(changed, tiny_model, adapter)
    changed.table.write_text(job.table.read_text().replace("c23,", "c99,"))
    with pytest.raises(UserError, match=r"line 24 is of row 25, where .*cases\.csv has another"):
        run(changed, tiny_model, adapter, resume=True)
    (tmp_path / "plain.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="neither a column image nor one of a vital"):
        replace(job, table=tmp_path / "plain.csv", columns=TableColumns()).check(adapter, schema, resume=False)


def test_the_command(adapter: Path, table_root: Path, tmp_path: Path, forks: Forks) -> None:
    table, output = tmp_path / "cases.csv", tmp_path / "reports.jsonl"
    table.write_text("id,image,glucose\n1,0.png,7\n2,,high\n")
    options = ("--adapter", str(adapter), "--input", str(table), "--images", str(table_root / "images"),
               "--output", str(output))  # fmt: skip
    result = forks.command("--max_new_tokens", "6", *options)
    assert result.returncode == 2, "a caller must notice that a row has no report"
    assert "2 lines" in result.stderr and "1 rows could not be read" in result.stderr
    assert "Traceback" not in result.stderr and "high" not in result.stderr, "no patient's value in a log"
    first, second = map(json.loads, output.read_text().splitlines())
    assert first["vitals"] == {"glucose": 7.0} and "'high' is not a number" in second["error"]
    refused = forks.command("--input", str(table), "--vitals", "glucose=7")
    assert refused.returncode == 2 and "leave --image and --vitals away" in refused.stderr
