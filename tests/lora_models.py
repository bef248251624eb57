"""Small models with LoRA for the tests: build one, train some steps, its logits and drafts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from vlm.config import Config
from vlm.data.case import random_cases
from vlm.data.collate import Collator
from vlm.data.ingest.sources import load_cohort
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.optimizer import make_optimizer
from vlm.training.run import build_model

CPU = torch.device("cpu")
Build = Callable[..., ClinicalVLM]
PATTERNS = {"rank_pattern": {"o_proj": 3, "layers.1.self_attn.q_proj": 4}, "alpha_pattern": {"v_proj": 5}}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "patterns": PATTERNS,
    "all of them": {**PATTERNS, "use_rslora": True, "use_dora": True, "init_lora_weights": "pissa"},
}


@pytest.fixture
def build(tiny_config: Config) -> Build:
    """Build a model with other options of the language model."""

    def with_options(**llm: Any) -> ClinicalVLM:
        config = replace(tiny_config, model=replace(tiny_config.model, llm=replace(tiny_config.model.llm, **llm)))
        return build_model(config, load_cohort(config.data), CPU, torch.float32)

    return with_options


def batch_of(model: ClinicalVLM, generation: bool = False) -> dict[str, torch.Tensor]:
    examples = [example | {"report": "Patchy opacities."} for example in random_cases(model.spec, 3)]
    return dict(Collator(model.prompt, generation=generation)(examples))


def step(model: ClinicalVLM, config: Config, steps: int = 2) -> list[float]:
    """Train some steps on made-up cases, with the optimizer of a run; returns the losses."""
    optimizer, losses = make_optimizer(model, config.train), []
    model.train()
    for _ in range(steps):
        loss = model(**batch_of(model), alpha=0.2).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits_of(model: ClinicalVLM) -> torch.Tensor:
    """Compute the logits of the base's words after the prompts of some cases; 3 × V."""
    batch = batch_of(model, generation=True)
    encoded = model.eval().encode(batch["pixel_values"], batch["has_image"], batch["vitals"])
    embeddings = model.embed(batch["input_ids"], batch["evidence_mask"], encoded.tokens)
    return model.llm(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).logits[:, -1]


def drafts_of(model: ClinicalVLM) -> list[str]:
    return model.eval().generate(batch_of(model, generation=True), 8)[0]  # type: ignore[arg-type]


def quick(config: Config) -> Config:
    return replace(config, train=replace(config.train, loraplus_lr_ratio=4.0, lora_learning_rate=0.02))
