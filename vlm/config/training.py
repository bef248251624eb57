"""The loss, the training, the test, and where a run goes."""

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
    """Image encoder, where it trains."""
    vision_layer_decay: float = 1.0
    """Factor on that rate for each layer of the encoder further from its end; 0.75 is usual for a transformer."""
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
