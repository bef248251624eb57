"""Conversations as tables: chat messages and LLaVA's JSON, of one question and one report each."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests import layouts
from tests.cells import rows_of
from vlm.config import DataConfig, SectionConfig, TableConfig
from vlm.data.ingest.conversations import flat_row
from vlm.data.ingest.read import read_table
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError

ASK, SAY = {"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": "Clear lungs."}


def chat(*parts: dict[str, Any], answer: object = "Clear lungs.") -> dict[str, Any]:
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": "Describe it."}]}
    return {"messages": [{"role": "system", "content": "Be brief."}, asked, {"role": "assistant", "content": answer}]}


def cohort_of(root: Path, file: str, **options: Any):
    for name in ("a.png", "b.png"):
        layouts.picture(root / name)
    table = TableConfig(file=file, report=[SectionConfig("assistant")], **options)
    return load_cohort(DataConfig(source="table", root=str(root), table=table))


@pytest.mark.parametrize("layout", ["indented", "one line", "gzipped", "lines", "lines named .json"])
def test_llava_json(layout: str, tmp_path: Path) -> None:
    answers = [{**SAY, "value": f"Größe {i}. " + "x" * 3000} for i in range(800)]
    rows = [{"id": f"s{i}", "image": "ab"[i % 2] + ".png", "conversations": [ASK, answer], "who": "p1", "age": 43,
             "edema": i % 2} for i, answer in enumerate(answers)]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    text = {"indented": json.dumps(rows, indent=2, ensure_ascii=False) + "\n", "one line": json.dumps(rows)}
    name = {"gzipped": "t.json.gz", "lines": "t.jsonl"}.get(layout, "t.json")
    data = text.get(layout, lines if "lines" in layout else text["one line"]).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if layout == "gzipped" else data)
    cohort = cohort_of(tmp_path, name, id="id", patient="who", labels=["edema"], vitals=["age"], context="user")
    found = rows_of(cohort)
    assert len(found) == 800, "more than a piece of the file"
    row = found["s3"]
    assert row["sections"][0].startswith("Größe 3. x") and row["context"] == "Describe it."
    assert row["image"].endswith("b.png") and row["patient"] == "p1"
    assert row["labels"] == {"edema": 1} and row["vitals"] == {"age": 43}


def test_chat_messages_in_each_way_to_name_an_image(tmp_path: Path) -> None:
    rows = [
        chat({"type": "image", "image": "a.png"}),
        chat({"type": "image", "path": "a.png"}),
        chat({"type": "image_url", "image_url": {"url": "a.png"}}, answer=[{"type": "text", "text": "Clear lungs."}]),
        chat({"type": "image"}) | {"images": ["a.png"]},
        chat() | {"image": "a.png"},
        {"conversations": [ASK, SAY], "image": "a.png"},
        {"messages": [{"role": "user", "content": "<image>Describe it."}, chat()["messages"][2]], "images": "a.png"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    cohort = cohort_of(tmp_path, "t.jsonl", context="user")
    assert any("no patient column is named" in warning for warning in cohort.warnings)
    found = list(rows_of(cohort).values())
    assert len(found) == 7
    for row in found:
        assert (
            row["image"].endswith("a.png") and row["sections"] == ["Clear lungs."] and row["context"] == "Describe it."
        )
    assert read_table(tmp_path / "t.jsonl")["system"].tolist()[:2] == ["Be brief."] * 2


def test_several_images_no_image_and_no_answer(tmp_path: Path) -> None:
    rows = [chat({"type": "image", "image": "a.png"}, {"type": "image", "image": "b.png"}), chat(),
            {"messages": [{"role": "user", "content": "Describe it."}]}, {"note": "no conversation"}]  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(rows))
    cohort = cohort_of(tmp_path, "t.json")
    images = [[Path(image["path"]).name for image in case] for case in cohort.dataset["images"]]
    assert images == [["a.png", "b.png"], [], [], []]
    assert cohort.dataset["sections"][:] == [["Clear lungs."], ["Clear lungs."], [""], [""]]


def test_a_conversation_an_image_joins_to_its_study(tmp_path: Path) -> None:
    rows = [{"study_id": "s1", "view": view, "image": name, "conversations": [ASK, SAY]}
            for name, view in (("a.png", "PA"), ("b.png", "lateral"))]  # fmt: skip
    (tmp_path / "t.json").write_text(json.dumps(rows))
    cohort = cohort_of(tmp_path, "t.json", study="study_id", view="view")
    assert [image["view"] for image in cohort.dataset[0]["images"]] == ["PA", "lateral"] and len(cohort.dataset) == 1
    rows[1]["conversations"] = [ASK, {**SAY, "value": "Effusion."}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match="row 2: assistant differs from row 1, of the same study"):
        cohort_of(tmp_path, "t.json", study="study_id", view="view")


@pytest.mark.parametrize(("row", "message"), [
    ({"conversations": [ASK, SAY, ASK, SAY], "image": "a.png"}, "conversations: several turns, or an answer before"),
    ({"conversations": [SAY, ASK], "image": "a.png"}, "several turns, or an answer before its question"),
    ({"conversations": [{"from": "tool", "value": ""}]}, "conversations: a turn of 'tool'; turns are of system,"),
    ({"conversations": [{"from": ["gpt"], "value": ""}]}, "a turn of a list; turns"),
    ({"conversations": [ASK, {}]}, "a turn of "),
    ({"conversations": [{"from": "human", "value": 7}]}, "conversations: user: a part that is no text and no image"),
    (chat({"type": "video", "video": "a.mp4"}), "messages: user: a part that is no text and no image: 'video'"),
    (chat({"type": "image", "image": ["a.png"]}), "an image whose name is no text"),
    (chat({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}), "save it as a file"),
    (chat(answer=[{"type": "image", "image": "a.png"}]), "the answer holds an image"),
    ({"conversations": [ASK, SAY]}, "images are not named once each: 1 in the turns, 0 beside"),
    ({"conversations": [ASK, SAY], "image": ["a.png", "b.png"]}, "1 in the turns, 2 beside"),
    (chat({"type": "image", "image": "a.png"}) | {"image": "a.png"}, "1 in the turns, 1 beside"),
    ({"conversations": [ASK, SAY], "image": "a.png", "assistant": "x"}, "the key assistant stands beside"),
    ({"conversations": [ASK, SAY], "image": {"bytes": 1}}, "an image whose name is no text"),
])  # fmt: skip
def test_what_is_no_case_is_refused_in_one_line(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        flat_row(row, "t.json: row 1")
    said = str(error.value)
    assert said.startswith("t.json: row 1: ") and message in said and "\n" not in said, said


@pytest.mark.parametrize("row", [{"messages": "text"}, {"messages": []}, {"messages": [1]}, {"messages": [{"a": 1}]},
                                 {"image": "a.png"}])  # fmt: skip
def test_other_rows_stay_as_they_are(row: dict[str, Any]) -> None:
    assert flat_row(row, "t.json: row 1") is row


@pytest.mark.parametrize(("text", "message"), [
    ("", ": neither an array of objects, [{…}, {…}], nor one object a line"),
    ('"a"', ": neither an array"),
    ("[]", ": the file is empty"),
    ("[1]", ": row 1 is no JSON object"),
    ('[{"a": 1}, {"a": }]', ": row 2 is no JSON object"),
    ('[{"a": 1}, {"a": 2, "a": 3}]', ": row 2: the key 'a' stands there twice"),
    ('[{"a": 1}', ": after row 1 stands no comma and no ], or more than ]"),
    ('[{"a": 1}]]', ": after row 1 stands no comma"),
    ('[{"a": 1},]', ": row 2 is no JSON object"),
    ('[{"a": 1}, {"a": "x', ": row 2 is no JSON object"),
    ('[{"a": "\\ud800"}]', ": row 1 holds half of a character"),
    ("[" * 100_000, ": row 1 is no JSON object"),
    ('[{"a": ' + "[" * 100_000, ": row 1 is no JSON object: nested too deep"),
    ('[{"a": "' + "x" * (9 << 20), ": row 1 is longer than 8 million characters"),
    ('[{"a": "' + "x" * (9 << 20) + '"}]', ": row 1 is longer than 8 million characters"),
    ('[{"a": 1' + "0" * 9000 + "}]", ": row 1 is no JSON object"),
    ("[" + " " * (3 << 20), ": row 1 is no JSON object"),
    (b'[{"a": "\xff"}]', ": row 1 or later is not UTF-8, as JSON must be"),
])  # fmt: skip
def test_a_faulty_array_is_one_line(text: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_table(path)
    assert str(error.value).startswith(f"{path}{message}"), error.value
