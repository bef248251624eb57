"""An explanation as a picture and by the command, and what cannot be explained, in one line."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch

from tests.explained import VITALS, image, model, report
from tests.forks import Forks
from vlm.adapter import save
from vlm.cli import build_parser
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.explanation.attribution import TOLERANCE
from vlm.explanation.explain import explain
from vlm.explanation.explained_draft import explain_case
from vlm.explanation.picture import draw
from vlm.inference.options import check_draft_options
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.report import NOTICE
from vlm.training.run import build_model

__all__ = ["image", "model"]  # fixtures


def test_the_picture_names_no_patient(model: ClinicalVLM, image: Path, tmp_path: Path) -> None:
    explanation = explain(model, image, VITALS, report(model))
    file = tmp_path / "out.png"
    draw(explanation, file)
    written = file.read_bytes()
    assert (
        b"Jane" not in written
        and b"tEXt" not in written
        and b"iTXt" not in written
        and str(tmp_path).encode() not in written
    )
    pixels = cv2.imread(str(file))
    assert min(pixels.shape[:2]) > 500 and pixels.std() > 20
    said = json.dumps(explanation.to_dict())
    assert "Jane" not in said and json.loads(said)["completeness_error"] <= TOLERANCE
    with pytest.raises(UserError, match="cannot write the picture"):
        draw(explanation, tmp_path / "no" / "out.png")


def test_the_command_drafts_and_draws(tiny_model: ClinicalVLM, image: Path, tmp_path: Path, forks: Forks) -> None:
    adapter, file = str(save(tiny_model, tmp_path / "adapter")), tmp_path / "out.png"
    case = ("--adapter", adapter, "--image", str(image), "--explain", str(file))
    result = forks.command("--max_new_tokens", "6", *case)
    assert result.returncode == 0 and result.stderr == "" and file.stat().st_size > 10_000
    assert NOTICE in result.stdout and f"picture: {file}" in result.stdout
    arguments = build_parser().parse_args(["draft", "--max_new_tokens", "6", *case, "--explain_words", "qqq"])
    out = io.StringIO()
    with pytest.raises(UserError, match="--explain_words: the draft does not say 'qqq'; it says: "):
        explain_case(arguments, out)
    assert NOTICE in out.getvalue(), "the draft was lost with its explanation"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--explain", "out.jpg"], "--explain: out.jpg: the picture is a PNG"),
        (["--explain", "/no/folder/out.png"], "no such folder /no/folder"),
        (["--explain", "out.png", "--engine", "llamacpp"], "only PyTorch's engine has gradients"),
        (["--explain", "out.png", "--input", "cases.csv"], "--explain: explains one case"),
        (["--explain_words", "opacity"], "--explain_words: needs --explain FILE"),
    ],
)
def test_a_wrong_option_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_draft_options(build_parser().parse_args(["draft", *arguments]))
    assert message in str(error.value)


def test_without_captum_one_line_says_what_to_install(model: ClinicalVLM, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(UserError, match=r"--explain: needs the package captum; pip install 'clinical-vlm\[explain\]'"):
        explain(model, None, None, report(model))


def test_vitals_that_are_words_cannot_be_explained(tiny_config: Config) -> None:
    vitals = replace(tiny_config.model.vitals, injection="text")
    config = replace(tiny_config, model=replace(tiny_config.model, vitals=vitals))
    model = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match="reads vitals as words"):
        explain(model, None, None, report(model))
