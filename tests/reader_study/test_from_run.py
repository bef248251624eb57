"""A study made from a run: who is drawn, what is shown, and what must not be in it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import table_config
from vlm.cli import main
from vlm.config import Config
from vlm.config.parsing import to_yaml
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.evaluation.baselines import constant_report
from vlm.reader_study.from_run import LONGEST_SIDE, StudyPlan, draw_cases, make_study, training_reports
from vlm.reader_study.study_file import read_codes, read_study


@pytest.fixture(scope="module")
def run(table_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on `table_root`: its config and the predictions of some cases, one without a reference."""
    folder = tmp_path_factory.mktemp("runs") / "ward"
    folder.mkdir()
    config = Config(data=table_config(table_root))
    (folder / "config.yaml").write_text(to_yaml(config))
    rows = []
    for row in load_cohort(config.data).dataset.select(range(12)):
        number = int(row["id"][1:])
        reference = "" if number == 4 else f"Reference {number}."
        draft = reference if number == 7 else f"Draft {number}\u202e."
        vitals = {"glucose": 7.25, "sex": "M"} if number else {}
        rows.append({"id": row["id"], "patient": row["patient"], "vitals": vitals, "reference": reference,
                     "report": draft, "probabilities": {"pathology": 0.2}})  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_folder_holds_no_name_of_a_patient_or_case(run: Path, table_root: Path, tmp_path: Path) -> None:
    output = tmp_path / "study"
    codes = make_study(StudyPlan(run, cases=11, readers=3), output)
    study = read_study(output)
    assert read_codes(output, study) == codes and sorted(codes.values()) == [1, 2, 3]
    text = (output / "study.json").read_text()
    assert not any(word in text for word in ('"c1', '"p1', ".csv", str(table_root), "u202e", "\u202e"))
    assert {case.patient for case in study.cases} == set(range(1, 12)) and len(study.cases) == 11
    by_draft = {text.text: case for case in study.cases for text in case.texts if "draft" in text.sources}
    assert by_draft["Draft 1."].vitals == {"glucose": "7.25 mmol/L", "sex": "M"} and by_draft["Draft 0."].vitals == {}
    assert by_draft["Draft 5."].images == [] and len(by_draft["Draft 1."].images) == 1
    assert by_draft["Reference 7."].texts[0].sources[:2] == ["draft", "reference"], "said once"
    constant = constant_report(training_reports(load_cohort(table_config(table_root))))
    assert constant and all(any(t.text == constant for t in case.texts) for case in study.cases)
    for file in output.rglob("*"):
        assert file.stat().st_mode & 0o077 == 0, file


def test_pictures_are_whole_and_hold_pixels_alone(run: Path, table_root: Path, tmp_path: Path) -> None:
    output = tmp_path / "study"
    make_study(StudyPlan(run, cases=11), output)
    study = read_study(output)
    files = sorted(picture.file for case in study.cases for picture in case.images)
    assert files == sorted(file.name for file in (output / "images").iterdir())
    case = next(case for case in study.cases if any(text.text == "Draft 1." for text in case.texts))
    shown = cv2.imread(str(output / "images" / case.images[0].file), cv2.IMREAD_UNCHANGED)
    source = cv2.imread(str(table_root / "images" / "1.png"), cv2.IMREAD_UNCHANGED)
    assert shown.shape == source.shape == (40, 48) and np.corrcoef(shown.ravel(), source.ravel())[0, 1] > 0.999


