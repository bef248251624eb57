"""A model of the tiny job with some parts configured otherwise."""

from dataclasses import replace

import torch

from vlm.config import Config
from vlm.data.ingest.sources import load_cohort
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training.run import build_model


def rebuild(config: Config, **parts) -> ClinicalVLM:
    """A model of `config` with some parts configured otherwise."""
    config = replace(config, model=replace(config.model, **parts))
    return build_model(config, load_cohort(config.data), torch.device("cpu"), torch.float32)
