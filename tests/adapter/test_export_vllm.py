"""An adapter as vLLM wants it: its names and rank, the drafts of a server, and what a server refuses."""

import base64
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import read_json
from tests.exported import CASES, folder, model
from tests.vllm_server import vllm
from vlm.adapter.validate import read_header
from vlm.errors import UserError
from vlm.inference.backends.vllm import VLLMServer
from vlm.inference.engine import ReportEngine
from vlm.inference.open_engine import make_engine

__all__ = ["folder", "model", "vllm"]  # fixtures


def test_the_lora_keeps_to_the_rules_of_vllm(folder: Path) -> None:
    """Those of its PEFTHelper and of its names of LoRA weights, with its defaults: max_lora_rank 16, no bias."""
    config = read_json(folder / "adapter_config.json")
    assert {"r", "lora_alpha", "target_modules"} <= config.keys() and config["r"] <= 16
    assert not config["modules_to_save"] and not config["use_dora"] and config["bias"] == "none"
    assert not config["use_rslora"] and not config.get("context_length")
    names = config["target_modules"]
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    last = {name.rpartition(".")[2] for name in names}
    assert isinstance(names, list) and last <= linear, "by name, no expression, and nothing of the vocabulary"
    for name in read_header(folder / "adapter_model.safetensors"):
        parts = name.split(".")
        assert parts[:3] == ["base_model", "model", "model"] and parts[-1] == "weight"
        assert parts[-2] in ("lora_A", "lora_B") and parts[-3] in linear
    tensors = load_file(folder / "adapter_model.safetensors")
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in tensors.values())


def test_the_vllm_engine_drafts_what_pytorch_drafts(model, folder: Path, table_root: Path, vllm, monkeypatch) -> None:
    vllm.key = "secret"
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    cases = [*CASES, (table_root / "images" / "0.png", {})]
    engine = make_engine("vllm", folder, server=VLLMServer(vllm.url + "/", "ward"))
    assert not hasattr(engine.model, "llm")
    assert engine.predict(cases, batch_size=4, max_new_tokens=6) == ReportEngine(model).predict(
        cases, batch_size=4, max_new_tokens=6
    )
    assert [len(request["prompt_embeds"]) for request in vllm.requests] == [4, 3], "a batch a request"
    lengths = {engine.prompt_length(engine.prepare(*case)[0]) + engine.model.evidence_tokens for case in cases}
    sent = len(base64.b64decode(vllm.requests[0]["prompt_embeds"][0]))
    assert sent < 2 * max(lengths) * 64 * 4, "a prompt and not its whole batch"


def test_words_of_the_vllm_engine_come_when_they_are_there(folder: Path, vllm, capsys) -> None:
    from vlm.inference.command import draft_case

    server = VLLMServer(vllm.url, "ward")
    report = draft_case(str(folder), None, "glucose=7", 5, sys.stdout, engine="vllm", server=server)
    assert capsys.readouterr().out == f"{report.text}\n"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, {"error": {"message": "You must set `--enable-…`\nmore"}}), r"refuses \(400\): You must set `--"),
        ((400, {"object": "error", "message": "old form"}), r"refuses \(400\): old form"),
        ((500, b"<html>"), "answers 500 without JSON; is it vLLM"),
        ((200, {"choices": [{"index": 0}]}), "did not answer with a text for each prompt"),
        ((200, {"choices": []}), "did not answer with a text for each prompt"),
        ((200, []), r"refuses \(200\)"),
    ],
)
def test_what_a_vllm_server_refuses_is_one_line(answer, message: str, vllm) -> None:
    server = VLLMServer(vllm.url, "ward")
    server.check()
    vllm.answer = answer
    with pytest.raises(UserError, match=message) as error:
        server.complete([torch.zeros(3, 64)], 4, 2)
    assert "\n" not in str(error.value)


def test_a_vllm_server_that_will_not_do_is_said_before_anything_is_read(vllm, folder: Path) -> None:
    with pytest.raises(UserError, match="serves org/base, ward, not other"):
        make_engine("vllm", folder, server=VLLMServer(vllm.url, "other"))
    with pytest.raises(UserError, match=r"does not answer \(ConnectError\)"):
        VLLMServer("http://127.0.0.1:9", "ward").check()
    with pytest.raises(UserError, match="does not answer"):
        VLLMServer("nonsense", "ward").check()
    vllm.answer = (200, {"detail": "another server"})
    with pytest.raises(UserError, match="does not say which models it has"):
        VLLMServer(vllm.url, "ward").check()
    vllm.key = "secret"
    with pytest.raises(UserError, match="wants another key; set VLLM_API_KEY"):
        VLLMServer(vllm.url, "ward").check()
    with pytest.raises(UserError, match="needs --vllm_url and --vllm_model"):
        make_engine("vllm", folder)


def test_the_vllm_engine_takes_no_other_base(folder: Path, vllm, tiny_llm: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = AutoModelForCausalLM.from_pretrained(tiny_llm)
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(0.1)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(tiny_llm).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="trained on another base model"):
        make_engine("vllm", folder, str(tmp_path / "other"), VLLMServer(vllm.url, "ward"))
