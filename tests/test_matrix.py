"""Any base with any encoder, LoRA, quantisation and tokens: it goes the whole way, or is refused in one line.

`make test` draws a few combinations, `make soak` 200. Each trains two steps, has the loss of the full logits, drafts
alike in a batch and alone, is saved, loaded and merged. The bases and encoders are small and random.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import public, table_config, tiny_model_config
from tests.encoders import TIMM, TRANSFORMERS, write_transformers
from tests.families import FAMILIES, write_base
from tests.full_logits import loss_of_all_logits
from vlm.adapter import load, save
from vlm.adapter.export.merge import merge
from vlm.config import Config, ModelConfig
from vlm.data.case import random_cases
from vlm.data.collate import Collator
from vlm.data.ingest.sources import load_cohort
from vlm.errors import UserError
from vlm.inference.engine import ReportEngine
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.run import build_model
from vlm.training.self_test import self_test

CPU = torch.device("cpu")
REPORTS, CONTEXTS = ("Normal.", "No opacity.", "A longer report."), ("", "one two", "one two three four five")
SECONDS = 5.0
"""Of the processor, in which a refusal comes."""
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
"""The default, which means the projections of attention whatever their names."""
CHOICES: dict[str, list[Any]] = {
    "lora_targets": [QKVO, QKVO, QKVO, ["all-linear"], ["all-linear"], ["q_proj", "v_proj"], ["qkv_proj"]],
    "quantization": ["nf4", "nf4", "fp4", "int8", "none", "none", "none"],
    "dequantize": ["auto", "always", "never"],
    "double_quantization": [True, False],
    "lora_rank": [1, 4],
    "use_rslora": [False, True],
    "use_dora": [False, False, True],
    "init_lora_weights": ["default", "gaussian", "pissa", "olora"],
    "activation_checkpointing": [False, True],
}
"""Options of the language model, drawn one by one."""


def draw(seed: int) -> dict[str, Any]:
    """Draw a combination: family, encoder, and one of each option."""
    rng = random.Random(seed)
    encoder = rng.choice([("timm", name) for name in TIMM] + [("transformers", name) for name in TRANSFORMERS])
    train = rng.random() < 0.5
    z_token, label_token, label_words = (rng.random() < 0.5 for _ in range(3))
    return {
        "family": rng.choice(sorted(FAMILIES)),
        "encoder": encoder,
        "llm": {name: rng.choice(values) for name, values in CHOICES.items()},
        "vision": {"grid": rng.choice([1, 2, 3]), "summary_grid": rng.choice([1, 2]), "train": train,
                   "lora_rank": rng.choice([0, 0, 2]) if train else 0},
        "vitals": {"injection": rng.choice(["tokens", "text", "none"]), "tokens": rng.choice([1, 3])},
        "fusion": {"z_token": z_token, "label_token": label_token, "label_words": label_token and label_words},
    }  # fmt: skip


@pytest.fixture(scope="module")
def config_of(
    tmp_path_factory: pytest.TempPathFactory, tiny_llm: str, table_root: Path
) -> Callable[[dict[str, Any]], Config]:
    """Make the config of a combination; bases and encoders are written once."""
    root, tiny, data = tmp_path_factory.mktemp("matrix"), tiny_model_config(tiny_llm), table_config(table_root)

    def make(drawn: dict[str, Any]) -> Config:
        family, (library, name) = drawn["family"], drawn["encoder"]
        base, size, weights, options = root / family, 32, "pretrained", ""
        if not base.exists():
            write_base(family, base, tiny_llm)
        if library == "timm":
            name, size, kwargs = TIMM[name]
            weights, options = "random", json.dumps(kwargs) if kwargs else ""
        else:
            folder = root / "encoders" / name.replace(" ", "-")
            if not folder.exists():
                write_transformers(name, folder)
            name = str(folder)
        vision = replace(tiny.vision, name=name, weights=weights, options=options, frozen_stages=0, **drawn["vision"])
        parts = {part: replace(getattr(tiny, part), **drawn[part]) for part in ("llm", "vitals", "fusion")}
        llm = replace(parts.pop("llm"), base=str(base), lora_dropout=0.0)
        model: ModelConfig = replace(tiny, llm=llm, vision=vision, **parts)
        return Config(data=replace(data, image_size=size), model=model)

    return make


def the_whole_way(config: Config, folder: Path) -> None:
    """Train, compare the loss, draft, save, load, draft again and merge."""
    model = public(build_model(config, load_cohort(config.data), CPU, torch.float32))
    self_test(model)
    cases = [case | {"context": c, "report": r}
             for case, c, r in zip(random_cases(model.spec, 3), CONTEXTS, REPORTS, strict=True)]  # fmt: skip
    batch = Collator(model.prompt)(cases)
    trained = list(model.trainable_parameters().values())
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for _ in range(2):
        loss = model.train()(**batch, alpha=0.5).loss
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite() and all(value.grad is None or value.grad.isfinite().all() for value in trained)
        optimizer.step()
    with torch.no_grad():
        ours = model.eval()(**batch, alpha=0.0).loss.item()
    assert ours == pytest.approx(loss_of_all_logits(model, batch), abs=1e-3 if is_packed(config) else 2e-5)
    together, alone = (drafts(model, cases, size) for size in (3, 1))
    assert is_packed(config) or together == alone  # packed products round otherwise in a batch
    saved = save(model, folder / "adapter")
    again = load(saved, device=CPU, dtype=torch.float32)
    assert drafts(again, cases, 3) == together
    if not is_packed(config):
        parity = merge(str(saved), folder / "merged", most=2)
        assert parity.difference < 5e-3 * parity.spread


def is_packed(config: Config) -> bool:
    """Check whether the base computes with quantised weights."""
    return config.model.llm.quantization != "none" and config.model.llm.dequantize == "never"


def drafts(model: ClinicalVLM, cases: list[Any], size: int) -> list[str]:
    return [draft.text for draft in ReportEngine(model).draft(cases, size, 4)]


def outcome(config: Config, folder: Path) -> str:
    """Go the whole way; returns `works`, or the key of the option that is refused."""
    start = time.process_time()
    try:
        the_whole_way(config, folder)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        assert time.process_time() - start < SECONDS, f"refused late: {error}"
        print(f"refused: {str(error)[:160]}")
        return str(error).split(":")[0]
    return "works"


@pytest.mark.parametrize("seed", range(6))
def test_a_combination_goes_the_whole_way_or_is_refused(seed: int, config_of, tmp_path: Path) -> None:
    print(draw(seed))
    outcome(config_of(draw(seed)), tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_combinations(config_of, tmp_path: Path) -> None:
    counts: Counter[str] = Counter()
    for seed in range(200):
        print(seed, draw(seed), flush=True)
        counts[outcome(config_of(draw(seed)), tmp_path / str(seed))] += 1
    print(dict(counts))
    assert counts["works"] >= 80
