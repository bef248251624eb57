"""A draft to explain: its words, vitals and picture, and a tiny model that has the evidence for it."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.explanation.attribution import CaseScorer
from vlm.explanation.phrases import token_spans
from vlm.inference.engine import ReportEngine
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.report import Report
from vlm.training.run import build_model

DRAFT = "Patchy opacities in the left lower zone. Glucose is elevated."
VITALS = {"glucose": 9, "bp": "150/80"}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Wider than high, and named as no picture may say."""
    file = tmp_path / "Jane-Doe-1950.png"
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8))
    return file


@pytest.fixture
def model(tiny_config: Config) -> ClinicalVLM:
    """A tiny model whose CNN has a grid of 2 × 2 cells."""
    config = replace(tiny_config, data=replace(tiny_config.data, image_size=64))
    return build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32).eval()


def report(model: ClinicalVLM, text: str = DRAFT) -> Report:
    return Report(text, dict.fromkeys(model.spec.labels, 0.7), {"glucose": 9.0, "systolic": 150.0, "diastolic": 80.0})


def scorer(model: ClinicalVLM, image: Path | None, vitals: dict) -> CaseScorer:
    example, _ = ReportEngine(model).prepare(image, vitals)
    return CaseScorer(model, example, token_spans(model.tokenizer, DRAFT)[0])
