"""Load the causal language model of any base: of an image-text model its text decoder and output layer alone.

The weights of its image encoder are neither read nor kept: safetensors are read tensor by tensor.
"""

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import cached_file

from vlm.untrusted import parse_json

SAFE: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
"""Loading options of every base: no remote code, no pickle."""
PLAIN_TEXT = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
"""Text decoders without a causal class of their own → the same decoder with plain rotary positions.

Their M-RoPE counts time, height and width; over text the three are equal, which is plain RoPE (Wang et al., 2024).
"""
OTHER_TOWER = re.compile(r"vision|visual|image|audio|speech|talker|mtp")
"""Pattern in the name of a tensor outside of the text decoder."""
MOST_TENSORS = 1_000_000


def load_causal_lm(folder: str, revision: str | None = None, **options: Any) -> PreTrainedModel:
    """Load a causal language model from a folder or the Hub.

    Raises `ValueError` for an architecture without one, and for weights that the files lack.
    """
    config = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)
    text = text_config(config)
    if text is not config:
        if getattr(config, "quantization_config", None):
            raise ValueError("the language half of an image-text model that comes quantised cannot be read apart")
        options |= {"config": text, "key_mapping": _key_mapping(text, _tensor_names(folder, revision))}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, revision=revision, output_loading_info=True, **SAFE, **options
    )
    llm, report = loaded
    if llm.base_model is llm:
        raise ValueError(f"the decoder of a {type(llm).__name__} cannot be run without its output layer")
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"its files lack {missing[0]} ({len(missing)} such)")
    if text is not config:
        llm._weight_conversions = None  # it is saved under the text decoder's own names
    _pass_embeddings(llm)
    _keep_scale(llm)
    return llm  # type: ignore[no-any-return]


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Get the config of the text decoder in a base; the config itself if it is one of a language model alone.

    Raises `ValueError` if Transformers has no causal language model for it.
    """
    text = config.get_text_config(decoder=True)
    if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return text
    plain = PLAIN_TEXT.get(text.model_type)
    if plain is None:
        raise ValueError(f"Transformers has no causal language model of type {text.model_type}")
    known, values = AutoConfig.for_model(plain).to_dict(), text.to_dict()
    kept = {key: value for key, value in values.items() if key in known and key not in ("model_type", "architectures")}
    rope = {key: value for key, value in values["rope_parameters"].items() if not key.startswith(("mrope", "type"))}
    kind = rope.get("rope_type", "default")
    kept["rope_parameters"] = rope | {"rope_type": "default" if kind == "mrope" else kind}
    return AutoConfig.for_model(plain, **kept)


def _key_mapping(text: PreTrainedConfig, names: list[str]) -> dict[str, str]:
    """Map the names of the text decoder's tensors in the files of an image-text model to those of its own class.

    The output layer is the word embeddings' where the files have none: the config of the text alone may not say so.
    """
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(text)
    paths = {id(module): name for name, module in llm.named_modules()}
    layers = llm.base_model, llm.get_input_embeddings(), llm.get_output_embeddings()
    trunk, words, output = (paths[id(layer)] for layer in layers)
    decoder, head = _prefix(names, words.removeprefix(f"{trunk}.")), _prefix(names, output)
    if decoder is None:
        raise ValueError(f"its files have no word embeddings of a {text.model_type}")
    text.tie_word_embeddings = head is None
    renamed = {} if head is None else {re.escape(head + output): output}
    return {f"^{path}": own for path, own in (renamed | {re.escape(decoder): f"{trunk}."}).items()}


def _tensor_names(folder: str, revision: str | None) -> list[str]:
    """List the names of a base's tensors, from the index of its files or the header of the only one."""

    def find(name: str) -> str | None:
        missing = {"_raise_exceptions_for_missing_entries": False}
        return cached_file(folder, name, revision=revision, **missing)  # type: ignore[arg-type,no-any-return]

    if single := find("model.safetensors"):
        with safe_open(single, framework="pt") as file:
            return list(file.keys())
    if index := find("model.safetensors.index.json"):
        return list(parse_json(Path(index).read_bytes(), MOST_TENSORS)["weight_map"])
    raise ValueError("it has no model.safetensors")


def _prefix(names: list[str], layer: str) -> str | None:
    """Find what stands before a layer's path in the names of the files; None if they have no such layer."""
    found = [name for name in names if f".{name}".endswith(f".{layer}.weight") and not OTHER_TOWER.search(name)]
    if len(found) > 1:
        raise ValueError(f"its files hold {len(found)} text decoders: {', '.join(sorted(found))}")
    return found[0].removesuffix(f"{layer}.weight") if found else None


def _pass_embeddings(llm: Any) -> None:
    """Let `generate` take embeddings where a family hands them on without naming them, as Falcon-H1 and Bamba do."""
    prepare = llm.prepare_inputs_for_generation
    if "inputs_embeds" in inspect.signature(prepare).parameters:
        return

    def named(input_ids: torch.Tensor, inputs_embeds: torch.Tensor | None = None, **kwargs: Any) -> Any:
        return prepare(input_ids, inputs_embeds=inputs_embeds, **kwargs)

    llm.prepare_inputs_for_generation = named


def _keep_scale(llm: PreTrainedModel) -> None:
    """Let RWKV leave its weights as they are between training and drafts.

    It halves hidden states and two weights every few layers in drafts, against the overflow of fp16, which is never
    used here. That is the same function, but it misses LoRA beside those weights and breaks packed ones.
    """
    if hasattr(llm.config, "rescale_every"):
        llm.config.rescale_every = 0
