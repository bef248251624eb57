"""llama.cpp as the language model's engine: the same logits from the same embeddings, the same words."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch

from tests.gguf_files import write_gguf
from vlm.adapter import save
from vlm.app.service import Limits, Service
from vlm.errors import UserError
from vlm.inference.backends import llamacpp, merged_base
from vlm.inference.backends.llamacpp import LlamaCpp
from vlm.inference.engine import ReportEngine
from vlm.inference.lora_merge import merged_lora
from vlm.inference.open_engine import LlamaCppEngine, make_engine
from vlm.model.clinical_vlm import ClinicalVLM

pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")


@pytest.fixture
def model(tiny_model: ClinicalVLM, tmp_path: Path, monkeypatch) -> ClinicalVLM:
    """A model whose base came from a GGUF file in a wheel, with a LoRA that matters."""
    with torch.no_grad():
        for name, value in tiny_model.trainable_parameters().items():
            if "lora_B" in name:
                value.normal_(std=0.3)
    write_gguf(tiny_model, tmp_path / "tiny.gguf")
    monkeypatch.setattr(merged_base, "gguf_of_wheel", lambda base, sha256: tmp_path / "tiny.gguf")
    monkeypatch.setattr(merged_base, "load", lambda adapter, **_: tiny_model)  # its wheel cannot be fetched
    monkeypatch.setenv("CLINICAL_VLM_CACHE", str(tmp_path / "cache"))
    llm = replace(tiny_model.model_config.llm, base="pypi:tiny==1/tiny.gguf", sha256="0" * 64)
    tiny_model.model_config = replace(tiny_model.model_config, llm=llm)
    tiny_model.llm.peft_config["default"].base_model_name_or_path = llm.base
    return tiny_model.eval()


@pytest.fixture
def engine(model: ClinicalVLM, tmp_path: Path) -> LlamaCppEngine:
    engine = make_engine("llamacpp", save(model, tmp_path / "adapter"))
    assert isinstance(engine, LlamaCppEngine)
    return engine


PROJECT = Path(__file__).resolve().parents[2]
CASES = [(None, {"glucose": 5 + i, "systolic": 100 + 9 * i}) for i in range(8)]


def test_the_logits_are_those_of_the_merged_model(engine: LlamaCppEngine, model: ClinicalVLM) -> None:
    example, _ = engine.prepare(*CASES[0])
    batch = engine.collate([example])
    with torch.no_grad(), merged_lora(model):
        encoded = model.encode(batch["pixel_values"], batch["has_image"], batch["vitals"])
        prompt = model.embed(batch["input_ids"], batch["evidence_mask"], encoded.tokens)
        wanted = model.base(inputs_embeds=prompt).logits[0, -1].numpy()
    (first,) = next(engine.llama.generate([prompt[0].numpy()], 0, 1, -1))
    list(engine.llama.generate([prompt[0].numpy()], 0, 0, -1))  # reads the prompt alone
    (seen,) = engine.llama.logits()
    assert np.corrcoef(seen, wanted)[0, 1] > 0.995 and first == int(seen.argmax()), "8 bits and no more between them"


def test_a_cut_draft_is_said(engine: LlamaCppEngine, monkeypatch) -> None:
    report = engine.predict(CASES[:1], max_new_tokens=2)[0]
    assert report.warnings[-1] == "the draft is not finished: it was cut at 2 tokens" and not report.finished
    first = int(engine.llama.logits().argmax())  # the third token
    monkeypatch.setattr(type(engine.model.prompt), "end_id", property(lambda _: first))
    ended = engine.predict(CASES[:1], max_new_tokens=3)[0]
    assert ended.text == report.text and ended.finished and "not finished" not in str(ended)
    engine.max_seconds = 1e-9
    assert engine.predict(CASES[:1], max_new_tokens=3)[0].warnings[-1].endswith("cut at 1e-09 seconds")


def test_the_drafts_are_those_of_the_torch_engine(engine: LlamaCppEngine, model: ClinicalVLM) -> None:
    theirs = engine.predict(CASES, max_new_tokens=6)
    ours = ReportEngine(model).predict(CASES, max_new_tokens=6)
    same = [a.text == b.text for a, b in zip(theirs, ours, strict=True)]
    assert np.mean(same) >= 0.5, "a random model's likeliest words are close to one another"
    for a, b in zip(theirs, ours, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-5) and a.warnings == b.warnings


def test_the_fixed_words_are_read_once_and_change_nothing(engine: LlamaCppEngine) -> None:
    alone = [engine.predict([case], max_new_tokens=6)[0].text for case in CASES]
    rng = np.random.default_rng(0)
    other = rng.normal(size=(9, engine.llama.hidden_size)).astype(np.float32)
    list(engine.llama.generate([other], 5, 3, -1))  # another beginning in between
    assert [engine.predict([case], max_new_tokens=6)[0].text for case in CASES[::-1]][::-1] == alone


def test_many_prompts_at_once_are_read_as_each_alone(engine: LlamaCppEngine) -> None:
    """Prompts of several lengths, of which some end sooner; a product of several rows rounds otherwise than of one."""
    llama, rng = engine.llama, np.random.default_rng(1)
    fixed = rng.normal(size=(3, llama.hidden_size))
    prompts = [np.vstack([fixed, rng.normal(size=(2 + 3 * i % 5, llama.hidden_size))]) for i in range(6)]
    steps = np.stack(list(llama.generate(prompts, 3, 4, -1)))  # 4 × B
    after = llama.logits().copy()
    alone = []
    for row, prompt in enumerate(prompts):
        llama._read([prompt], 3)
        for place, token in enumerate(steps[:, row], len(prompt)):
            llama._decode(np.array([token]), np.array([place]), np.array([1]), np.ones(1, bool))
        alone.append(llama.logits()[0].copy())
    assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(after, alone, strict=True)) > 0.9999
    assert max(np.corrcoef(after[row], alone[row - 1])[0, 1] for row in range(6)) < 0.99, "of a row each"


def test_a_prompt_that_has_ended_takes_no_further_part(engine: LlamaCppEngine, monkeypatch) -> None:
    decoded = []
    decode = LlamaCpp._decode

    def counted(self: LlamaCpp, what: np.ndarray, *rest: np.ndarray) -> None:
        decoded.append(len(what))
        decode(self, what, *rest)

    monkeypatch.setattr(LlamaCpp, "_decode", counted)
    prompts = list(np.random.default_rng(2).normal(size=(4, 5, engine.llama.hidden_size)))
    end = int(next(engine.llama.generate(prompts, 0, 1, -1))[1])
    decoded.clear()
    steps = np.stack(list(engine.llama.generate(prompts, 0, 4, end)))
    left = (steps != end).sum(axis=1)
    assert steps[0, 1] == end and (np.diff(steps == end, axis=0) >= 0).all() and decoded == [20, *left]


def test_prompts_are_grouped_by_slots_and_cells(engine: LlamaCppEngine, monkeypatch) -> None:
    monkeypatch.setattr(engine.llama, "slots", 3)
    assert list(engine.llama.groups([10] * 7, 96)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    monkeypatch.setattr(engine.llama, "context", 250)
    assert list(engine.llama.groups([10, 140, 20, 30, 50], 100)) == [slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 5)]
    assert len(engine.predict(CASES, max_new_tokens=6)) == len(CASES)


def test_words_come_as_they_are_made(engine: LlamaCppEngine) -> None:
    came: list[int] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            came.extend(value.tolist())

        def end(self) -> None:
            came.append(-1)

    report = engine.predict(CASES[:1], max_new_tokens=5, streamer=Streamer())[0]
    assert came[-1] == -1 and engine.model.tokenizer.decode(came[:-1], skip_special_tokens=True).strip() == report.text


def test_waiting_requests_are_drafted_together(engine: LlamaCppEngine, monkeypatch) -> None:
    sizes, generate, free = [], engine.llama.generate, Event()

    def counted(prompts: list[np.ndarray], *rest: int) -> Iterator[np.ndarray]:
        sizes.append(len(prompts))
        return generate(prompts, *rest)

    monkeypatch.setattr(engine.llama, "generate", counted)
    with Service(engine, Limits(tokens=5)) as service:
        service.ask(lambda _: free.wait(60))
        drafts = [service.draft(service.prepare(*case)) for case in CASES]
        free.set()
        reports = [draft.result.result(60) for draft in drafts]
    assert sizes == [len(CASES)] and len({report.text for report in reports}) > 1
    assert all(report.text.startswith(draft.text) and draft.text for report, draft in zip(reports, drafts, strict=True))


def test_the_second_start_loads_no_language_model(engine: LlamaCppEngine, tmp_path: Path, monkeypatch) -> None:
    kept = sorted((tmp_path / "cache" / "gguf").iterdir())
    assert len(kept) == 2 and not any(path.name.startswith(".") for path in kept)
    monkeypatch.setattr(merged_base, "load", lambda *_, **__: pytest.fail("the language model was loaded"))
    again = make_engine("llamacpp", tmp_path / "adapter")
    assert not hasattr(again.model, "llm") and sorted((tmp_path / "cache" / "gguf").iterdir()) == kept
    for a, b in zip(engine.predict(CASES, max_new_tokens=4), again.predict(CASES, max_new_tokens=4), strict=True):
        assert a == b


@pytest.mark.slow
def test_the_command_does_not_import_what_trains(engine: LlamaCppEngine, tmp_path: Path) -> None:
    """Half of a start was the import of what only PyTorch's language model needs."""
    code = f"""
import sys
from vlm.inference.command import draft_case
print(draft_case({str(tmp_path / "adapter")!r}, None, "glucose=7", 3, None, engine="llamacpp").text)
print([name for name in ("transformers.modeling_utils", "peft", "bitsandbytes", "pandas") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    words, _, imported = result.stdout.strip().rpartition("\n")
    assert words == engine.predict([(None, {"glucose": 7})], max_new_tokens=3)[0].text and imported == "[]"


def test_what_it_cannot_serve_is_said(model: ClinicalVLM, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(UserError, match=r"broken\.gguf: llama\.cpp cannot load it"):
        LlamaCpp(tmp_path / "broken.gguf", 1)
    monkeypatch.setitem(llamacpp._CONTEXT, "n_ctx", (4, 512))
    with pytest.raises(UserError, match="this build keeps n_ctx elsewhere"):
        LlamaCpp(tmp_path / "tiny.gguf", 1)
    monkeypatch.undo()
    monkeypatch.setattr(llamacpp, "_FLAG_DEFAULTS", bytes(6))
    with pytest.raises(UserError, match="this build keeps kv_unified elsewhere"):
        LlamaCpp(tmp_path / "tiny.gguf", 1)
    monkeypatch.undo()
    llm = replace(model.model_config.llm, base="HuggingFaceTB/SmolLM2-135M-Instruct")
    model.model_config = replace(model.model_config, llm=llm)
    model.llm.peft_config["default"].base_model_name_or_path = llm.base
    monkeypatch.setattr(merged_base, "load", lambda *_, **__: pytest.fail("it was loaded first"))
    other = save(model, tmp_path / "other")
    with pytest.raises(UserError, match="is no GGUF file in a wheel; use --engine torch"):
        make_engine("llamacpp", other)
    with pytest.raises(UserError, match="leave one of them away"):
        make_engine("llamacpp", other, base="/a/copy")
    llamacpp._library.cache_clear()
    monkeypatch.setattr(llamacpp, "version", lambda name: "2030.1.1")
    with pytest.raises(UserError, match=r"xllamacpp 2030\.1\.1 was not tried"):
        llamacpp._library()
    llamacpp._library.cache_clear()


def test_a_prompt_longer_than_the_context_is_refused(engine: LlamaCppEngine) -> None:
    with pytest.raises(UserError, match="a prompt of 4050 tokens and 96 more exceed 4096"):
        list(engine.llama.groups([10, 4050], 96))