def test_a_large_picture_is_made_smaller_and_a_blank_one_is_left_out(tmp_path: Path) -> None:
    from vlm.reader_study.from_run import _picture

    large = np.random.default_rng(0).integers(0, 256, (30, 3000, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "large.png"), large)
    cv2.imwrite(str(tmp_path / "blank.png"), np.full((9, 9), 7, np.uint8))
    data = _picture(str(tmp_path / "large.png"))
    assert data and cv2.imdecode(np.frombuffer(data, np.uint8), -1).shape == (20, LONGEST_SIDE, 3)
    assert _picture(str(tmp_path / "blank.png")) is None
    (tmp_path / "no.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(UserError, match=r"no\.png"):
        _picture(str(tmp_path / "no.png"))


def test_draw_and_order_are_those_of_the_seed(run: Path, tmp_path: Path) -> None:
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_study(StudyPlan(run, cases=5, seed=seed), tmp_path / name)
        made.append(read_study(tmp_path / name))
    assert made[0] == made[1] != made[2]
    assert (tmp_path / "a/codes.json").read_text() != (tmp_path / "b/codes.json").read_text(), "not from the seed"


def test_another_run_is_judged_under_the_name_of_its_folder(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    text = (run / "predictions.jsonl").read_text()
    (other / "predictions.jsonl").write_text(text.replace("Draft ", "Sketch "))
    plan = StudyPlan(run, cases=3, sources=["draft"], against=[other])
    make_study(plan, tmp_path / "study")
    study = read_study(tmp_path / "study")
    assert study.sources == ["draft", "other"]
    (other / "predictions.jsonl").write_text(text.replace("Reference ", "Words "))
    with pytest.raises(UserError, match="has another reference"):
        make_study(plan, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_mistakes_are_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    (bare / "config.yaml").unlink()
    plan = StudyPlan(run, cases=3)
    for wrong, output, said in [
        (plan, "full", "not empty"),
        (replace(plan, cases=12), "new", r"12, but .* has 11 that can be judged"),
        (replace(plan, cases=0), "new", "--cases"),
        (replace(plan, readers=51), "new", "--readers"),
        (replace(plan, seed=-1), "new", "--seed"),
        (replace(plan, sources=["reference"]), "new", "--sources: draft"),
        (replace(plan, sources=["draft", "best"]), "new", "--sources: draft"),
        (replace(plan, sources=["draft", "draft"]), "new", "--sources"),
        (replace(plan, sources=["draft"]), "new", "without a second nothing is compared"),
        (replace(plan, run=tmp_path), "new", "no such file"),
        (replace(plan, run=bare), "new", r"config\.yaml: no such file; name the config of the cases with --data"),
        (replace(plan, sources=["draft", "nearest"]), "new", "needs the adapter of the run"),
    ]:
        with pytest.raises(UserError, match=said):
            make_study(wrong, tmp_path / output)
    assert not (tmp_path / "new").exists()
    assert (
        len(draw_cases({"a": {"id": "a", "reference": ""}}, StudyPlan(run, cases=1, sources=["draft", "constant"])))
        == 1
    )


def test_the_command_prints_the_codes_and_takes_options_of_the_config(
    run: Path, table_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bare = tmp_path / "evaluated"
    bare.mkdir()
    shutil.copy(run / "predictions.jsonl", bare)
    output = tmp_path / "study"
    moved = tmp_path / "moved"
    shutil.copytree(table_root, moved)
    options = ["--data", str(run / "config.yaml"), "--data.root", str(moved), "--layout", "side_by_side"]
    main(["reader-study", "make", str(bare), "--output", str(output), "--cases", "4", *options])
    said = capsys.readouterr().out
    codes = json.loads((output / "codes.json").read_text())
    assert "4 cases of 4 patients" in said and all(
        f"reader {number}: code {code}" in said for code, number in codes.items()
    )
    main(["reader-study", "results", str(output)])
    assert "reader 1: 0 of 4 pages answered" in capsys.readouterr().out


def test_the_nearest_training_case_is_a_source(run: Path, tiny_adapter: Path, table_root: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    shutil.copytree(tiny_adapter, whole / "adapter")
    make_study(StudyPlan(whole, cases=4, sources=["draft", "nearest"]), tmp_path / "study")
    study = read_study(tmp_path / "study")
    known = set(training_reports(load_cohort(table_config(table_root))))
    nearest = {text.text for case in study.cases for text in case.texts if "nearest" in text.sources}
    assert nearest and nearest <= known
