"""Reporting checklists: their items, what a run answers, what the authors answer, and what stays open."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import read_json
from vlm.adapter import read_config
from vlm.adapter.checklist_facts import run_facts
from vlm.adapter.checklists import GUIDELINES, fill, read_words, template, topics, write_checklists
from vlm.cli import main
from vlm.errors import UserError
from vlm.resources import load_yaml
from vlm.untrusted import parse_yaml

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
COUNTS = {"CLAIM 2024": 44, "TRIPOD-LLM": 49, "STARD-AI": 48, "DECIDE-AI": 27, "FUTURE-AI": 30,
          "CHAI applied model card": 41}  # fmt: skip


def estimate(value: float | None) -> dict[str, Any]:
    return {"value": value, "low": value and value - 0.1, "high": value and value + 0.1}


METRICS = {
    "cases": 20, "patients": 18,
    "splits": {"train": {"cases": 90, "patients": 80}, "test": {"cases": 20, "patients": 18}},
    "labels": {"opacity": {"auroc": estimate(0.8)}}, "findings": {"f1": estimate(0.5), "miss_rate": estimate(0.25)},
    "text": {"rougel": estimate(None)}, "ablation": {"image_withheld": {}},
    "baselines": {"constant": {"findings": {"f1": estimate(0.3)}}},
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with the golden adapter and options, and made-up metrics."""
    folder = tmp_path / "run"
    shutil.copytree(GOLDEN / "adapter", folder / "adapter")
    shutil.copy(GOLDEN / "run" / "config.yaml", folder)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return folder


def test_every_item_has_a_number_of_its_own_and_a_topic_that_is_explained() -> None:
    known, used = topics(), set()
    for checklist in fill({}, {}):
        numbers = [item.number for item in checklist.items]
        assert len(numbers) == len(set(numbers)) == COUNTS[checklist.name] == checklist.counts["open"]
        asked = {topic for item in checklist.items for topic in item.topics}
        assert asked <= known.keys() and all(item.asks for item in checklist.items)
        assert ("doi:" in checklist.citation or "https://" in checklist.citation) and checklist.checked
        used |= asked
    assert len(GUIDELINES) == len(COUNTS)
    assert load_yaml("vlm.adapter", "guidelines/left_out.yaml").keys() == {"MI-CLAIM-GEN"}
    facts = run_facts(read_config(GOLDEN / "adapter"), METRICS, {}, "f" * 64)
    assert known.keys() == used and facts.keys() <= known.keys()


def test_a_run_answers_what_its_files_say(run: Path) -> None:
    lines = write_checklists(run)
    values = read_json(run / "checklists.json")
    claim = {item["number"]: item for item in values["guidelines"][0]["items"]}
    assert values["format"] == 1 and claim["20"]["run"] == (
        "train 90 cases of 80 patients; test 20 cases of 18 patients; disjoint by patient")  # fmt: skip
    assert "AUROC of opacity 0.800 (0.700 to 0.900)" in claim["38"]["run"] and "ROUGE-L" not in claim["38"]["run"]
    assert "max_steps 90" in claim["25"]["run"] and "25.0% of the references' findings" in claim["39"]["run"]
    assert "greedy decoding" in {item["number"]: item for item in values["guidelines"][1]["items"]}["6b"]["run"]
    assert claim["44"] == {"number": "44", "topics": ["funding"], "asks": "Funding and the role of funders", "run": "",
                           "authors": "", "in_part": False, "status": "open"}  # fmt: skip
    assert claim["43"]["status"] == "part" and "Apache-2.0" in claim["43"]["run"], "the data are left open"
    assert lines[0] == "CLAIM 2024: 44 items, 14 answered, 4 in part, 26 open"
    assert "funding" in lines[-3] and "--about" in lines[-2]
    text = (run / "checklists.md").read_text()
    assert "| 44 | Funding and the role of funders | **open**: the authors must say (funding) |" in text
    assert "MI-CLAIM-GEN" in text and "finding F1 of constant 0.300" in text


def test_one_answer_of_the_authors_serves_every_guideline(run: Path, tmp_path: Path) -> None:
    (about := tmp_path / "about.yaml").write_text("funding: |\n  None |\n  at <all>\nresults: See table 2.\nethics:\n")
    before = read_json_after(run)
    write_checklists(run, about)
    values = read_json(run / "checklists.json")
    funding = [item for one in values["guidelines"] for item in one["items"] if item["topics"] == ["funding"]]
    assert len(funding) == 4 and {(item["authors"], item["status"]) for item in funding} == {
        ("None | at <all>", "authors")}  # fmt: skip
    results = values["guidelines"][0]["items"][37]
    assert results["status"] == "run and authors" and results["authors"] == "See table 2."
    assert sum(one["counts"]["open"] for one in values["guidelines"]) == before - 4, "an empty topic stays open"
    assert "| None \\| at &lt;all> |" in (run / "checklists.md").read_text()


def read_json_after(run: Path) -> int:
    write_checklists(run)
    return sum(one["counts"]["open"] for one in read_json(run / "checklists.json")["guidelines"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fundin: none", "unknown topic 'fundin'; did you mean funding?"),
        ("zzzz: none", "unknown topic 'zzzz'; clinical-vlm checklist --template lists the topics"),
        ("funding: [none]", "funding: is no text; put it in quotes"),
        ("funding: 2024", "funding: is no text; put it in quotes"),
        ("none", "maps topics to texts, such as funding: none"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_topic(text: str, says: str, tmp_path: Path) -> None:
    (file := tmp_path / "about.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_words(file)
    assert str(error.value) == f"{file}: {says}"


def test_the_template_is_a_file_of_no_words(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main(["checklist", "--template"])
    (file := tmp_path / "about.yaml").write_text(capsys.readouterr().out)
    assert file.read_text() == template() and parse_yaml(template(), "").keys() == topics().keys()
    assert read_words(file) == {} == read_words(None)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UserError, match="has no adapter/, so it is no run that has ended"):
        main(["checklist", str(tmp_path)])
    with pytest.raises(UserError, match="name the folder of a run"):
        main(["checklist"])
    (run / "metrics.json").unlink()
    (run / "config.yaml").unlink()
    write_checklists(run)
    claim = read_json(run / "checklists.json")["guidelines"][0]["items"]
    assert claim[37]["status"] == "open" and claim[21]["status"] == "run", "the adapter alone tells the model"
