"""Options of loss, training, test and run folder."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class RunConfig:
    """Folder of a run's results."""

    name: str = "run"
    """Name of the run, written to `folder/name`."""
    folder: str = "runs"
    """Folder that holds all runs."""
    overwrite: bool = False
    """Delete an earlier run of the same name; else such a run is an error."""


@dataclass(frozen=True)
class LossConfig:
    """L = alpha BCE + (1 - alpha) CE, equation (5)."""

    alpha: float = 0.5
    """Weight of the classification term, 0 to 1."""
    head_only_steps: int = 0
    """First steps with alpha = 1, without the language model, at a tenth of the cost."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimizer, schedule, batches, checkpoints and logs."""

    start_from: str | None = None
    """Adapter folder or Hub id of the same base to start from, as far as it fits; null starts fresh."""
    start_revision: str | None = None
    """Commit, tag or branch of that Hub id; the run keeps the commit here."""
    epochs: float = 3.0
    """Passes over the training split."""
    max_steps: int = -1
    """Optimizer steps; a positive number overrides `epochs`."""
    batch_size: int = 32
    """Cases in an optimizer step, over all processes and accumulation."""
    micro_batch_size: int | Literal["auto"] = 8
    """Cases in a forward pass on one device; `batch_size` is accumulated from these; auto: the most that fit a GPU."""
    learning_rate: float = 1e-3
    """Peak learning rate of projectors, vitals encoder, fusion and head."""
    lora_learning_rate: float = 1e-3
    """Peak learning rate of LoRA."""
    loraplus_lr_ratio: float = 1.0
    """Learning rate of LoRA's B over that of A (LoRA+); 1: the same, 16 in its paper."""
    vision_learning_rate: float = 3e-4
    """Peak learning rate of the image encoder."""
    vision_layer_decay: float = 1.0
    """Factor on it for each layer of the encoder further from its end; 0.75 is usual for a transformer."""
    weight_decay: float = 0.01
    """Decoupled weight decay; none on biases and norms."""
    warmup_steps: int = 10
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    max_grad_norm: float = 1.0
    """Norm to clip gradients to."""
    optimizer: Literal["adamw_torch", "paged_adamw_8bit"] = "adamw_torch"
    """AdamW of PyTorch, or of bitsandbytes with 8-bit state, on a GPU paged to the host."""
    precision: Literal["auto", "fastest", "bf16", "fp32", "fp16"] = "auto"
    """Compute precision; auto: bf16 on a GPU that has it, else fp32; fastest: bf16 on a CPU that has it as well; fp16
    is refused, with the reason."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """Attention kernels of the language model; auto: those of Transformers."""
    packing: Literal["auto", "always", "never"] = "auto"
    """Run the cases of a micro batch one after another in one sequence, without padding; auto: on a GPU."""
    liger: bool = False
    """Use the Triton kernels of `liger-kernel` in the language model (GPU only)."""
    compile: bool = False
    """Compile the language model's layers by torch.compile: minutes at the start for quicker steps."""
    seed: int = 0
    """Seed of initial weights, data order, dropout and augmentation."""
    log_steps: int = 5
    """Steps between rows of log.jsonl."""
    eval_steps: int = 50
    """Steps between evaluations on the validation split, and between checkpoints."""
    patience: int = 0
    """Evaluations without a better validation loss after which to stop; 0: never."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep, besides the best."""
    workers: int = 0
    """Data loader processes; 0: load in the main process."""
    threads: int = 0
    """CPU threads of a process; 0 shares all cores among the processes."""
    report_to: list[str] = field(default_factory=list)
    """Trackers by their Transformers names, such as `tensorboard`; log.jsonl is always written."""


@dataclass(frozen=True)
class OperatingPointConfig:
    """A wanted sensitivity or a wanted specificity, for which each label gets a threshold."""

    sensitivity: float | None = None
    """Share of the validation cases with the label that the threshold must call, between 0 and 1."""
    specificity: float | None = None
    """Share of the validation cases without it that the threshold must not call, between 0 and 1."""

    @property
    def measure(self) -> str:
        """Return which of the two is wanted."""
        return "specificity" if self.sensitivity is None else "sensitivity"

    @property
    def wanted(self) -> float:
        """Return the wanted share; 0 if neither is set, which a config may not be."""
        return (self.specificity if self.sensitivity is None else self.sensitivity) or 0.0

    @property
    def name(self) -> str:
        """Return its name in the metrics, such as `sensitivity_0.9`."""
        return f"{self.measure}_{self.wanted:g}"


@dataclass(frozen=True)
class EvaluationConfig:
    """The test at the end of a run."""

    batch_size: int = 32
    """Cases drafted together."""
    max_new_tokens: int = 96
    """Longest draft, in tokens; kept in the adapter as the length of its drafts at use."""
    bootstrap_draws: int = 2000
    """Bootstrap draws of patients for a 95 % interval."""
    learned_metrics: list[
        Literal["bertscore", "radgraph", "chexbert", "radeval_bertscore", "ratescore", "radcliq", "radgraph_radcliq",
                "srrbert", "temporal", "green", "crimson", "f1radbert_ct"]
    ] = field(default_factory=list)  # fmt: skip
    """Model-based metrics of the extra `radeval`; each downloads its model from the Hub once."""
    cases: int = 0
    """Most test cases, of patients drawn at random and always the same; 0: all."""
    ablation: bool = True
    """Draft test cases again with image or vitals swapped, blanked and withheld."""
    ablation_cases: int = 0
    """Most cases drafted again, of patients drawn at random and always the same; 0: all."""
    operating_points: list[OperatingPointConfig] = field(
        default_factory=lambda: [OperatingPointConfig(sensitivity=0.9), OperatingPointConfig(specificity=0.9)]
    )
    """Wanted sensitivities or specificities; each label's thresholds are fixed on the validation split."""
    subgroups: list[str] | None = None
    """Groups in which the test cases are measured: names of vitals or of columns of the table, `view`, `source`,
    `missing`; null: sex and age where the vitals have them, and what is missing."""
    coverage: float = 0.9
    """Share of cases whose label set is to hold the truth."""
    sentence_cases: int = 200
    """Most validation cases, of patients drawn at random, that are drafted to fit how sure a sentence is; 0: none."""
    unsure_share: float = 0.2
    """Share of drafts, the least sure, that are warned of, and withheld where abstaining is asked for."""
