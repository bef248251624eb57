"""Shorten what a run does after its last step: this room tests how it gets there."""

from dataclasses import replace

import pytest

from vlm.config import Config


@pytest.fixture
def tiny_config(tiny_config: Config) -> Config:
    """The tiny job, which drafts the test split once and not once for each of seven ablation arms."""
    return replace(tiny_config, evaluation=replace(tiny_config.evaluation, ablation=False))
