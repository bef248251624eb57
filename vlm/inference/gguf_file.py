"""The base with its LoRA folded in, as a GGUF file: what llama.cpp reads.

It is made from the weights that training saw, the unpacked NF4 values and the LoRA beside them, in 8 bits; the base's
own GGUF file gives the tokenizer, the shapes and the tensors that neither 4 bits nor LoRA touched. It is kept in the
cache by adapter, so a second start only maps it.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlm.errors import UserError
from vlm.inference.engine import merged_lora
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.weights import cache_folder, gguf_of_wheel

FORMAT = 1
"""Raised when the files of this version must not be taken for those of an older one."""


def merged_gguf(model: ClinicalVLM, digest: str) -> Path:
    """The file of this adapter, made if it is not in the cache; `digest` names adapter and base.

    Raises `UserError` for a base that is no GGUF file, is not of the Llama family, or is held packed.
    """
    config = model.model_config.llm
    if not config.base.startswith("pypi:") or not config.base.endswith(".gguf"):
        raise UserError(f"--engine llamacpp: {config.base} is no GGUF file in a wheel; use --engine torch")
    if model.base.config.model_type != "llama":
        raise UserError(f"--engine llamacpp: serves bases of type llama, not {model.base.config.model_type}")
    if any(type(p).__name__ == "Params4bit" for p in model.llm.parameters()):
        raise UserError("--engine llamacpp: the weights are packed in 4 bits here; use --engine torch")
    file = cache_folder() / "gguf" / f"{digest[:24]}-{FORMAT}.gguf"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        staging = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            _write(model, gguf_of_wheel(config.base, config.sha256), staging)
            staging.rename(file)
        finally:
            staging.unlink(missing_ok=True)
    return file


def _write(model: ClinicalVLM, base: Path, file: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(base)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(file, architecture)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=sub_type)
    with merged_lora(model):
        ours = dict(_merged(model, gguf))
        for tensor in reader.tensors:
            if tensor.name in ours:
                eight_bits = gguf.GGMLQuantizationType.Q8_0
                packed = gguf.quants.quantize(ours.pop(tensor.name), eight_bits)
                writer.add_tensor(tensor.name, packed, raw_dtype=eight_bits)
            else:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    if ours:
        raise UserError(f"{base.name}: has no tensor {min(ours)}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _merged(model: ClinicalVLM, gguf: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The linear layers of the trunk under GGUF's names, out × in, with LoRA folded in."""
    config = model.base.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, module in model.base.named_modules():
        plain = getattr(module, "base_layer", module)
        inside = "lora_" in name or name.endswith("base_layer")  # parts of a layer that is met as a whole
        if isinstance(plain, torch.nn.Linear) and ".layers." in name and not inside:
            weight = plain.weight.detach().float()
            for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
                if name.endswith(part):
                    weight = _pairs(weight, heads)
            yield f"{names.get_name(name)}.weight", weight.numpy()


def _pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """From halves to pairs: the order in which llama.cpp's rotary embedding finds the rows of a head; out × in."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()
