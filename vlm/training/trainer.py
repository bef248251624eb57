"""The Transformers `Trainer` with our loss, our schedule and our evaluation; the loop itself is theirs."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from vlm.config import LossConfig, TrainConfig
from vlm.data.collate import IGNORED
from vlm.data.dataset import CaseDataset
from vlm.data.sampling import ShardSampler, shards_of
from vlm.distributed import say
from vlm.errors import UserError
from vlm.model.clinical_vlm import ClinicalVLM, VLMOutput
from vlm.training.monitor.throughput import MeasuredTrainer, by_process
from vlm.training.resumable import ResumableTrainer


class ReportTrainer(MeasuredTrainer, ResumableTrainer):
    """Joint loss over an accumulated batch, its log and its schedule; no step is taken on a broken number."""

    loss_is_scaled_for_ga = True  # both terms are divided by the counts of the whole effective batch

    def __init__(
        self, model: ClinicalVLM, args: TrainingArguments, loss: LossConfig, train: TrainConfig, **options: Any
    ):
        optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        settings["params"] = parameter_groups(model, train)
        options["optimizer_cls_and_kwargs"] = optimizer, settings
        super().__init__(model, args, train.keep_checkpoints, **options)
        self.loss_config, self.train_config = loss, train
        self._step: list[tuple[torch.Tensor, list[str]]] = []  # loss and cases of each batch of the step so far

    # ---------------------------------------------------------------------------------------- loss

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor:
        """Known labels and supervised tokens of the effective batch, over accumulation and processes; shape 2."""
        labels = sum((~torch.isnan(batch["targets"])).sum() for batch in batch_samples)
        tokens = sum((batch["labels"][:, 1:] != IGNORED).sum() for batch in batch_samples)
        counts = torch.stack([torch.as_tensor(labels), torch.as_tensor(tokens)]).to(device)
        return self.accelerator.reduce(counts, "sum") if self.args.world_size > 1 else counts

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Equation (5); with alpha = 1 in the first `head_only_steps`, when the language model does not run."""
        ids = inputs.pop("ids", [])
        label_count, token_count = num_items_in_batch if num_items_in_batch is not None else (None, None)
        self.throughput.count(inputs, text=self.alpha < 1)
        output: VLMOutput = model(**inputs, alpha=self.alpha, label_count=label_count, token_count=token_count)
        self._step.append((output.loss.detach(), ids))
        self._terms += torch.stack([output.loss_bce, output.loss_ce]).detach()
        # Gradients are averaged over processes, while our counts are of all of them together.
        loss = output.loss * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The last that is asked before the optimizer's step, which no broken number must reach.

        Losses and gradients are looked at here together: once a step the host waits for the device, and no more.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        step, self._step = self._step, []
        losses = torch.stack([loss for loss, _ in step]).float()
        if torch.isfinite(torch.cat([losses, torch.as_tensor(norm).to(losses).reshape(1)])).all():
            return norm
        broken = [(loss.item(), ids) for loss, (_, ids) in zip(losses, step, strict=True) if not torch.isfinite(loss)]
        what, value = ("loss", broken[0][0]) if broken else ("gradient", float(norm))
        cases = [name for _, ids in broken or step for name in ids]
        raise UserError(
            f"step {self.state.global_step + 1}: the {what} is {value}, so the step is not taken; look at "
            f"the cases {', '.join(cases)}, or lower the learning rates and go on with --resume"
        )

    @property
    def alpha(self) -> float:
        """Weight of the classification term at this step."""
        return 1.0 if self.state.global_step < self.loss_config.head_only_steps else self.loss_config.alpha

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Split the training loss of a log row into its two terms, and say how fast its steps were."""
        if "loss" in logs:
            steps = max(self.state.global_step - self._terms_since, 1)
            text_steps = self.state.global_step - max(self._terms_since, self.loss_config.head_only_steps)
            bce, ce = self.each_process(self._terms).T.tolist()  # each process's part of the batch's means
            # Not 0 without a step that reads text: nothing was measured.
            ce = [value / text_steps if text_steps > 0 else math.nan for value in ce]
            parts = {"loss_bce": [value / steps for value in bce], "loss_ce": ce}
            terms = {name: sum(values) for name, values in parts.items()}
            logs = {"loss": logs["loss"], **terms, **logs, **by_process(parts), **self.row_speeds()}
            self._terms.zero_()
            self._terms_since = self.state.global_step
        super().log(logs, start_time)

    def prediction_step(
        self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Per case: K logits, summed text loss, number of tokens (B × (K + 2)); never logits of the vocabulary.

        Where training does not read the text, neither is it read here: its loss is NaN, and so is the joint loss,
        which then cannot be the best one.
        """
        inputs = self._prepare_inputs(inputs)
        inputs.pop("ids", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            output: VLMOutput = model(**inputs, alpha=self.alpha)
        losses = output.case_losses if self.alpha < 1 else torch.full_like(output.case_losses, math.nan)
        columns = [output.logits.float(), losses[:, None], output.case_tokens[:, None].float()]
        return None, torch.cat(columns, dim=1), inputs["targets"]

    # ------------------------------------------------------------------------------------ schedule

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Warm-up and decay for each group over the steps in which it learns: the text's parts start later."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            assert optimizer is not None
            groups = optimizer.param_groups
            starts = [self.loss_config.head_only_steps if group["text"] else 0 for group in groups]
            end = num_training_steps
            factors: list[Callable[[int], float]] = [partial(self._rate_factor, start=s, end=end) for s in starts]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _rate_factor(self, step: int, start: int, end: int) -> float:
        """Share of the learning rate at a step, for a group that learns from `start` to `end`."""
        warmup, schedule = self.train_config.warmup_steps, self.train_config.schedule
        if step < start + warmup:
            return max(step - start + 1, 0) / (warmup + 1)
        done = min((step - start - warmup) / max(end - start - warmup, 1), 1.0)
        if schedule == "constant_with_warmup":
            return 1.0
        return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = train_dataset or self.train_dataset
        assert isinstance(dataset, CaseDataset)
        shards, batch_size = shards_of(dataset), self.train_config.batch_size
        if shards is None:
            return CaseSampler(dataset, batch_size)
        sampler = ShardSampler(dataset, shards, batch_size, self.args.train_batch_size, self.args.world_size)
        say(sampler.describe())
        return sampler

    @property
    def case_datasets(self) -> list[CaseDataset]:
        """What is read in every epoch: the training cases and, where there are any, those of the validation."""
        return [dataset for dataset in (self.train_dataset, self.eval_dataset) if isinstance(dataset, CaseDataset)]


class CaseSampler(torch.utils.data.Sampler[int]):
    """Every case once an epoch, shuffled; of weighted cases as many, by weight and with replacement.

    Drawn from (seed, epoch) alone, so that a resumed run draws the same. The cases of one optimizer step stand by
    the length of their reports, which changes nothing of the step and pads its smaller batches less.
    """

    def __init__(self, dataset: CaseDataset, batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.dataset.seed, self.dataset.epoch])
        weights, count = self.dataset.weights, len(self)
        order = rng.permutation(count) if weights is None else rng.choice(count, count, p=weights / weights.sum())
        lengths = self.dataset.report_lengths
        for start in range(0, count, self.batch_size):  # no list of a million numbers is made
            step = order[start : start + self.batch_size]
            yield from step[np.argsort(-lengths[step], kind="stable")].tolist()


