"""Wrap the frozen language model by PEFT: LoRA on the chosen layers, in the chosen variant."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from vlm.compat import enable_activation_checkpointing
from vlm.config import LLMConfig
from vlm.errors import UserError, one_line
from vlm.model.bases.lora_init import start_from_weights
from vlm.model.bases.lora_settings import DECOMPOSED, names_layer, saved_settings
from vlm.model.bases.lora_targets import ALL_LINEAR


def add_lora(llm: PreTrainedModel, config: LLMConfig) -> nn.Module:
    """Wrap the LLM by PEFT: h = W x + s B A x with A and B trainable, s = alpha / r (Hu et al., 2021).

    `modules_to_save` stays empty, since it matches by suffix and would capture the output layer; so the folder stays
    a plain LoRA that vLLM and llama.cpp accept. Raises `UserError` that names the option.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    saved, targets = saved_settings(config), config.lora_targets
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=saved.lora_rank,
        lora_alpha=saved.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if targets == ALL_LINEAR else list(targets),
        bias="none",
        init_lora_weights="gaussian" if config.init_lora_weights == "gaussian" else True,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        rank_pattern=dict(saved.rank_pattern),
        alpha_pattern=dict(saved.alpha_pattern),
    )
    with one_line(f"model.llm.lora_targets: {config.base} cannot carry LoRA there"):
        if config.activation_checkpointing:
            enable_activation_checkpointing(llm)
        peft_model = get_peft_model(llm, lora)
    settings: Any = peft_model.peft_config["default"]
    if experts := getattr(settings, "target_parameters", None):
        raise UserError(
            f"model.llm.lora_targets: would put LoRA into fused experts ({min(experts)}), which is no plain LoRA; "
            "name layers outside of them"
        )
    _check_patterns(peft_model.get_base_model(), config)
    if config.init_lora_weights in DECOMPOSED:
        start_from_weights(peft_model, config.init_lora_weights)
    settings.init_lora_weights = True  # what a trained LoRA began with is nothing to load
    settings.base_model_name_or_path, settings.revision = config.base, config.revision
    return peft_model


def _check_patterns(llm: nn.Module, config: LLMConfig) -> None:
    """Raise `UserError` for a name in a pattern that no layer with LoRA has."""
    layers = [path for path, module in llm.named_modules() if hasattr(module, "lora_A")]
    patterns: dict[str, Sequence[Any]] = {
        "rank_pattern": list(config.rank_pattern), "alpha_pattern": list(config.alpha_pattern)
    }  # fmt: skip
    for key, names in patterns.items():
        for name in names:
            if not any(names_layer(name, layer) for layer in layers):
                raise UserError(
                    f"model.llm.{key}: no layer of {config.base} with LoRA is named {name}; a name is the end of a "
                    f"path such as {layers[0]}"
                )
