"""An adapter for other programs: merged, as a GGUF file that llama.cpp lays beside the base, and as vLLM wants it."""

import base64
import ctypes
import io
import json
import shutil
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import public, read_json, table_config, tiny_model_config
from vlm import ClinicalVLM
from vlm.adapter import load, save
from vlm.adapter.export.gguf import write_lora
from vlm.adapter.export.merge import merge
from vlm.adapter.validate import read_header
from vlm.atomic import write_manifest
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.inference.backends.vllm import VLLMServer
from vlm.inference.engine import ReportEngine
from vlm.inference.open_engine import make_engine
from vlm.training.run import build_model

CASES = [(None, {"glucose": 5 + i, "systolic": 100 + 9 * i}) for i in range(6)]


@pytest.fixture(scope="module")
def model(tiny_llm: str, table_root: Path) -> ClinicalVLM:
    """A model whose LoRA, on every linear layer, says more than its base."""
    tiny = tiny_model_config(tiny_llm)
    config = Config(
        data=table_config(table_root),
        model=replace(tiny, llm=replace(tiny.llm, lora_targets=["all-linear"], lora_rank=3)),
    )
    model = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.trainable_parameters().items():
            if "lora_B" in name:
                value += 0.3 * torch.randn(value.shape, generator=generator)
    return public(model.eval())


@pytest.fixture(scope="module")
def folder(model: ClinicalVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model, tmp_path_factory.mktemp("saved") / "adapter")


def deltas(model: ClinicalVLM) -> dict[str, torch.Tensor]:
    """Layer → what LoRA adds to its weight, as PEFT has it; out × in."""
    return {name: module.get_delta_weight("default").detach() for name, module in model.base.named_modules()
            if hasattr(module, "get_delta_weight")}  # fmt: skip


# -------------------------------------------------------------------------------------------- merged


