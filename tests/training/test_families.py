"""Every family of language models goes the whole way: trained, saved, loaded, drafted with, merged."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.families import FAMILIES, IMAGE_TEXT, is_known, write_base
from tests.full_logits import loss_of_all_logits
from vlm import ClinicalVLM
from vlm.adapter import save
from vlm.adapter.export.merge import merge
from vlm.config import Config
from vlm.data.case import Example, random_cases
from vlm.data.collate import Batch, Collator
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine
from vlm.model.bases.prefix_reuse import DRAFTS, EVERYWHERE, NOWHERE
from vlm.training.run import build_model
from vlm.training.self_test import self_test

SAMPLE = ["cohere2", "gemma2", "gemma3", "mixtral", "phi", "qwen2_5_vl", "qwen3_5", "mamba2"]
"""One family of each kind: scale, soft cap, image-text, experts, bias, M-RoPE, hybrid cache, recurrent."""
OWN_HEADS = {"codegen", "cohere", "cohere2", "falcon_h1", "gemma2", "gptj", "granite", "granitemoe",
             "granitemoehybrid", "phi"}  # fmt: skip
RECURRENT = {"bamba", "falcon_h1", "granitemoehybrid", "jamba", "lfm2", "mamba", "mamba2", "minimax", "nemotron_h",
             "qwen3_5", "qwen3_5_text", "qwen3_next", "rwkv"}  # fmt: skip
SLIDING = {"cohere2", "exaone4", "gemma2", "gemma3", "gemma3_text", "gpt_oss", "mistral", "mistral3"}
REFUSED = {"paligemma": "paligemma cannot be used: a training step fails: its tokens attend to later ones"}
REPORTS = ("Normal.", "No opacity.", "An opacity in the left upper zone, and a longer report.")
CONTEXTS = ("", "one two three four", "one two three four five six seven")

usable = [name for name in FAMILIES if name not in REFUSED and is_known(name)]
every_family = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.soak) for name in usable]
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_llm: str, table_root: Path) -> Callable[[str], ClinicalVLM]:
    """Build a fresh model on a family's base, which is written once."""
    from tests.conftest import table_config, tiny_model_config

    root, tiny, data = tmp_path_factory.mktemp("families"), tiny_model_config(tiny_llm), table_config(table_root)

    def build(family: str, **options: str) -> ClinicalVLM:
        folder = root / family
        base = str(folder) if folder.exists() else write_base(family, folder, tiny_llm)
        llm = replace(tiny.llm, base=base, quantization="none", lora_dropout=0.0)
        llm = replace(llm, **options)
        config = Config(data=data, model=replace(tiny, llm=llm))
        return build_model(config, load_cohort(data), torch.device("cpu"), torch.float32)

    return build


def cases(model: ClinicalVLM) -> list[Example]:
    texts = zip(random_cases(model.spec, 3), CONTEXTS, REPORTS, strict=True)
    return [example | {"context": context, "report": report} for example, context, report in texts]


def trained(model: ClinicalVLM, batch: Batch) -> tuple[float, float]:
    """Train two steps; returns the text loss before and after."""
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=5e-3)
    losses = []
    for _ in range(3):
        model.train()
        loss = model(**batch, alpha=0.0).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if len(losses) < 3:
            optimizer.step()
    return losses[0], losses[-1]


@pytest.mark.slow
@every_family
def test_a_family_goes_the_whole_way(family: str, built, tmp_path: Path) -> None:
    model = built(family)
    batch = Collator(model.prompt)(cases(model))
    before, after = trained(model, batch)
    assert after < before
    with torch.no_grad():
        loss = model.eval()(**batch, alpha=0.0).loss.item()
    assert loss == pytest.approx(loss_of_all_logits(model, batch), abs=1e-5)
    assert model.vocabulary_head.is_plain == (family not in OWN_HEADS)
    reuse = NOWHERE if family in RECURRENT else DRAFTS if family in SLIDING else EVERYWHERE
    assert model.prefix_reuse.value == reuse

    drafts = [draft.text for draft in ReportEngine(model).draft(cases(model), 3, 8)]
    assert drafts == [draft.text for draft in ReportEngine(model).draft(cases(model), 1, 8)]
    folder = save(model, tmp_path / "adapter")
    again = ClinicalVLM.from_pretrained(folder, device=torch.device("cpu"))
    assert drafts == [draft.text for draft in ReportEngine(again).draft(cases(model), 2, 8)]

    parity = merge(str(folder), tmp_path / "merged", most=4)
    assert parity.difference < 1e-3 * parity.spread and parity.same == parity.cases
    assert not list((tmp_path / "merged").glob("*.bin"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "phi", "qwen2_5_vl"])
def test_the_language_half_and_an_own_head_work_in_4_bits(family: str, built, tmp_path: Path) -> None:
    for dequantize in ("never", "always"):
        model = built(family, quantization="nf4", dequantize=dequantize)
        assert self_test(model)[0] == "weights in 4 bits: 100.0% of the language model's linear weights"
    folder = save(model, tmp_path / "adapter")
    drafts = [draft.text for draft in ReportEngine(model).draft(cases(model), 3, 8)]
    again = ClinicalVLM.from_pretrained(folder, device=torch.device("cpu"))
    assert drafts == [draft.text for draft in ReportEngine(again).draft(cases(model), 1, 8)]
    parity = merge(str(folder), tmp_path / "merged", most=4)
    assert parity.difference < 1e-3 * parity.spread and parity.same == parity.cases


@every_family
def test_a_family_passes_the_self_test(family: str, built) -> None:
    assert self_test(built(family))[-1].startswith("self-test: a step, a draft and the adapter saved and loaded")


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line_within_seconds(family: str, built) -> None:
    built("llama")  # imports
    start = time.process_time()
    with pytest.raises(UserError, match=REFUSED[family]) as error:
        self_test(built(family))
    assert time.process_time() - start < 5 and "\n" not in str(error.value)


@pytest.mark.parametrize("family", [name for name in IMAGE_TEXT if is_known(name)])
def test_the_language_half_reads_text_as_the_whole_does(family: str, tiny_llm: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    from vlm.model.bases.loading import load_causal_lm

    base = write_base(family, tmp_path / family, tiny_llm)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        whole = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()(input_ids=ids).logits
        half = load_causal_lm(base, dtype=torch.float32).eval()
        torch.testing.assert_close(half(input_ids=ids).logits, whole, rtol=1e-4, atol=1e-5)
        half.save_pretrained(tmp_path / "half")
        again = load_causal_lm(str(tmp_path / "half"), dtype=torch.float32).eval()
        torch.testing.assert_close(again(input_ids=ids).logits, whole, rtol=1e-4, atol=1e-5)
    assert not any("vision" in name or "visual" in name for name, _ in half.named_parameters())
