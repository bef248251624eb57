"""Drafting: the engine, the report, and the command with all its wrong inputs."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.conftest import public
from tests.forks import PROJECT, Forks
from vlm import ClinicalVLM
from vlm.adapter import save
from vlm.adapter.layout import read_config
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.inference.command import draft_case, read_vitals
from vlm.inference.lora_merge import merged_lora
from vlm.inference.open_engine import open_engine
from vlm.model.llm import word_embeddings
from vlm.report import NOTICE
from vlm.training.run import build_model


@pytest.fixture
def image(tmp_path: Path) -> str:
    file = tmp_path / "case.png"
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8))
    return str(file)


@pytest.fixture
def adapter(tiny_model: ClinicalVLM, tmp_path: Path) -> str:
    return str(save(tiny_model, tmp_path / "adapter"))


def test_many_cases_equal_one_at_a_time(tiny_model: ClinicalVLM, image: str) -> None:
    cases = [(image, {"glucose": 8}), (None, {"bp": "120/80"}), (image, None), (None, None), (image, {"sex": "F"})]
    together = tiny_model.predict_many(cases, batch_size=3, max_new_tokens=8)
    for case, report in zip(cases, together, strict=True):
        alone = tiny_model.predict(*case, max_new_tokens=8)
        assert alone.text == report.text and alone.warnings == report.warnings
        assert alone.probabilities == pytest.approx(report.probabilities, abs=1e-5)


def test_a_shared_prefix_is_passed_as_the_library_now_names_it(tiny_model: ClinicalVLM, tiny_batch) -> None:
    """Transformers 5.40 takes no `past_key_values` any more, and warns of it before."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*past_key_values", FutureWarning)
        tiny_model(**tiny_batch).loss.backward()
        two = [(None, {"glucose": 9}), (None, {"glucose": 5})]
        assert len(tiny_model.eval().predict_many(two, max_new_tokens=2)) == 2


def test_a_report_says_what_was_missing(tiny_model: ClinicalVLM, image: str) -> None:
    full = tiny_model.predict(image, {"glucose": 8, "bp": "120/80", "sex": "M"}, max_new_tokens=2)
    assert full.warnings == ("the draft is not finished: it was cut at 2 tokens",) and not full.finished
    assert full.vitals == {"glucose": 8.0, "systolic": 120.0, "diastolic": 80.0, "sex": "M"}
    bare = tiny_model.predict(None, {"glucose": 500}, max_new_tokens=2)
    assert bare.warnings == (
        "glucose 500 is not plausible and was taken as missing",
        "not given: systolic, diastolic, sex",
        "no image given",
        "the draft is not finished: it was cut at 2 tokens",
    )
    assert set(full.probabilities) == {"pathology", "effusion"} and full.notice == NOTICE and NOTICE in str(full)
    assert json.loads(json.dumps(full.to_dict()))["probabilities"] == full.probabilities


def test_a_draft_is_as_long_as_the_adapter_says(tiny_model: ClinicalVLM, tiny_config: Config, tmp_path: Path) -> None:
    assert tiny_model.spec.max_new_tokens == tiny_config.evaluation.max_new_tokens == 8
    tiny_model.spec = replace(tiny_model.spec, max_new_tokens=2)
    folder = save(tiny_model, tmp_path / "adapter")
    values = json.loads((folder / "config.json").read_text())
    assert values.pop("max_new_tokens") == read_config(folder).spec.max_new_tokens == 2
    for most, cut_at in ((None, 2), (1, 1)):
        for report in (
            tiny_model.predict(None, {"glucose": 500}, most),
            draft_case(str(folder), None, "glucose=500", most, None),
        ):
            assert report.warnings[-1] == f"the draft is not finished: it was cut at {cut_at} tokens"
    (folder / "config.json").write_text(json.dumps(values))
    assert read_config(folder).spec.max_new_tokens == 96, "as earlier versions drafted"


def test_a_blank_image_is_taken_as_none(tiny_model: ClinicalVLM, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((30, 40), np.uint8))
    blank = tiny_model.predict(tmp_path / "black.png", {"glucose": 8}, max_new_tokens=8)
    none = tiny_model.predict(None, {"glucose": 8}, max_new_tokens=8)
    assert blank.text == none.text and blank.probabilities == none.probabilities
    assert "the image is blank and was taken as none" in blank.warnings


def test_merging_lora_changes_the_speed_and_not_the_model(tiny_model: ClinicalVLM, tiny_batch) -> None:
    with torch.no_grad():
        for name, value in tiny_model.trainable_parameters().items():
            if "lora_B" in name:
                value.normal_(std=0.05)
    tiny_model.eval()
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    with torch.no_grad():
        beside = tiny_model(**tiny_batch).case_losses
        with merged_lora(tiny_model):
            inside = tiny_model(**tiny_batch).case_losses
        after = tiny_model(**tiny_batch).case_losses
    torch.testing.assert_close(beside, inside, rtol=1e-4, atol=1e-4)
    assert torch.equal(beside, after)
    assert all(torch.equal(before[name], value) for name, value in tiny_model.state_dict().items())


