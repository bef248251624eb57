"""ReXrank's JSON: studies in, the same JSON with predictions out."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import read_json
from vlm.adapter import read_config
from vlm.cli import main
from vlm.data.study import StudySpec
from vlm.errors import UserError
from vlm.inference.rexrank import case_rows, read_studies, write_predictions

SPEC = replace(read_config(Path(__file__).resolve().parents[1] / "golden" / "adapter").spec, context=True)
STUDY = {
    "key_image_path": "a/2.png", "image_path": ["/a/0.png", "a/1.png", "a/2.png"], "report": "Findings: Clear.",
    "section_findings": "Clear.", "section_impression": None, "split": "test",
    "frontal_lateral": ["Frontal", "Lateral", "Frontal"], "context": "Indication: Cough.",
}  # fmt: skip


def test_an_adapter_of_one_image_gets_the_key_image() -> None:
    assert list(case_rows({"s1": STUDY, "s2": {"image_path": "b.png"}}, SPEC)) == [
        {"study_id": "s1", "context": "Indication: Cough.", "image": "a/2.png"},
        {"study_id": "s2", "context": "", "image": "b.png"},
    ]
    assert next(case_rows({"s1": STUDY}, replace(SPEC, context=False)))["context"] == ""


def test_an_adapter_of_studies_gets_as_many_as_it_reads_with_the_views_it_knows() -> None:
    two = replace(SPEC, study=StudySpec(2, ("PA", "lateral")))
    (row,) = case_rows({"s1": STUDY}, two)
    assert row["image"] == ["a/0.png", "a/2.png"] and row["view"] == ["", ""], "the key image is among them"
    (row,) = case_rows({"s1": STUDY}, replace(SPEC, study=StudySpec(3, ("PA", "lateral"))))
    assert row["image"] == ["a/0.png", "a/1.png", "a/2.png"] and row["view"] == ["", "lateral", ""]


def test_what_it_writes_for_a_missing_text_is_read_as_null(tmp_path: Path) -> None:
    (file := tmp_path / "studies.json").write_text(json.dumps({"s1": STUDY}).replace("null", "NaN"))
    assert read_studies(file) == {"s1": STUDY}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON: Expecting"),
        ("[" * 100_000, "no JSON: "),
        ("[]", "maps the id of each study to an object"),
        ('{"a": 1}', "maps the id of each study to an object"),
        ('{"a": {}}', "study 'a': image_path is not one or several names of files"),
        ('{"a": {"image_path": [1]}}', "study 'a': image_path is not one or several names of files"),
        ('{"a": {"image_path": "b.png", "context": 1}}', "study 'a': context is no text"),
    ],
)
def test_a_wrong_file_is_one_line(text: str, says: str, tmp_path: Path) -> None:
    (file := tmp_path / "studies.json").write_text(text)
    with pytest.raises(UserError) as error:
        read_studies(file)
    assert str(error.value).startswith(f"--rexrank: {file}: {says}") and "\n" not in str(error.value)


def test_predictions_stand_in_the_studies_and_an_error_in_place_of_one(tmp_path: Path) -> None:
    (drafts := tmp_path / "drafts.jsonl").write_text('{"text": "Clear."}\n{"error": "no such image"}\n')
    assert write_predictions({"a": dict(STUDY), "b": {"image_path": "x"}}, drafts, tmp_path / "out.json") == 1
    said = read_json(tmp_path / "out.json")
    assert said["a"] == {**STUDY, "model_prediction": "Clear."}
    assert said["b"] == {"image_path": "x", "model_prediction": "", "error": "no such image"}


def test_the_command(tiny_adapter: Path, table_root: Path, tmp_path: Path) -> None:
    first = {**STUDY, "key_image_path": "0.png", "image_path": ["1.png", "0.png"], "frontal_lateral": None}
    (file := tmp_path / "studies.json").write_text(json.dumps({"s1": first, "s2": {"image_path": "1.png"}}))
    output = tmp_path / "predictions.json"
    words = ["draft", "--adapter", str(tiny_adapter), "--rexrank", str(file), "--images", str(table_root / "images"),
             "--output", str(output), "--max_new_tokens", "4"]  # fmt: skip
    main(words)
    written = (tmp_path / "predictions.json.drafts.jsonl").read_text().splitlines()
    said, lines = read_json(output), [json.loads(line) for line in written]
    assert list(said) == ["s1", "s2"] and said["s1"]["section_findings"] == "Clear."
    assert [one["model_prediction"] for one in said.values()] == [line["text"] for line in lines]
    assert [line["id"] for line in lines] == ["s1", "s2"]
    with pytest.raises(UserError, match="is there already; go on with --resume"):
        main(words)
    with pytest.raises(UserError, match="--rexrank: brings its own studies"):
        main([*words, "--image", "case.png"])
