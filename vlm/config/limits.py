"""Check the ranges of a model's options, for configs and for untrusted adapters."""

import math
from collections.abc import Iterator

from vlm.config.model import ModelConfig

LARGEST_SIDE = 2048
"""Largest side of the square image for the CNN, pixels."""
LONGEST_DRAFT = 8192
"""Largest value of the longest draft, tokens."""


def model_problems(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Yield (key, allowed range) of each option out of range; the upper limits bound the model's size."""
    llm, vision, vitals, fusion, signal = config.llm, config.vision, config.vitals, config.fusion, config.signal
    counts = (
        ("llm.lora_rank", llm.lora_rank, 1024),
        ("llm.lora_alpha", llm.lora_alpha, 65_536),
        ("vision.grid", vision.grid, 32),
        ("vision.summary_grid", vision.summary_grid, 16),
        ("vitals.tokens", vitals.tokens, 256),
        ("vitals.bins", vitals.bins, 256),
        ("signal.tokens", signal.tokens, 256),
        ("signal.width", signal.width, 1024),
        ("fusion.size", fusion.size, 16_384),
    )
    for key, value, most in counts:
        if not 1 <= value <= most:
            yield f"model.{key}", f"at least 1 and at most {most:,}, not {value}"
    if signal.cycles and not (len(signal.cycles) == 2 and 0 < signal.cycles[0] < signal.cycles[1] < 1000):
        yield "model.signal.cycles", "[lowest, highest] a minute, above 0 and below 1,000, or []"
    if not 0 <= vision.lora_rank <= 256:
        yield "model.vision.lora_rank", f"at least 0 and at most 256, not {vision.lora_rank}"
    if vision.lora_rank and not vision.train:
        yield "model.vision.lora_rank", "0 where model.vision.train is false"
    if vision.channels not in (0, 1, 3):
        yield "model.vision.channels", f"0, 1 or 3, not {vision.channels}"
    if not 0 <= vision.frozen_stages <= 1024:
        yield "model.vision.frozen_stages", f"at least 0 and at most 1,024, not {vision.frozen_stages}"
    if not 0 <= llm.lora_dropout < 1:
        yield "model.llm.lora_dropout", f"a probability below 1, not {llm.lora_dropout}"
    if not 0 <= config.projector_size <= 16_384:
        yield "model.projector_size", f"at least 0 and at most 16,384, not {config.projector_size}"
    if not (math.isfinite(fusion.sharpness) and fusion.sharpness > 0):
        yield "model.fusion.sharpness", f"a number above 0, not {fusion.sharpness}"
    if fusion.label_words and not fusion.label_token:
        yield "model.fusion.label_words", "false where model.fusion.label_token is false"
    grouped = [name for group in fusion.exclusive for name in group]
    if len(set(grouped)) < len(grouped) or any(len(group) < 2 for group in fusion.exclusive):
        yield "model.fusion.exclusive", "groups of two or more labels, each label once"
    if any(not 1e-3 <= cost <= 1e3 for cost in fusion.miss_costs.values()):
        yield "model.fusion.miss_costs", "label → number from 0.001 to 1,000"
    for key in ("exclusive", "label_evidence", "miss_costs"):
        if getattr(fusion, key) and not fusion.label_words:
            yield f"model.fusion.{key}", "empty where model.fusion.label_words is false"
    for key, text, longest in (
        ("llm.base", llm.base, 1000),
        ("llm.revision", llm.revision or "", 200),
        ("vision.name", vision.name, 200),
        ("vision.weights", vision.weights, 1000),
        ("vision.options", vision.options, 20_000),
        ("prompt.system", config.prompt.system, 20_000),
        ("prompt.instruction", config.prompt.instruction, 20_000),
    ):
        if len(text) > longest:
            yield f"model.{key}", f"at most {longest:,} characters long"
    if not llm.lora_targets or len(llm.lora_targets) > 64:
        yield "model.llm.lora_targets", "1 to 64 names of layers"
    if len(vision.frozen_layers) > 1024 or any(len(name) > 200 for name in vision.frozen_layers):
        yield "model.vision.frozen_layers", "at most 1,024 names of modules"
    if llm.init_lora_weights in ("pissa", "olora") and max(llm.lora_rank, *llm.rank_pattern.values(), 0) > 512:
        yield "model.llm.lora_rank", f"at most 512 with {llm.init_lora_weights}, which doubles it"
    if llm.init_lora_weights in ("pissa", "olora") and max(llm.lora_alpha, *llm.alpha_pattern.values(), 0) > 32_768:
        yield "model.llm.lora_alpha", f"at most 32,768 with {llm.init_lora_weights}, which doubles it"
    for key, pattern, most in (("rank_pattern", llm.rank_pattern, 1024), ("alpha_pattern", llm.alpha_pattern, 65_536)):
        if len(pattern) > 250:  # more would not stay compiled: Python keeps 512 regular expressions
            yield f"model.llm.{key}", "at most 250 names of layers"
        for name, value in pattern.items():
            if not _is_layer_name(name):
                yield f"model.llm.{key}", f"names of layers with numbers, not {name!a:.60}"
            elif not 1 <= value <= most:
                yield f"model.llm.{key}.{name}", f"at least 1 and at most {most:,}, not {value}"
    for name in llm.lora_targets:
        if not _is_layer_name(name):
            yield "model.llm.lora_targets", f"names of layers, not {name!a:.60}"


def _is_layer_name(name: str) -> bool:
    """Check for letters, digits and `_-.`, since PEFT takes names as regular expressions."""
    return name.replace("_", "").replace("-", "").replace(".", "").isalnum() and len(name) <= 100