def test_the_merged_model_is_a_plain_one_and_says_the_same(model, folder, tmp_path: Path, tiny_llm: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parity = merge(str(folder), tmp_path / "merged", most=8)
    assert parity.difference < 1e-3 * parity.spread and parity.same == parity.cases == 8
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == model.tokenizer.chat_template
    assert "quantization_config" not in read_json(tmp_path / "merged" / "config.json")
    assert merged.generation_config.eos_token_id == model.prompt.end_id
    original = AutoModelForCausalLM.from_pretrained(tiny_llm).state_dict()
    for name, delta in deltas(model).items():
        base = model.base.get_submodule(name).base_layer.weight
        torch.testing.assert_close(merged.state_dict()[f"{name}.weight"], base + delta, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(base, original[f"{name}.weight"]), "into the 4-bit values, not into the original"


def test_ours_still_drafts_with_it_and_never_adds_the_lora_twice(model, folder, tmp_path: Path) -> None:
    merge(str(folder), tmp_path / "merged", most=2)
    (tmp_path / "merged").rename(tmp_path / "elsewhere")
    again = ClinicalVLM.from_pretrained(tmp_path / "elsewhere" / "adapter", base=str(tmp_path / "elsewhere"))
    ours, theirs = (m.predict_many(CASES, max_new_tokens=8) for m in (model, again))
    for a, b in zip(ours, theirs, strict=True):
        assert a.text == b.text and a.probabilities == pytest.approx(b.probabilities, abs=1e-6)
    with pytest.raises(UserError, match="elsewhere: a LoRA was folded into it already"):
        load(folder, base=str(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match="merged does not exist"):
        load(tmp_path / "elsewhere" / "adapter")


def test_what_cannot_be_merged_is_said_and_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there: is there already"):
        merge(str(folder), tmp_path / "there")
    monkeypatch.setattr(
        "vlm.adapter.export.merge._write_evidence", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        merge(str(folder), tmp_path / "merged", most=1)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_base_that_stays_packed_is_not_merged(folder: Path, tmp_path: Path) -> None:
    packed = Path(shutil.copytree(folder, tmp_path / "packed"))
    config = read_json(packed / "config.json")
    config["model"]["llm"]["dequantize"] = "never"
    (packed / "config.json").write_text(json.dumps(config))
    write_manifest(packed)
    with pytest.raises(UserError, match="merge: the adapter's config keeps the base packed"):
        merge(str(packed), tmp_path / "merged")


# ---------------------------------------------------------------------------------------------- GGUF


def test_the_gguf_file_holds_what_peft_adds(model: ClinicalVLM, folder: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    config = model.base.config
    assert write_lora(str(folder), tmp_path / "lora.gguf") == len(deltas(model)) == 14
    reader = gguf.GGUFReader(tmp_path / "lora.gguf")
    said = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert said == {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora",
                    "adapter.lora.alpha": 16.0}  # fmt: skip
    halves = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for layer, delta in deltas(model).items():
        a, b = (halves.pop(f"{names.get_name(layer)}.weight.lora_{side}") for side in "ab")
        found = 16 / 3 * b @ a
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(layer.split(".")[-1])
        if heads:  # back from pairs to halves
            rows, columns = found.shape
            found = found.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
        torch.testing.assert_close(found, delta, rtol=1e-5, atol=1e-6)
    assert not halves


def test_llama_cpp_with_the_lora_beside_the_base_says_what_pytorch_says(model, folder, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    from tests.gguf_files import write_gguf
    from vlm.inference.backends.llamacpp import LlamaCpp

    write_gguf(model, tmp_path / "base.gguf")
    write_lora(str(folder), tmp_path / "lora.gguf")
    llama = LlamaCpp(tmp_path / "base.gguf", 1)
    engine = ReportEngine(model)
    batch = engine.collate([engine.prepare(*CASES[0])[0]])
    with torch.no_grad():
        encoded = model.encode(batch["pixel_values"], batch["has_image"], batch["vitals"])
        prompt = model.embed(batch["input_ids"], batch["evidence_mask"], encoded.tokens)
        wanted = model.llm(inputs_embeds=prompt).logits[0, -1].numpy()
    list(llama.generate(prompt[0].numpy(), 0, 0, -1))
    without = llama.logits().copy()
    lay_beside(llama, tmp_path / "lora.gguf")
    list(llama.generate(prompt[0].numpy(), 0, 0, -1))
    spread = wanted.std()
    assert np.abs(llama.logits() - wanted).max() < 0.02 * spread < 0.5 * np.abs(without - wanted).max()
    draft = list(llama.generate(prompt[0].numpy(), 0, 8, model.prompt.end_id))
    with torch.no_grad():
        ids = model.llm.generate(inputs_embeds=prompt, max_new_tokens=8, eos_token_id=model.prompt.end_id)
    assert draft == [token for token in ids[0].tolist() if token != model.prompt.end_id]
    llama.close()


def lay_beside(llama, file: Path) -> None:
    """As `llama-server --lora FILE` does, through the same two functions."""
    library = llama._library
    library.llama_adapter_lora_init.restype = ctypes.c_void_p
    library.llama_adapter_lora_init.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
    lora = library.llama_adapter_lora_init(llama._model, str(file).encode())
    assert lora, "llama.cpp does not take the file"
    library.llama_set_adapters_lora.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    one, scale = (ctypes.c_void_p * 1)(lora), (ctypes.c_float * 1)(1.0)
    assert library.llama_set_adapters_lora(llama._context, one, 1, scale) == 0


def test_what_cannot_be_written_as_gguf_is_said(folder: Path, tmp_path: Path, tiny_llm: str) -> None:
    (tmp_path / "there.gguf").write_text("")
    with pytest.raises(UserError, match=r"there\.gguf: is there already"):
        write_lora(str(folder), tmp_path / "there.gguf")
    other = Path(shutil.copytree(tiny_llm, tmp_path / "other"))
    config = read_json(other / "config.json")
    (other / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    with pytest.raises(UserError, match="bases of type llama, not of qwen2"):
        write_lora(str(folder), tmp_path / "lora.gguf", base=str(other))
    assert not (tmp_path / "lora.gguf").exists()


# ---------------------------------------------------------------------------------------------- vLLM


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


class VLLM(ThreadingHTTPServer):
    """Speaks vLLM's protocol, checks what it checks, and drafts with the model itself, its LoRA beside the base."""

    daemon_threads = True

    def __init__(self, model: ClinicalVLM) -> None:
        super().__init__(("127.0.0.1", 0), VLLMHandler)
        self.url, self.model, self.key, self.answer = f"http://127.0.0.1:{self.server_port}", model, None, None
        self.requests: list[dict] = []

    def complete(self, request: dict) -> tuple[int, dict]:
        if request["model"] != "ward":
            return 404, {"error": {"message": f"The model `{request['model']}` does not exist.", "code": 404}}
        prompts = []
        for text in request["prompt_embeds"]:
            tensor = torch.load(io.BytesIO(base64.b64decode(text, validate=True)), weights_only=True)
            if tensor.dim() != 2 or tensor.shape[1] != 64 or not tensor.is_floating_point():
                return 400, {"error": {"message": f"`prompt_embeds` of shape {tuple(tensor.shape)}", "code": 400}}
            prompts.append(tensor)
        assert request["temperature"] == 0 and request["repetition_penalty"] == 1, "greedy, without the base's habits"
        choices = [{"index": n, **self.draft(prompt, request)} for n, prompt in enumerate(prompts)]
        return 200, {"choices": choices[::-1]}

    def draft(self, prompt: torch.Tensor, request: dict) -> dict:
        with torch.no_grad():
            ids = self.model.llm.generate(
                inputs_embeds=prompt[None], max_new_tokens=request["max_tokens"], do_sample=False,
                eos_token_id=request["stop_token_ids"][0], pad_token_id=2,
            )  # fmt: skip
        text = self.model.tokenizer.decode(ids[0], skip_special_tokens=request["skip_special_tokens"])
        return {"text": text, "finish_reason": "stop" if request["stop_token_ids"][0] in ids[0] else "length"}


class VLLMHandler(BaseHTTPRequestHandler):
    server: VLLM

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.respond(200, {"object": "list", "data": [{"id": "org/base"}, {"id": "ward"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        self.respond(*self.server.complete(request))

    def respond(self, status: int, values: object) -> None:
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            status, values = 401, {"error": "Unauthorized"}
        elif self.server.answer:
            status, values = self.server.answer
        body = values if isinstance(values, bytes) else json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def vllm(model: ClinicalVLM):
    server = VLLM(model)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


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