def parameter_groups(model: ClinicalVLM, train: TrainConfig) -> list[dict[str, Any]]:
    """Learning rates by part, each with and without weight decay; the first group's rate is the one logged.

    A group is `text` if only the text loss reaches it, so that nothing of it learns in the head-only steps.
    """
    rates = {"head": train.learning_rate, "tokens": train.learning_rate, "llm": train.lora_learning_rate,
             "cnn": train.vision_learning_rate}  # fmt: skip
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (part, decay): [] for part in rates for decay in (True, False)
    }
    for name, parameter in model.trainable_parameters().items():
        groups[part_of(name), parameter.ndim > 1].append(parameter)  # biases, norms and single vectors do not decay
    return [
        {
            "params": parameters,
            "lr": rates[part],
            "weight_decay": train.weight_decay if decay else 0.0,
            "text": part in ("tokens", "llm"),
        }
        for (part, decay), parameters in groups.items()
        if parameters
    ]


def part_of(name: str) -> str:
    """Which part of the model a parameter belongs to: `llm`, `cnn`, `head` (and all that feeds it) or `tokens`."""
    if name.startswith("llm."):
        return "llm"
    if name.startswith("vision.cnn."):
        return "cnn"
    return "head" if name.startswith(("joint.", "vision.missing", "vitals.values.")) else "tokens"
