"""Choose the layers that carry LoRA, and say which do and which do not."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from vlm.config import LLMConfig
from vlm.errors import UserError

MIXER = re.compile(r"attn|attention|conv")
"""Pattern in the path of a layer that mixes tokens, as attention does; the others work on each token alone."""
OTHER_TOWER = re.compile(r"vision|visual|image|audio")
ALL_LINEAR = ["all-linear"]
NOT_OF_MAMBA = ("out_proj", "conv1d")
"""Layers that PEFT refuses to put LoRA on in Mamba: its kernels read their weights past them."""


def fit_targets(llm: PreTrainedModel, config: LLMConfig) -> LLMConfig:
    """Replace the LoRA targets of the config by names of layers that this base has, for a fresh LoRA.

    The default means the projections of attention, whatever their names, and all linear layers where none is called
    attention. `all-linear` leaves out fused experts: PEFT would save them in a form other than plain LoRA. Raises
    `UserError` for a name that no linear layer has, and for names that stand for unequally many layers.
    """
    paths = list(linear_layers(llm))
    leaves, usual = list(dict.fromkeys(path.rpartition(".")[2] for path in paths)), LLMConfig().lora_targets
    if automatic := config.lora_targets == usual:
        own = (path for path in paths if not OTHER_TOWER.search(path))
        found = {leaf for path in own if (leaf := path.rpartition(".")[2]) in usual or MIXER.search(path)}
        if found - set(usual):
            config = replace(config, lora_targets=[leaf for leaf in leaves if leaf in found])
        if not found:
            allowed = [leaf for leaf in leaves if not (_is_mamba(llm) and leaf in NOT_OF_MAMBA)]
            config = replace(config, lora_targets=ALL_LINEAR if allowed == leaves else allowed)
    if config.lora_targets == ALL_LINEAR:
        return replace(config, lora_targets=leaves) if _has_fused_experts(llm) else config
    for name in config.lora_targets:
        if not any(matches(path, name) for path in paths):
            raise UserError(
                f"model.llm.lora_targets: {config.base} has no linear layer named {name}; it has {', '.join(leaves)}"
            )
    if not automatic:
        _refuse_uneven(paths, config)
    return config


def _refuse_uneven(paths: Sequence[str], config: LLMConfig) -> None:
    """Raise `UserError` where some names stand for fewer layers than others; a name with its module is meant so."""
    own = [path for path in paths if not OTHER_TOWER.search(path)] or paths
    counts = {name: sum(matches(path, name) for path in own) for name in config.lora_targets if "." not in name}
    if len(set(counts.values())) > 1:
        found = (".".join(path.split(".")[-2:]) for path in own if any(matches(path, name) for name in counts))
        raise UserError(
            f"model.llm.lora_targets: would reach unequally many layers of {config.base}, "
            f"{', '.join(f'{name} {count}' for name, count in counts.items())}; if you mean that, name them with their "
            f"modules, from {', '.join(list(dict.fromkeys(found))[:12])}; or write [all-linear]"
        )


def describe_choice(llm: nn.Module, asked: LLMConfig, chosen: LLMConfig) -> list[str]:
    """Describe the targets and their reason, where they are others than the config names."""
    if asked.lora_targets == chosen.lora_targets:
        return []
    attention = any(MIXER.search(path) for path in linear_layers(llm) if not OTHER_TOWER.search(path))
    reason = "so this base names its layers" if attention else "no linear layer of this base is called attention"
    return [f"LoRA targets: {', '.join(chosen.lora_targets)} ({reason})"]


def linear_layers(llm: nn.Module) -> Iterator[str]:
    """Yield the paths of the linear layers that may have LoRA: all but the output layer."""
    vocabulary = llm.get_output_embeddings() if isinstance(llm, PreTrainedModel) else None
    for path, module in llm.named_modules():
        if is_linear(module) and module is not vocabulary and "lora_" not in path:
            yield path


def is_linear(module: nn.Module) -> bool:
    """Check for a linear layer, plain, as GPT-2 has it, or packed by GPTQ or AWQ."""
    return isinstance(module, (nn.Linear, Conv1D)) or hasattr(module, "qweight")


def matches(path: str, target: str) -> bool:
    """Check whether PEFT matches a layer to a target."""
    return path == target or path.endswith(f".{target}")


def _is_mamba(llm: PreTrainedModel) -> bool:
    return llm.config.model_type in ("mamba", "mamba2", "falcon_mamba")


def _has_fused_experts(llm: nn.Module) -> bool:
    return any(parameter.ndim == 3 and ".experts." in name for name, parameter in llm.named_parameters())


def describe_lora(llm: nn.Module, layers: int) -> list[str]:
    """Describe the layers with LoRA and the linear layers without, counted by name, and decoder layers without any."""
    base = getattr(llm, "get_base_model", lambda: llm)()
    paths = [path for path, module in base.named_modules() if hasattr(module, "lora_A")]
    with_lora = {f"{path}.base_layer" for path in paths}
    bare = [path for path in linear_layers(base) if path not in with_lora]
    lines = [f"LoRA on {len(paths)} layers: {_counted(paths)}"]
    lines += [f"no LoRA on {len(bare)} linear layers: {_counted(bare)}"] if bare else []
    reached = {int(match[1]) for path in paths if (match := re.search(r"\.(\d+)\.", path))}
    if missing := sorted(set(range(layers)) - reached):
        lines.append(f"warning: {len(missing)} of {layers} decoder layers carry no LoRA, such as layer {missing[0]}")
    if len({count for _, count in _counts(paths)}) > 1:
        lines.append("warning: LoRA is not on equally many layers of each name; model.llm.lora_targets names them")
    return lines


def _counts(paths: Sequence[str]) -> list[tuple[str, int]]:
    return list(Counter(path.rpartition(".")[2] for path in paths).items())


def _counted(paths: Sequence[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in _counts(paths))
