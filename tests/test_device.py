"""Automatic choices: each is the one that its reason says."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vlm.config import LLMConfig
from vlm.config.parsing import load_config
from vlm.device import choose_device, choose_precision, choose_threads
from vlm.errors import UserError
from vlm.model.bases.quantization import quantization_config

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("tiles", "products", "faster"),
    [(True, True, True), (True, False, True), (False, True, True), (False, False, False)],
)
def test_a_cpu_computes_in_fp32_and_says_what_bf16_would_do(monkeypatch, tiles, products, faster: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: products, raising=False)
    chosen = choose_precision("auto", CPU)
    assert chosen.value == torch.float32
    assert ("would train faster with train.precision bf16" in chosen.reason) == faster
    assert ("bf16 is many times slower" in chosen.reason) == (not faster)


@pytest.mark.parametrize("able", [True, False])
def test_the_fastest_precision_is_bf16_where_a_cpu_multiplies_it(able: bool, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able, raising=False)
    dtype, reason = choose_precision("fastest", CPU)
    assert (dtype, "this CPU multiplies bf16 itself" in reason) == (torch.bfloat16 if able else torch.float32, able)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    assert choose_precision("fastest", GPU) == choose_precision("auto", GPU)


def test_a_library_that_cannot_say_what_the_cpu_has(monkeypatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert "many times slower" in choose_precision("auto", CPU).reason


def test_a_gpu_computes_in_bf16_where_it_can(monkeypatch) -> None:
    for able, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert choose_precision("auto", GPU).value == dtype


def on_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    """What PyTorch asks a GPU, answered for one of this compute capability."""
    properties = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", None)


@pytest.mark.parametrize("capability", [(6, 0), (7, 0), (7, 5)])
def test_a_gpu_without_bf16_units_computes_in_fp32_and_says_why(capability, monkeypatch) -> None:
    """A P100, a V100 and a T4, on which PyTorch would emulate bf16."""
    on_gpu(monkeypatch, capability)
    dtype, reason = choose_precision("auto", GPU)
    assert dtype == torch.float32 and reason.startswith("this GPU has no bf16 units")
    assert all(word in reason for word in ("8.0", "fp16", "twice the memory", "train.micro_batch_size"))
    asked = choose_precision("bf16", GPU)
    assert asked.value == torch.bfloat16 and asked.reason.startswith("set by train.precision; warning: this GPU has no")
    assert "emulates them slowly; take auto" in asked.reason and "\n" not in asked.reason
    assert choose_precision("fp32", GPU) == (torch.float32, "set by train.precision")


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_a_gpu_with_bf16_units_is_not_warned_of(capability, monkeypatch) -> None:
    on_gpu(monkeypatch, capability)
    assert choose_precision("auto", GPU) == (torch.bfloat16, "the GPU computes in bf16")
    assert choose_precision("bf16", GPU) == (torch.bfloat16, "set by train.precision")


@pytest.mark.parametrize("wanted", ["auto", "bf16"])
def test_packed_weights_compute_in_the_precision_that_was_chosen(wanted: str, monkeypatch) -> None:
    on_gpu(monkeypatch, (7, 5))
    dtype = choose_precision(wanted, GPU).value
    config = quantization_config(LLMConfig(base="org/base"), dtype)
    assert config.bnb_4bit_compute_dtype == config.bnb_4bit_quant_storage == dtype
    assert dtype == (torch.float32 if wanted == "auto" else torch.bfloat16)


def test_fp16_is_refused_in_a_line_that_says_why() -> None:
    with pytest.raises(UserError, match=r"^train\.precision: must be auto, fastest, bf16 or fp32; in fp16 ") as error:
        load_config("demo", {"train.precision": "fp16"})
    assert "gradients vanish without loss scaling" in str(error.value) and "auto takes fp32" in str(error.value)


@pytest.mark.parametrize(("here", "taken"), [("cuda", "cuda:1"), ("xpu", "xpu:1"), ("mps", "mps"), ("none", "cpu")])
def test_the_device_is_the_accelerator_that_is_there(here: str, taken: str, monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name, module in (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps)):
        monkeypatch.setattr(module, "is_available", lambda name=name: name == here)
        monkeypatch.setattr(module, "get_device_name", lambda index: "a GPU", raising=False)
    device = choose_device().value
    assert str(device) == taken
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda: True)
    if here in ("xpu", "mps"):
        assert choose_precision("auto", device).value == (torch.bfloat16 if here == "xpu" else torch.float32)


@pytest.mark.parametrize(("wanted", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_a_precision_that_is_asked_for_is_taken(wanted: str, dtype: torch.dtype) -> None:
    assert choose_precision(wanted, CPU) == (dtype, "set by train.precision")


def test_processes_share_the_cores(monkeypatch) -> None:
    alone = choose_threads(0).value
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(2 * alone))
    assert choose_threads(0).value == 1 and choose_threads(3).value == 3


@pytest.mark.parametrize(
    ("written", "threads", "limit"),
    [("200000 100000\n", 2, ", 2 by the container's limit"), ("50000 100000\n", 1, ", 0.5 by the container's limit"),
     ("max 100000\n", 64, ""), ("6400000 100000\n", 64, ""), ("", 64, "")],
)  # fmt: skip
def test_a_container_computes_with_the_cores_of_its_limit(
    written: str, threads: int, limit: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr("vlm.device.CPU_MAX", tmp_path / "cpu.max")
    assert choose_threads(0).value == 64, "there is no such file outside of Linux"
    (tmp_path / "cpu.max").write_text(written)
    assert choose_threads(0) == (threads, f"64 cores{limit}, 1 process")
