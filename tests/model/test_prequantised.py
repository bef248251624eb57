"""Bases that come quantised: LoRA trains beside them as they come, or they are refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tests.conftest import read_json
from tests.lora_models import CPU, Build, build, drafts_of, logits_of, quick, step
from vlm.adapter import load, save
from vlm.adapter.export.merge import merge
from vlm.config import Config
from vlm.errors import UserError
from vlm.inference.lora_merge import merged_lora
from vlm.model.bases.quantization import advise_bf16
from vlm.training.self_test import self_test

__all__ = ["build"]  # a fixture


def bitsandbytes(base: str, folder: Path, **options: Any) -> None:
    """As bases ending in `-bnb-4bit` are shared: the packed values and their constants in safetensors."""
    config = BitsAndBytesConfig(**options)
    quantised = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map={"": "cpu"})
    quantised.save_pretrained(folder)


def nf4(base: str, folder: Path) -> None:
    """With products in bf16 by its config, which a CPU in fp32 does not follow."""
    bitsandbytes(base, folder, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                 bnb_4bit_compute_dtype=torch.bfloat16)  # fmt: skip


def int8(base: str, folder: Path) -> None:
    bitsandbytes(base, folder, load_in_8bit=True)


def torchao(base: str, folder: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    config = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    AutoModelForCausalLM.from_pretrained(base, quantization_config=config, device_map={"": "cpu"}).save_pretrained(
        folder
    )


def compressed_tensors(base: str, folder: Path) -> None:
    """8 bits a value and a scale a row, as llm-compressor writes them."""
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    config = QuantizationConfig(
        config_groups={"all": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"],
        quantization_status="frozen",
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(base)
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = module.weight.detach().abs().amax(dim=1, keepdim=True) / 127
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder, state_dict=model.state_dict())
    compressor.update_config(folder)


WRITERS: dict[str, tuple[Callable[[str, Path], None], str]] = {
    "nf4": (nf4, "bitsandbytes"),
    "int8": (int8, "bitsandbytes"),
    "torchao": (torchao, "torchao"),
    "compressed-tensors": (compressed_tensors, "compressed-tensors"),
}


@pytest.fixture(scope="module")
def quantised(tiny_llm: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folder of a base that a method wrote, made once."""
    root = tmp_path_factory.mktemp("quantised")

    def write(name: str) -> str:
        if not (root / name).exists():
            WRITERS[name][0](tiny_llm, root / name)
            AutoTokenizer.from_pretrained(tiny_llm).save_pretrained(root / name)
        return str(root / name)

    return write


@pytest.mark.slow
@pytest.mark.parametrize("dequantize", ["auto", "never"])
@pytest.mark.parametrize("name", WRITERS)
def test_lora_trains_beside_a_base_that_comes_quantised(
    name: str, dequantize: str, quantised, build: Build, tiny_config: Config, tmp_path: Path
) -> None:  # fmt: skip
    model, exact = build(base=quantised(name), dequantize=dequantize), build(quantization="none")
    assert self_test(model)[0] == f"quantization: {WRITERS[name][1]} (the base comes so)"
    difference = (logits_of(model) - logits_of(exact)).abs().mean() / logits_of(exact).std()
    assert 0 < difference < (0.6 if name == "nf4" else 0.1), "near the base that it was made from"
    losses = step(model, quick(tiny_config))
    assert losses[1] < losses[0]
    trained, drafts = logits_of(model), drafts_of(model)
    with merged_lora(model):
        assert torch.allclose(logits_of(model), trained, atol=1e-3)
    folder = save(model, tmp_path / "adapter")
    again = load(folder, device=CPU, dtype=torch.float32)
    assert torch.allclose(logits_of(again), trained, atol=1e-5) and drafts_of(again) == drafts
    said = read_json(folder / "config.json")
    assert said["base_sha256"] == model.base_sha256 != exact.base_sha256, "the SHA-256 of the quantised files"
    assert WRITERS[name][1] in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_it_is_merged_where_it_can_be_dequantised(name: str, quantised, build: Build, tmp_path: Path) -> None:
    folder = save(build(base=quantised(name)), tmp_path / "adapter")
    if name == "torchao":
        with pytest.raises(UserError, match="merge: the base comes quantised by torchao"):
            merge(str(folder), tmp_path / "merged")
        return
    parity = merge(str(folder), tmp_path / "merged", most=4)
    assert parity.same == parity.cases
    assert not read_json(tmp_path / "merged" / "config.json").get("quantization_config")


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("gptq", {}, r"comes quantised by gptq, which needs .*gptqmodel; pip install optimum gptqmodel"),
        ("awq", {}, r"comes quantised by awq, which needs gptqmodel; pip install gptqmodel"),
        ("torchao", {}, r"comes quantised by torchao, which needs torchao; pip install torchao"),
        ("compressed-tensors", {}, "which needs compressed_tensors; pip install compressed-tensors"),
        ("mxfp4", {}, r"comes quantised by 'mxfp4', beside which LoRA cannot be trained \(only bitsandbytes, torchao"),
        ("bitsandbytes", {"quantization": "int8"}, "comes quantised by bitsandbytes, and cannot be put into int8 as"),
    ],
)
def test_a_base_whose_library_is_missing_is_one_line(
    method: str, change: dict, message: str, build: Build, tiny_llm: str, tmp_path: Path, monkeypatch
) -> None:  # fmt: skip
    monkeypatch.setattr("vlm.model.bases.prequantised.find_spec", lambda name: None)
    base = Path(shutil.copytree(tiny_llm, tmp_path / "base"))
    told = {"quant_method": method, **({"load_in_4bit": True} if method == "bitsandbytes" else {})}
    config = read_json(base / "config.json") | {"quantization_config": told}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as error:
        build(base=str(base), **change)
    assert "\n" not in str(error.value) and str(base) in str(error.value)


def test_bf16_is_advised_where_the_base_fits(build: Build, quantised) -> None:
    for change in ({}, {"dequantize": "never"}, {"quantization": "int8", "dequantize": "never"}):
        model = build(**change)
        frozen = sum(p.numel() for p in build(quantization="none").base.parameters() if not p.requires_grad)
        assert advise_bf16(model.base, model.model_config.llm, 4 * frozen - 2) == []
        assert (
            "none trains LoRA beside its exact weights"
            in advise_bf16(model.base, model.model_config.llm, 4 * frozen)[0]
        )
        assert advise_bf16(model.base, model.model_config.llm, 0) == [], "not on a CPU"
    for change in ({"quantization": "none"}, {"base": quantised("nf4")}):
        model = build(**change)
        assert advise_bf16(model.base, model.model_config.llm, 1 << 40) == []
