"""A tiny adapter of several images a case, and pictures for it."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from tests.conftest import table_config, tiny_model_config
from vlm.adapter import save
from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.data.study import StudySpec
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.run import build_model

STUDY = StudySpec(4, ("PA", "lateral"), ("PA", "lateral", "prior"))


def save_study_adapter(tiny_llm: str, table_root: Path, folder: Path) -> Path:
    """Save an untrained adapter of up to four images, whose study parameters are not zero."""
    config = Config(data=table_config(table_root), model=tiny_model_config(tiny_llm))
    spec = build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32).spec
    torch.manual_seed(0)
    spec = replace(spec, study=STUDY, context=True)
    model = ClinicalVLM.from_config(config.model, spec, torch.device("cpu"), torch.float32).eval()
    with torch.no_grad():
        for name, value in model.vision.study.named_parameters():
            if name != "role_score":
                value.copy_(0.3 * torch.randn(value.shape))
    return save(model, folder)


def write_pictures(folder: Path, count: int = 4) -> list[Path]:
    """Write different pictures of noise: `jane-0.png` and on."""
    rng = np.random.default_rng(1)
    files = [folder / f"jane-{number}.png" for number in range(count)]
    for file in files:
        cv2.imwrite(str(file), rng.integers(0, 256, (32, 32), np.uint8))
    return files
