"""Automatic choices: each is the one that its reason says."""

import pytest
import torch

from vlm.device import choose_precision, choose_threads

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(("tiles", "reason"), [(True, "train.precision bf16"), (False, "slower")])
def test_a_cpu_computes_in_fp32(monkeypatch, tiles: bool, reason: str) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    chosen = choose_precision("auto", CPU)
    assert chosen.value == torch.float32 and reason in chosen.reason


def test_a_gpu_computes_in_bf16_where_it_can(monkeypatch) -> None:
    for able, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert choose_precision("auto", GPU).value == dtype


@pytest.mark.parametrize(("wanted", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_precision_that_is_asked_for_is_taken(wanted: str, dtype: torch.dtype) -> None:
    assert choose_precision(wanted, CPU) == (dtype, "set by train.precision")


def test_processes_share_the_cores(monkeypatch) -> None:
    alone = choose_threads(0).value
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * alone))
    assert choose_threads(0).value == 1 and choose_threads(3).value == 3
