"""Choose the LoRA target layers of the frozen language model, and wrap it by PEFT."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from vlm.compat import enable_activation_checkpointing
from vlm.config import LLMConfig
from vlm.errors import UserError, one_line

MIXER = re.compile(r"attn|attention|conv")
"""Pattern in the path of a layer that mixes tokens, as attention does; the others work on each token alone."""
OTHER_TOWER = re.compile(r"vision|visual|image|audio")


def fit_targets(llm: PreTrainedModel, config: LLMConfig) -> LLMConfig:
    """Replace the LoRA targets of the config by names of layers that this base has, for a fresh LoRA.

    The default means the projections of attention, whatever their names. `all-linear` leaves out fused experts: PEFT
    would save them in a form other than plain LoRA. Raises `UserError` for a name that no linear layer has.
    """
    paths = list(linear_layers(llm))
    leaves, usual = list(dict.fromkeys(path.rpartition(".")[2] for path in paths)), LLMConfig().lora_targets
    if config.lora_targets == ["all-linear"]:
        return replace(config, lora_targets=leaves) if _has_fused_experts(llm) else config
    if config.lora_targets == usual:
        own = (path for path in paths if not OTHER_TOWER.search(path))
        found = {leaf for path in own if (leaf := path.rpartition(".")[2]) in usual or MIXER.search(path)}
        if found - set(config.lora_targets) or not found:
            config = replace(config, lora_targets=[leaf for leaf in leaves if leaf in found])
    if not config.lora_targets:
        raise UserError(
            f"model.llm.lora_targets: {config.base} has no linear layers of attention; name some of {', '.join(leaves)}"
        )
    for name in config.lora_targets:
        if not any(matches(path, name) for path in paths):
            raise UserError(
                f"model.llm.lora_targets: {config.base} has no linear layer named {name}; it has {', '.join(leaves)}"
            )
    return config


def linear_layers(llm: nn.Module) -> Iterator[str]:
    """Yield the paths of the linear layers that may have LoRA: all but the output layer."""
    vocabulary = llm.get_output_embeddings() if isinstance(llm, PreTrainedModel) else None
    for path, module in llm.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and module is not vocabulary:
            yield path


def matches(path: str, target: str) -> bool:
    """Check whether PEFT matches a layer to a target."""
    return path == target or path.endswith(f".{target}")


def _has_fused_experts(llm: nn.Module) -> bool:
    return any(parameter.ndim == 3 and ".experts." in name for name, parameter in llm.named_parameters())


def describe_lora(llm: nn.Module, layers: int) -> list[str]:
    """Describe the layers with LoRA, counted by name, and the decoder layers without."""
    paths = [path for path, module in llm.named_modules() if hasattr(module, "lora_A")]
    counts = Counter(path.rpartition(".")[2] for path in paths)
    lines = [f"LoRA on {len(paths)} layers: {', '.join(f'{name} {count}' for name, count in counts.items())}"]
    with_lora = {int(match[1]) for path in paths if (match := re.search(r"\.(\d+)\.", path))}
    if bare := sorted(set(range(layers)) - with_lora):
        lines.append(f"warning: {len(bare)} of {layers} decoder layers carry no LoRA, such as layer {bare[0]}")
    if len(set(counts.values())) > 1:
        lines.append("warning: LoRA is not on equally many layers of each name; model.llm.lora_targets names them")
    return lines


def add_lora(llm: PreTrainedModel, config: LLMConfig) -> nn.Module:
    """Wrap the LLM by PEFT: h = W x + (alpha / r) B A x with A and B trainable (Hu et al., 2021).

    `modules_to_save` stays empty, since it matches by suffix and would capture the output layer; so the folder stays
    a plain LoRA that vLLM and llama.cpp accept.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    targets: Sequence[str] = config.lora_targets
    lora = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else list(targets),
        bias="none",
    )
    with one_line(f"model.llm.lora_targets: {config.base} cannot carry LoRA there"):
        if config.activation_checkpointing:
            enable_activation_checkpointing(llm)
        peft_model = get_peft_model(llm, lora)
    if experts := getattr(peft_model.peft_config["default"], "target_parameters", None):
        raise UserError(
            f"model.llm.lora_targets: would put LoRA into fused experts ({min(experts)}), which is no plain LoRA; "
            "name layers outside of them"
        )
    peft_model.peft_config["default"].base_model_name_or_path = config.base
    peft_model.peft_config["default"].revision = config.revision
    return peft_model
