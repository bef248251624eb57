"""Fluency: the perplexity of drafts and references to the base without the adapter."""

import numpy as np
import pytest
import torch

from vlm.evaluation.fluency import fluency_measures, token_losses
from vlm.evaluation.measures import Bootstrap, Reports
from vlm.model.clinical_vlm import ClinicalVLM

TEXTS = ["The lungs are clear.", "", "Right lower zone opacity, no effusion. Glucose is elevated."]


def base_losses(model: ClinicalVLM, text: str) -> tuple[float, int]:
    """The loss of a text by Transformers' own forward pass, over the base with its adapter switched off."""
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    if model.tokenizer.bos_token_id is not None:
        ids = [model.tokenizer.bos_token_id, *ids]
    if len(ids) < 2:
        return 0.0, 0
    with torch.no_grad(), model.llm.disable_adapter():
        loss = model.llm(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss
    return float(loss) * (len(ids) - 1), len(ids) - 1


@pytest.fixture
def trained(tiny_model: ClinicalVLM) -> ClinicalVLM:
    """A model whose adapter changes what the base says."""
    with torch.no_grad():
        for name, parameter in tiny_model.llm.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    return tiny_model


def test_each_text_has_the_loss_of_the_base_alone(trained: ClinicalVLM) -> None:
    """Of texts of unlike length in one batch, an empty one among them; the adapter does not count, and stays."""
    before = trained.llm.active_adapters
    found = token_losses(trained, TEXTS, batch_size=3)
    np.testing.assert_allclose(found, [base_losses(trained, text) for text in TEXTS], rtol=1e-4)
    np.testing.assert_allclose(token_losses(trained, TEXTS, batch_size=1), found, rtol=1e-4)
    assert trained.llm.active_adapters == before


def test_the_ratio_is_one_for_the_references_themselves(trained: ClinicalVLM) -> None:
    """And the perplexity is that of all their words together; cases without a reference are left out."""
    references = [TEXTS[number % 3] for number in range(24)]
    found = fluency_measures(trained, Reports(references, references), 8, Bootstrap(np.arange(24), 50))
    losses, tokens = np.array([base_losses(trained, text) for text in references]).sum(axis=0)
    assert found["cases"] == 16
    assert found["ratio"]["value"] == found["ratio"]["low"] == 1
    assert found["perplexity"]["value"] == pytest.approx(np.exp(losses / tokens), rel=1e-4)
    assert found["of_references"] == found["perplexity"]


def test_no_reference_no_fluency(trained: ClinicalVLM) -> None:
    """Nothing is measured, and the language model does not run."""
    assert fluency_measures(trained, Reports(["a"], [""]), 8, Bootstrap(np.arange(1), 50)) == {}
