"""An adapter for other programs: merged, and as a GGUF file that llama.cpp lays beside the base."""

import ctypes
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import read_json
from tests.exported import CASES, deltas, folder, model
from vlm import ClinicalVLM
from vlm.adapter import load
from vlm.adapter.export.gguf import write_lora
from vlm.adapter.export.merge import merge
from vlm.atomic import write_manifest
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine

__all__ = ["folder", "model"]  # fixtures


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
    prompts = [prompt[0].numpy()]
    list(llama.generate(prompts, 0, 0, -1))
    without = llama.logits()[0].copy()
    lay_beside(llama, tmp_path / "lora.gguf")
    list(llama.generate(prompts, 0, 0, -1))
    spread = wanted.std()
    assert np.abs(llama.logits()[0] - wanted).max() < 0.02 * spread < 0.5 * np.abs(without - wanted).max()
    draft = [int(token) for (token,) in llama.generate(prompts, 0, 8, model.prompt.end_id)]
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
