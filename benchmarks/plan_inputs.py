"""What a plan is made from: GPUs by their data sheets, bases and CNNs by their shapes."""

from dataclasses import dataclass
from typing import Any

from vlm.config import LLMConfig, VisionConfig
from vlm.errors import UserError


@dataclass(frozen=True)
class GPU:
    """A device as its maker publishes it: dense operations a second, bytes, bytes a second, bytes of a value."""

    flops: float
    memory: float
    bandwidth: float
    value_bytes: int = 2


# NVIDIA's data sheets, dense rates without sparsity, SXM where there is a choice.
GPUS = {
    "T4": GPU(8.1e12, 16e9, 320e9, 4),  # no bf16: fp32
    "L4": GPU(121e12, 24e9, 300e9),
    "A10": GPU(125e12, 24e9, 600e9),
    "RTX-4090": GPU(165.2e12, 24e9, 1008e9),
    "A100-40": GPU(312e12, 40e9, 1555e9),
    "A100-80": GPU(312e12, 80e9, 2039e9),
    "H100": GPU(989.4e12, 80e9, 3350e9),
    "H200": GPU(989.4e12, 141e9, 4800e9),
    "B200": GPU(2250e12, 180e9, 8000e9),
}


@dataclass(frozen=True)
class Base:
    """The shape of a decoder of the Llama family: attention with grouped keys, and a gated MLP."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    attention: int
    keys: int
    vocabulary: int
    tied: bool

    @property
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
    def parameters(self) -> int:
        """All weights."""
        words = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.linear + words + (2 * self.layers + 1) * self.hidden

    def adapted(self, targets: list[str]) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one layer that carry LoRA, by name."""
        return {name: shape for name, shape in self.products.items() if targets == ["all-linear"] or name in targets}


# Published configurations (config.json of each on the Hugging Face Hub).
PRESETS = {
    "135M": Base("SmolLM2-135M", 30, 576, 1536, 576, 192, 49_152, True),
    "1B": Base("Llama-3.2-1B", 16, 2048, 8192, 2048, 512, 128_256, True),
    "8B": Base("Llama-3.1-8B", 32, 4096, 14_336, 4096, 1024, 128_256, False),
    "70B": Base("Llama-3.1-70B", 80, 8192, 28_672, 8192, 1024, 128_256, False),
}


def base_of(config: LLMConfig) -> Base:
    """Read the shape of a config's base; that of a preset needs no file."""
    known = [base for base in PRESETS.values() if base.name.lower() in config.base.lower()]
    if known:
        return known[0]
    from transformers import AutoConfig

    from vlm.weights import language_model_folder

    try:
        found: Any = AutoConfig.from_pretrained(language_model_folder(config.base, config.sha256),
                                                revision=config.revision, trust_remote_code=False)  # fmt: skip
        shape = found.get_text_config()
        size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        return Base(config.base, shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size,
                    size * shape.num_attention_heads, size * shape.num_key_value_heads, shape.vocab_size,
                    shape.tie_word_embeddings)  # fmt: skip
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0][:200]  # early Transformers names every type that it has
        raise UserError(f"model.llm.base: no shape of {config.base}: {reason}; or give --base") from None


Stage = tuple[int, int, int]
"""Products, parameters and outputs of the convolutions and linear layers of one stage of the encoder, for one image."""


def count_cnn(config: VisionConfig, image_size: int) -> tuple[int, tuple[Stage, ...]]:
    """Channels and stages of an image encoder, which is built without memory for its weights.

    Products within attention, of tokens with tokens, are not counted: 4 % of a ViT-B's at 224 pixels.
    """
    import torch

    from vlm.compat import meta_device
    from vlm.model.encoders.build import build_encoder

    try:
        with meta_device():
            cnn, encoder, _ = build_encoder(config, image_size, load_weights=False)
    except UserError as error:
        raise UserError(f"model.vision: cannot build {config.name}: {error}") from None
    groups = encoder.stages(cnn)
    stage_of = {parameter: stage for stage, names in enumerate(groups) for parameter in names}
    stages = [[0, 0, 0] for _ in groups]
    for parameter, value in cnn.named_parameters():
        stages[stage_of[parameter]][1] += value.numel()

    def count(module: Any, inputs: Any, output: torch.Tensor, stage: int) -> None:
        stages[stage][0] += output.numel() * module.weight[0].numel()
        stages[stage][2] += output.numel()

    for path, module in cnn.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear) and f"{path}.weight" in stage_of:
            stage = stage_of[f"{path}.weight"]
            module.register_forward_hook(lambda m, i, o, stage=stage: count(m, i, o, stage))
    with torch.no_grad():
        grid = encoder.grid(cnn.eval(), torch.zeros(1, 3, image_size, image_size, device="meta"))
    return int(grid.shape[1]), tuple((a, b, c) for a, b, c in stages)