def test_a_model_in_bf16_learns_and_drafts(tiny_config, tiny_batch) -> None:
    model = public(build_model(tiny_config, load_cohort(tiny_config.data), torch.device("cpu"), torch.bfloat16))
    with model.autocast():
        loss = model(**tiny_batch).loss
    loss.backward()
    assert torch.isfinite(loss) and loss.dtype == torch.float32
    kinds = {value.grad.dtype for value in model.trainable_parameters().values() if value.grad is not None}
    assert kinds == {torch.float32}, "what trains stays in fp32"
    before = model.base.get_input_embeddings().weight.clone()
    assert model.predict(None, {"glucose": 8}, max_new_tokens=4).probabilities
    assert model.base.dtype == torch.bfloat16 and torch.equal(before, model.base.get_input_embeddings().weight)


def test_merging_is_undone_when_drafting_fails(tiny_model: ClinicalVLM) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    with pytest.raises(RuntimeError), merged_lora(tiny_model):
        raise RuntimeError
    assert all(torch.equal(before[name], value) for name, value in tiny_model.state_dict().items())


def test_vitals_are_read_from_text_and_file(tmp_path: Path) -> None:
    assert read_vitals("glucose=8.7, bp=145/90 ,") == {"glucose": "8.7", "bp": "145/90"}
    assert read_vitals("") == {}
    file = tmp_path / "vitals.json"
    file.write_text('{"glucose": 8.7, "bp": "145/90"}')
    assert read_vitals(str(file)) == {"glucose": 8.7, "bp": "145/90"}


@pytest.mark.parametrize(
    ("vitals", "message"),
    [
        ("glucos=8", "--vitals: unknown vital glucos; did you mean glucose?"),
        ("glucose=high", "--vitals: glucose: 'high' is not a number (mmol/L)"),
        ("glucose", "'glucose' is no name=value"),
        ("glucose=1, glucose=2", "glucose is given twice"),
        ("none.json", "none.json: cannot read the vitals"),
    ],
)
def test_wrong_vitals_cost_no_wait(vitals: str, message: str, adapter: str, monkeypatch) -> None:
    monkeypatch.setattr(
        "vlm.inference.open_engine.make_engine", lambda *_, **__: pytest.fail("the model was loaded first")
    )
    with pytest.raises(UserError) as error:
        draft_case(adapter, None, vitals, 4, None)
    assert message in str(error.value)


@pytest.mark.slow
def test_the_command_prints_report_probabilities_and_warnings(adapter: str, image: str, forks: Forks) -> None:
    case = ("--max_new_tokens", "6", "--adapter", adapter, "--image", image, "--vitals", "glucose=8.7, bp=145/90")
    command = [sys.executable, "infer.py", *case]  # from its start, which may say something as well
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stderr == ""
    assert "pathology" in result.stdout and "%" in result.stdout and NOTICE in result.stdout
    assert "warning: not given: sex" in result.stdout
    as_json = forks.command(*case, "--json")
    report = json.loads(as_json.stdout)
    assert result.stdout.startswith(report["text"]) and set(report["probabilities"]) == {"pathology", "effusion"}


@pytest.mark.parametrize("able", [True, False])
def test_a_draft_is_computed_in_the_precision_that_is_asked_for(able: bool, tiny_adapter, monkeypatch, capsys) -> None:
    monkeypatch.setattr("vlm.device.multiplies_bf16", lambda: able)
    for precision, dtype in (("auto", torch.float32), ("fastest", torch.bfloat16 if able else torch.float32)):
        engine = open_engine(str(tiny_adapter), precision=precision)
        assert word_embeddings(engine.model.base).dtype == dtype
        assert ("precision: " in capsys.readouterr().err) == (precision != "auto")
        assert engine.predict([(None, {"glucose": 9})], max_new_tokens=3)[0].probabilities


@pytest.mark.slow
def test_a_reader_that_has_enough_ends_it_quietly(adapter: str) -> None:
    command = [sys.executable, "infer.py", "--adapter", adapter, "--vitals", "glucose=8.7"]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "/no/such.png"], "/no/such.png: cannot read the image: No such file"),
        (["--image", __file__], "not a readable image"),
        (["--vitals", "glucos=8"], "did you mean glucose?"),
        (["--adapter", "/no/adapter"], "no such adapter folder"),
        (["--max_new_tokens", "0"], "--max_new_tokens: must be at least 1"),
        (["--base", "/no/base"], "/no/base does not exist"),
        (["--precision", "fastest", "--engine", "llamacpp"], "--precision: llamacpp chooses its own; leave it away"),
    ],
)
def test_a_wrong_input_is_one_line_and_no_traceback(
    arguments: list[str], message: str, adapter: str, forks: Forks
) -> None:
    result = forks.command("--max_new_tokens", "6", "--adapter", adapter, *arguments)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1
