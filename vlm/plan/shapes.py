"""The shapes of language models and CNNs: numbers alone, so that a plan needs none of their weights."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vlm.config import LLMConfig, VisionConfig
from vlm.errors import UserError

ALL_LINEAR = ["all-linear"]
READS = {"q_proj": "x", "k_proj": "x", "v_proj": "x", "o_proj": "heads", "gate_proj": "y", "up_proj": "y",
         "down_proj": "gated"}  # fmt: skip
"""Which linear layers read the same values: these are kept once for the backward pass."""


@dataclass(frozen=True)
class Base:
    """A decoder of the Llama family: attention with grouped keys, and a gated MLP."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool

    @property
    def attention(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of the keys, and of the values."""
        return self.kv_heads * self.head_size

    @cached_property
    def products(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear layer in one layer of the model."""
        hidden, inner = self.hidden, self.intermediate
        return {
            "q_proj": (hidden, self.attention), "k_proj": (hidden, self.keys), "v_proj": (hidden, self.keys),
            "o_proj": (self.attention, hidden), "gate_proj": (hidden, inner), "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }  # fmt: skip

    @property
    def linear(self) -> int:
        """Weights of all linear layers without the vocabulary's: what NF4 packs."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.products.values())

    @property
    def words(self) -> int:
        """Weights of the vocabulary: the embeddings, and the output layer where it has its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.linear + self.words + (2 * self.layers + 1) * self.hidden

    def adapted(self, targets: list[str]) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one layer that carry LoRA, by name."""
        return {name: shape for name, shape in self.products.items() if targets == ALL_LINEAR or name in targets}


# Published configurations (config.json of each on the Hugging Face Hub).
PRESETS = {
    "135M": Base("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49_152, True),
    "1B": Base("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128_256, True),
    "8B": Base("Llama-3.1-8B", 32, 4096, 14_336, 32, 8, 128, 128_256, False),
    "70B": Base("Llama-3.1-70B", 80, 8192, 28_672, 64, 8, 128, 128_256, False),
}


def base_of(config: LLMConfig, preset: str | None = None) -> Base:
    """The shape of a config's base, or of a preset; raises `UserError` where it can be known from neither.

    A base whose name is a preset's needs no file; of another one config.json is read from its folder, or fetched
    from the Hub if it is not in the cache.
    """
    if preset:
        if preset.upper() not in PRESETS:
            raise UserError(
                f"--base: no preset {preset}; there are {', '.join(PRESETS)}, and model.llm.base for others"
            )
        return PRESETS[preset.upper()]
    known = [base for base in PRESETS.values() if base.name.lower() in config.base.lower()]
    return known[0] if known else base_from(_config_of(config), config.base)


def _config_of(config: LLMConfig) -> dict[str, Any]:
    from vlm.weights import language_model_folder

    folder = language_model_folder(config.base, config.sha256)
    try:
        if not Path(folder).is_dir():
            from huggingface_hub import hf_hub_download

            folder = str(Path(hf_hub_download(folder, "config.json", revision=config.revision)).parent)
        values = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model.llm.base: no config.json of {config.base}: {reason}; or take a --base") from None
    return values.get("text_config", values)  # type: ignore[no-any-return]


def base_from(values: dict[str, Any], name: str) -> Base:
    """A base from the keys of its config.json."""
    try:
        heads, hidden = values["num_attention_heads"], values["hidden_size"]
        return Base(
            name, values["num_hidden_layers"], hidden, values["intermediate_size"], heads,
            values.get("num_key_value_heads") or heads, values.get("head_dim") or hidden // heads,
            values["vocab_size"], values.get("tie_word_embeddings", False),
        )  # fmt: skip
    except KeyError as error:
        raise UserError(f"model.llm.base: config.json of {name} has no {error}; take a --base instead") from None


@dataclass(frozen=True)
class CNN:
    """A CNN by timm's coarse stages: products, parameters and outputs of its convolutions for one square of 224."""

    name: str
    channels: int
    stages: tuple[tuple[int, int, int], ...]

    @property
    def parameters(self) -> int:
        """All weights."""
        return sum(parameters for _, parameters, _ in self.stages)

    def trained(self, config: VisionConfig) -> tuple[tuple[int, int, int], ...]:
        """The stages that learn."""
        return self.stages[config.frozen_stages :] if config.train else ()


# Counted by `count_cnn`; a test compares.
CNNS = {
    cnn.name: cnn
    for cnn in (
        CNN("tf_efficientnet_lite0", 1280, (
            (10_838_016, 928, 401_408), (10_035_200, 896, 602_112), (54_942_720, 13_968, 2_558_976),
            (37_933_056, 39_712, 1_003_520), (43_512_000, 198_480, 658_560), (86_007_936, 446_784, 780_864),
            (91_158_816, 1_652_640, 540_960), (49_479_808, 1_017_600, 191_296))),
        CNN("resnet50", 2048, (
            (118_013_952, 9_536, 802_816), (667_942_912, 215_808, 4_415_488), (1_027_604_480, 1_219_584, 3_110_912),
            (1_464_336_384, 7_098_368, 2_157_568), (809_238_528, 14_964_736, 627_200))),
    )
}  # fmt: skip


def cnn_of(config: VisionConfig) -> CNN:
    """The CNN of a config: from the table, else counted, which takes the seconds of importing PyTorch."""
    return CNNS.get(config.name.split(".")[0]) or count_cnn(config.name)


def count_cnn(name: str) -> CNN:
    """Build a timm model without memory for its weights, and count one pass; raises `UserError` for an unknown name."""
    import timm
    import torch

    try:
        with torch.device("meta"):
            cnn = timm.create_model(name.removeprefix("hf_hub:"), num_classes=0, global_pool="").eval()
    except (RuntimeError, OSError, TypeError) as error:
        raise UserError(f"model.vision: cannot build {name}: {str(error).splitlines()[0]}") from None
    groups = timm.models.group_parameters(cnn, cnn.group_matcher(coarse=True))  # type: ignore[operator]
    stage_of = {parameter: stage for stage, names in enumerate(groups.values()) for parameter in names}
    stages = [[0, 0, 0] for _ in groups]
    for parameter, value in cnn.named_parameters():
        stages[stage_of[parameter]][1] += value.numel()

    def seen(module: torch.nn.Conv2d, inputs: Any, output: torch.Tensor, stage: int) -> None:
        stages[stage][0] += output.numel() * module.weight[0].numel()
        stages[stage][2] += output.numel()

    for path, module in cnn.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            stage = stage_of[f"{path}.weight"]
            module.register_forward_hook(lambda m, i, o, stage=stage: seen(m, i, o, stage))
    with torch.no_grad():
        channels = cnn(torch.zeros(1, 3, 224, 224, device="meta")).shape[1]
    return CNN(name, int(channels), tuple((a, b, c) for a, b, c in stages))
