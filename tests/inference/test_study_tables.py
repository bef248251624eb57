"""Tables of studies: several images in a cell or a row each, priors beside them, and what costs one case alone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.forks import Forks
from tests.studies import save_study_adapter, write_pictures
from vlm import ClinicalVLM, StudyImage, UserError
from vlm.data.embedded import EmbeddedImage
from vlm.data.vitals.schema import VitalsSchema
from vlm.inference.command import draft_table
from vlm.inference.engine import ReportEngine
from vlm.inference.many import TableJob
from vlm.inference.rows import Row, TableColumns, join_studies

COLUMNS = TableColumns(id="id", view="view", prior="before", prior_days="days", prior_report="said", separator=";",
                       context="why")  # fmt: skip
VITALS = {"glucose": 8.0, "systolic": 120.0, "diastolic": 80.0, "sex": "F"}


@pytest.fixture(scope="module")
def adapter(tiny_llm: str, table_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_study_adapter(tiny_llm, table_root, tmp_path_factory.mktemp("study") / "adapter")


@pytest.fixture(scope="module")
def model(adapter: Path) -> ClinicalVLM:
    return ClinicalVLM.from_pretrained(adapter, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 6)


def table(folder: Path, rows: list[dict[str, Any]], name: str = "cases.csv") -> Path:
    file = folder / name
    frame = pd.DataFrame([{**VITALS, **row} for row in rows]).fillna("")
    frame.to_json(file, orient="records", lines=True) if name.endswith("l") else frame.to_csv(file, index=False)
    return file


def drafted(model: ClinicalVLM, job: TableJob) -> list[dict[str, Any]]:
    engine = ReportEngine(model)
    return [line for lines in job.draft(engine, job.rows(model.spec.schema)) for line in lines]


def job_of(file: Path, images: Path, columns: TableColumns, batch: int = 3) -> TableJob:
    return TableJob(file, file.with_suffix(".out.jsonl"), images, columns, batch, 8)


def test_a_cell_of_several_names_is_a_study(model: ClinicalVLM, files: list[Path], tmp_path: Path) -> None:
    rows = [
        {"id": "a", "image": "jane-0.png;jane-1.png", "view": "PA; lateral", "before": "jane-2.png", "days": "30",
         "said": "Clear.", "why": "Cough."},
        {"id": "b", "image": "jane-0.png", "view": "PA", "before": "jane-1.png;jane-2.png", "days": "7,5"},
        {"id": "c", "image": "", "before": "", "days": "3"},
        {"id": "d", "image": "jane-3.png"},
    ]  # fmt: skip
    lines = drafted(model, job_of(table(tmp_path, rows), files[0].parent, COLUMNS))
    study = [StudyImage(files[0], "PA"), StudyImage(files[1], "lateral"), StudyImage(files[2], "", True, 30)]
    own = model.predict(study, VITALS, 8, context="Cough.", prior_report="Clear.")
    assert [line["id"] for line in lines] == ["a", "b", "c", "d"] and not any("error" in line for line in lines)
    assert lines[0]["text"] == own.text and lines[0]["images"] == own.to_dict()["images"]
    assert [one["days"] for one in lines[1]["images"]] == [None, 7.5, 7.5]
    assert lines[2]["images"] == [] and "no image given" in lines[2]["warnings"]
    assert lines[3]["images"] == [{"view": "", "prior": False, "days": None}]


def test_lists_of_names_are_a_study_too(model: ClinicalVLM, files: list[Path], tmp_path: Path) -> None:
    rows = [{"id": "a", "image": ["jane-0.png", "jane-1.png"], "view": ["PA", ""], "before": [], "days": ""}]
    columns = TableColumns(id="id", view="view", prior="before", prior_days="days", separator=";")
    (line,) = drafted(model, job_of(table(tmp_path, rows, "cases.jsonl"), files[0].parent, columns))
    assert [one["view"] for one in line["images"]] == ["", "PA"]


def test_rows_of_one_study_are_one_case(model: ClinicalVLM, files: list[Path], tmp_path: Path) -> None:
    rows = [
        {"study": "s1", "image": "jane-0.png", "view": "PA", "why": "Cough.", "glucose": ""},
        {"study": "s1", "image": "jane-1.png", "view": "LATERAL", "why": ""},
        {"study": "s1", "before": "jane-2.png", "days": 30},
        {"study": "", "image": "jane-3.png"},
        {"study": "", "image": "jane-4.png"},
        {"study": "s2", "image": "jane-0.png"},
    ]
    columns = TableColumns(study="study", view="view", prior="before", prior_days="days", context="why")
    job = job_of(table(tmp_path, rows), files[0].parent, columns, batch=1)
    lines = drafted(model, job)
    assert [(line["row"], line["id"]) for line in lines] == [(2, "s1"), (5, "row-5"), (6, "row-6"), (7, "s2")]
    study = [StudyImage(files[0], "PA"), StudyImage(files[1], "lateral"), StudyImage(files[2], "", True, 30)]
    assert lines[0]["text"] == model.predict(study, VITALS, 8, context="Cough.").text


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"view": "PA;lateral"}, "column view: 2 for 1 images; write one each, or one for all"),
        ({"view": "oblique"}, "the image: the adapter knows no view 'oblique'"),
        ({"before": "jane-1.png", "days": "-3"}, "prior_days: -3 days before the study is after it"),
        ({"before": "jane-1.png", "days": "soon"}, "prior_days: 'soon' is no number of days"),
        ({"image": "jane-0.png;" * 9 + "jane-1.png"}, "10 images were given; the adapter reads 4 at most"),
        ({"image": "jane-0.png;none.png"}, "none.png"),
    ],
)
def test_a_wrong_study_costs_its_case_alone(
    row: dict[str, Any], error: str, model: ClinicalVLM, files: list[Path], tmp_path: Path
) -> None:
    plain = {"id": "x", "image": "jane-0.png", "view": "", "before": "", "days": "", "said": "", "why": ""}
    file = table(tmp_path, [plain | row, plain | {"id": "y"}])
    first, second = drafted(model, job_of(file, files[0].parent, COLUMNS))
    assert error in first["error"] and "text" in second


def test_rows_that_contradict_or_stand_apart_are_faults(model: ClinicalVLM, files: list[Path], tmp_path: Path) -> None:
    rows = [
        {"study": "s1", "image": "jane-0.png", "why": "Cough.", "glucose": 8},
        {"study": "s1", "image": "jane-1.png", "why": "Fever.", "glucose": 9},
        {"study": "s2", "image": "jane-0.png"},
        {"study": "s1", "image": "jane-2.png"},
    ]
    columns = TableColumns(study="study", context="why")
    lines = drafted(model, job_of(table(tmp_path, rows), files[0].parent, columns))
    assert lines[0]["error"] == "rows 2 to 3, of one study, differ in context, glucose"
    assert "text" in lines[1] and lines[2]["error"] == "study 's1': its rows are not together; sort the table by study"


def test_rows_survive_the_way_to_another_process() -> None:
    row = Row(2, "a", ("x.png", EmbeddedImage("t.parquet", 1, "image", 30)), ("y.png",), {"glucose": 8}, "Cough.",
              ("PA", ""), ("30",), "Clear.", "s", "fault")  # fmt: skip
    assert Row.from_dict(json.loads(json.dumps(asdict(row)))) == row
    assert list(join_studies(iter([row]))) == [row]


def test_metadata_names_further_columns_only_where_they_are_used() -> None:
    """A table begun by an earlier version goes on."""
    assert TableColumns(id="id").to_dict() == {"image": "image", "id": "id", "context": None}
    assert TableColumns(prior="before").to_dict() == {"image": "image", "id": None, "context": None, "prior": "before"}
    with pytest.raises(UserError, match="no column before"):
        TableColumns(prior="before").found_in(["image"], Path("t.csv"))
    assert TableColumns(view="VIEW").found_in(["Image", "view"], Path("t.csv")) == TableColumns("Image", view="view")


def test_an_adapter_of_one_image_refuses_a_table_of_studies(
    tiny_adapter: Path, files: list[Path], tmp_path: Path
) -> None:
    file = table(tmp_path, [{"id": "a", "image": "jane-0.png", "before": "jane-1.png"}])
    job = job_of(file, files[0].parent, TableColumns(prior="before"))
    with pytest.raises(UserError, match="--prior_column: the adapter was trained on one image a case"):
        draft_table(str(tiny_adapter), job, False)
    told = job_of(file, files[0].parent, TableColumns(separator=";"))
    with pytest.raises(UserError, match="--separator: the adapter was trained on one image a case"):
        draft_table(str(tiny_adapter), told, False)


def test_the_command_drafts_a_table_of_studies_and_resumes(
    adapter: Path, files: list[Path], tmp_path: Path, forks: Forks
) -> None:
    rows = [{"study": f"s{number // 2}", "image": f"jane-{number}.png", "view": ("PA", "lateral")[number % 2]}
            for number in range(6)]  # fmt: skip
    out = tmp_path / "out.jsonl"
    options = ("--adapter", str(adapter), "--input", str(table(tmp_path, rows)), "--images", str(files[0].parent),
               "--study_column", "study", "--view_column", "view", "--output", str(out),
               "--max_new_tokens", "4")  # fmt: skip
    result = forks.command(*options)
    assert result.returncode == 0, result.stderr
    whole = out.read_text()
    first = drafts(whole)
    assert [len(draft["images"]) for draft in first] == [2, 2, 2]
    out.write_text(whole[: len(whole) - 40])
    assert forks.command(*options, "--resume").returncode == 0 and drafts(out.read_text()) == first


def drafts(lines: str) -> list[dict]:
    """Read drafts; probabilities to 6 digits, since a batch of one multiplies in another order than one of three."""
    return [
        draft | {"probabilities": {name: round(p, 6) for name, p in draft["probabilities"].items()}}
        for draft in map(json.loads, lines.splitlines())
    ]


def test_an_empty_schema_reads_rows_of_images_alone() -> None:
    frame = pd.DataFrame({"image": ["a.png", ""], "view": ["PA", "PA"]})
    first, second = TableColumns(view="view").rows(frame, Path("t.csv"), VitalsSchema(()))
    assert (first.images, first.views, first.vitals) == (("a.png",), ("PA",), {}) and second.views == ()
