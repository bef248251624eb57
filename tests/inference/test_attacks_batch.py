"""A batch of drafts whose table or images change, and processes that meet at one output."""

import json
import multiprocessing
from pathlib import Path

import cv2
import pytest

from tests.changed_tables import CHANGES, data, draft, job
from tests.conftest import read_json, table_config
from vlm.data.prepare.pack import PackOptions, pack
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine
from vlm.inference.parts import MultiProcessJob, RankShare
from vlm.locks import locked

__all__ = ["data", "job"]  # fixtures


@pytest.mark.slow
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
