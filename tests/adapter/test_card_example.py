"""The example of a model card: it loads the whole adapter, not its LoRA alone, and runs as it stands."""

import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.hub_adapters import REPO, edit, folder, saved, trained
from tests.hub_server import hub
from vlm import ClinicalVLM
from vlm.adapter import load, save
from vlm.adapter.card import EXAMPLE, example_vitals
from vlm.adapter.hub import fetch, push
from vlm.cli import main
from vlm.config import VitalConfig
from vlm.data.vitals.schema import VitalsSchema

__all__ = ["folder", "hub", "saved", "trained"]  # fixtures

WANTED = {"glucose": 5.85, "systolic": 114.0, "sex": "F"}
"""Normal values of the tests' table; the diastolic pressure has no reference range."""


@pytest.fixture
def here(trained: ClinicalVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the adapter under the card's own placeholder, and a stand-in image."""
    save(trained, tmp_path / EXAMPLE)
    cv2.imwrite(str(tmp_path / "case.png"), np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code(card: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", card, re.M | re.S)
    return str(found)


def test_the_snippet_runs_as_it_stands_and_drafts_with_image_and_vitals(here: Path, trained, capsys) -> None:
    exec(code((here / EXAMPLE / "README.md").read_text(), "python"), {})
    wanted = trained.predict("case.png", WANTED)
    assert wanted.vitals == WANTED and "no image given" not in wanted.warnings
    assert capsys.readouterr().out == f"{wanted}\n{wanted.probabilities}\n"


@pytest.mark.slow
def test_the_command_line_runs_as_it_stands(here: Path, trained, capsys) -> None:
    line = code((here / EXAMPLE / "README.md").read_text(), "bash").strip()
    program, *arguments = shlex.split(line)
    assert program == "clinical-vlm"
    main([*arguments, "--json"])
    printed = json.loads(capsys.readouterr().out)
    wanted = trained.predict("case.png", WANTED)
    assert (printed["text"], printed["vitals"]) == (wanted.text, WANTED)


def test_its_values_are_normal_and_quoted_whatever_the_vitals_are_called() -> None:
    given = [
        VitalConfig("a series", over_time=True, reference=[1, 2]),
        VitalConfig("no range"),
        VitalConfig('it\'s "odd"', reference=[7.35, 7.45]),
        VitalConfig("smoker", categories=["never", "now"]),
        VitalConfig("sodium", reference=[135, 145]),
        VitalConfig("a fourth", reference=[0, 1]),
    ]
    assert example_vitals(VitalsSchema(tuple(given))) == {'it\'s "odd"': 7.4, "smoker": "never", "sodium": 140.0}
    assert example_vitals(VitalsSchema(())) == {}


def test_a_pushed_card_names_its_repository_in_both(hub, folder: Path) -> None:
    push(folder, REPO)
    card = (fetch(REPO) / "README.md").read_text()
    assert f'from_pretrained("{REPO}")' in code(card, "python") and f'--adapter "{REPO}"' in code(card, "bash")
    assert EXAMPLE not in card


def test_a_card_of_an_earlier_version_stays_as_it_is(hub, folder: Path, tiny_llm: str) -> None:
    """It names PEFT as its library; the adapter loads, is checked and pushed all the same."""
    golden = Path(__file__).parent.parent / "golden" / "adapter" / "README.md"
    shutil.copy(golden, folder / "README.md")
    edit(folder / "metrics.json", lambda metrics: None)  # seals it again
    assert load(folder, base=tiny_llm)
    push(folder, REPO)
    assert "library_name: peft" in (fetch(REPO) / "README.md").read_text()
    assert load(REPO, base=tiny_llm)
