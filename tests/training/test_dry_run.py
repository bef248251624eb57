"""The dry run: its memory is that of a real step, and nothing is written."""

import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.forks import Forks
from vlm.config import Config
from vlm.config.parsing import to_yaml
from vlm.data.ingest.sources import load_cohort
from vlm.training.dry_run import Allocations, dry_run, longest_cases, measure_step, predicted_gpu, step_peak
from vlm.training.run import build_model, case_dataset

PROJECT = Path(__file__).resolve().parents[2]


def test_allocations_are_counted_by_storage() -> None:
    with Allocations() as made:
        a = torch.zeros(1000)
        view, same = a[10:], a.view(10, 100)
        b = a + 1
        assert made.live == 8000
        del b
        assert made.live == 4000 and made.peak == 8000
        a.add_(1)
        assert made.live == 4000
    assert len(view) == 990 and same.shape == (10, 100)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("train_cnn", [True, False])
def test_the_predicted_peak_is_that_of_a_step(checkpointing: bool, train_cnn: bool, tiny_config: Config) -> None:
    model_config = replace(
        tiny_config.model,
        llm=replace(tiny_config.model.llm, activation_checkpointing=checkpointing),
        vision=replace(tiny_config.model.vision, train=train_cnn),
    )
    config = replace(tiny_config, model=model_config)
    cohort = load_cohort(config.data)
    model = build_model(config, cohort, torch.device("cpu"), torch.float32).train()
    batch_of = longest_cases(model, case_dataset(config, model.spec, cohort, "train"))
    memory = measure_step(model, batch_of, 24)
    gradients = memory.training / 3
    for cases in (24, 48):
        gc.collect()
        measured = step_peak(model, batch_of(cases))
        assert memory.fixed + cases * memory.case + gradients == pytest.approx(measured, rel=0.1), cases


def test_the_weights_are_those_that_are_there(tiny_config: Config, tiny_model) -> None:
    here = measure_step(tiny_model, longest_cases(tiny_model, _training(tiny_config, tiny_model)), 4)
    assert here.weights == sum(p.nbytes for p in (*tiny_model.parameters(), *tiny_model.buffers()))
    assert here.training == 12 * sum(p.numel() for p in tiny_model.parameters() if p.requires_grad)
    gpu = predicted_gpu(tiny_model, tiny_config, here)
    linear = sum(p.numel() for n, p in tiny_model.llm.named_parameters() if "base_layer" in n or ".mlp." in n)
    frozen = sum(p.numel() for p in tiny_model.llm.parameters() if not p.requires_grad)
    ours = sum(p.numel() for p in tiny_model.parameters()) - sum(p.numel() for p in tiny_model.llm.parameters())
    lora = sum(p.numel() for p in tiny_model.llm.parameters() if p.requires_grad)
    others = 2 * (frozen - linear) + 4 * (ours + lora)
    assert gpu.weights == pytest.approx(linear * (4 + 8 / 64 + 32 / 16384) / 8 + others, rel=1e-6)
    for quantization, size in (("fp4", (4 + 8 / 64 + 32 / 16384) / 8), ("int8", 1), ("none", 2)):
        llm = replace(tiny_config.model.llm, quantization=quantization)
        asked = replace(tiny_config, model=replace(tiny_config.model, llm=llm))
        assert predicted_gpu(tiny_model, asked, here).weights == pytest.approx(linear * size + others, rel=1e-6)


def _training(config: Config, model):
    return case_dataset(config, model.spec, load_cohort(config.data), "train")


def test_the_command_writes_nothing(tiny_config: Config, tmp_path: Path, forks: Forks) -> None:
    (tmp_path / "job.yaml").write_text(to_yaml(tiny_config))
    result = forks.command("--config", str(tmp_path / "job.yaml"), "--dry-run", program="train_lora")
    assert result.returncode == 0, result.stderr
    assert "parameters: trained" in result.stderr and "with 4 cases at once" in result.stderr
    assert "predicted on a GPU in bf16" in result.stderr
    assert "the same beside unquantised weights (model.llm.quantization: none): 0.0" in result.stderr
    assert not Path(tiny_config.run.folder).exists()


def test_it_leaves_the_model_as_it_was(tiny_config: Config, tiny_model) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    assert len(dry_run(tiny_model, tiny_config, _training(tiny_config, tiny_model))) == 4
    assert all(torch.equal(before[name], value) for name, value in tiny_model.state_dict().items())
    assert all(p.grad is None for p in tiny_model.parameters())
