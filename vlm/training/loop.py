"""Training loop, from the first batch to the best weights.

Each process runs forward and backward on its micro batches of a step. The gradients are all-reduced, clipped and
checked, then AdamW makes one step. Only the adapter trains, a few MB, so one message carries the gradients and the
model needs no wrapper: the loop is the same with and without a sharded base.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from vlm.config import Config
from vlm.data.collate import IGNORED, Collator
from vlm.data.dataset import CaseDataset
from vlm.data.sampling import make_sampler
from vlm.distributed import is_main, log_rank0
from vlm.errors import Stopped, UserError
from vlm.evaluation.scoring import score_cases, split_metrics
from vlm.finite import all_finite
from vlm.model.clinical_vlm import ClinicalVLM, VLMOutput
from vlm.training import checkpoints
from vlm.training.ending import StopAtSignal
from vlm.training.gradients import broadcast_weights, sum_gradients
from vlm.training.monitor.log import RunLog
from vlm.training.monitor.throughput import Throughput, by_process, speeds
from vlm.training.optimizer import make_optimizer, make_schedule, set_rates
from vlm.training.run_folder import RunFolder, checkpoint_folder
from vlm.training.state import TrainState

Batch = dict[str, Any]


class TrainingLoop:
    """Train on the joint loss with gradient accumulation, validation, checkpoints and early stopping."""

    def __init__(
        self,
        model: ClinicalVLM,
        training: CaseDataset,
        validation: CaseDataset,
        config: Config,
        folder: RunFolder,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.training, self.validation = model, training, validation
        self.config, self.folder, self.accelerator = config, folder, accelerator
        train, processes = config.train, accelerator.num_processes
        micro, self.accumulation = split_batch(train.batch_size, int(train.micro_batch_size), processes)
        loader = torch.utils.data.DataLoader(
            training,
            micro,
            sampler=make_sampler(training, train.batch_size, micro, processes),
            collate_fn=Collator(model.prompt, with_ids=True),
            num_workers=train.workers,
            pin_memory=accelerator.device.type == "cuda",
        )
        self.loader = accelerator.prepare_data_loader(loader)
        self.steps_per_epoch = math.ceil(len(self.loader) / self.accumulation)
        self.max_steps = train.max_steps if train.max_steps > 0 else math.ceil(train.epochs * self.steps_per_epoch)
        self.parameters = list(model.trainable_parameters().values())
        self.optimizer = make_optimizer(model, train)
        self.schedule = make_schedule(self.optimizer, train, self.max_steps, config.loss.head_only_steps)
        self.state = TrainState()
        self.sums = torch.zeros(3, device=accelerator.device)
        """Sums of BCE, CE and joint loss of this process since the last row of the log."""
        self.logged = 0
        """Step of that row."""
        self.throughput = Throughput(accelerator.device)
        self.log = RunLog(folder.log, accelerator)

    @property
    def alpha(self) -> float:
        """Weight of the classification loss at this step: 1 in the head-only steps, when the LLM does not run."""
        loss = self.config.loss
        return 1.0 if self.state.global_step < loss.head_only_steps else loss.alpha

    @property
    def finished(self) -> bool:
        """True if every step is done or early stopping has ended the run."""
        patience = self.config.train.patience
        stale = 0 < patience <= self.state.evaluations_without_improvement
        return stale or self.state.global_step >= self.max_steps

    # ------------------------------------------------------------------------------------ the loop

    def run(self, checkpoint: Path | None = None) -> None:
        """Train to the last step, from the start or from the checkpoint that `resume` read; load the best weights.

        Raises `Stopped` after a signal, once the current step is saved, and `UserError` for a non-finite number.
        """
        train, start = self.config.train, time.perf_counter()
        if checkpoint is None:
            set_seed(train.seed)
        broadcast_weights(self.parameters, self.accelerator)
        with StopAtSignal() as stop, self.log.opened(self.state.log_history, self.config, self.max_steps):
            self.model.train()
            for batches in self.steps(checkpoint):
                norm, rate = self.step(batches)
                step = self.state.global_step = self.state.global_step + 1
                self.throughput.end_step()
                self.log.bar.update()
                if step % train.log_steps == 0:
                    self.record(self.training_row(norm, rate))
                evaluate = step % train.eval_steps == 0 or step == self.max_steps
                stopped = stop.received_anywhere(self.accelerator.device)
                if evaluate and len(self.validation):
                    self.validate()
                if evaluate or stopped:
                    self.save()
                if stopped:
                    raise Stopped(f"stopped and saved after step {step}; go on with --resume", stopped)
            self.record({"train_runtime": time.perf_counter() - start})
        self.load_best()

    def steps(self, checkpoint: Path | None) -> Iterator[list[Batch]]:
        """Yield the micro batches of each step until the run is finished."""
        while not self.finished:
            epoch, done = divmod(self.state.global_step, self.steps_per_epoch)
            self.loader.set_epoch(epoch)  # also sets the dataset's epoch, the seed of its order and dropout
            passed = done * self.accumulation
            loader = self.loader
            if done:  # the skipped batches are not read
                loader = self.accelerator.skip_first_batches(loader, passed)
                loader.set_epoch(epoch)  # accelerate before 1.14 counts its epochs from 0
            elif checkpoint:
                self.restore_random_state(checkpoint)
                checkpoint = None
            batches = iter(loader)
            while not self.finished and (step := self.throughput.read(batches, self.accumulation)):
                if checkpoint:  # within an epoch: its start drew a random number before the checkpoint
                    self.restore_random_state(checkpoint)
                    checkpoint = None
                passed += len(step)
                self.state.epoch = epoch + passed / len(self.loader)
                yield step

    def step(self, batches: list[Batch]) -> tuple[torch.Tensor, float]:
        """Make one optimizer step, equation (5); returns the gradient norm before clipping, and the learning rate."""
        label_count, token_count = self.counts(batches)
        losses, ids = [], [batch.pop("ids") for batch in batches]
        for batch in batches:
            self.throughput.count(batch, text=self.alpha < 1)
            with self.model.autocast():
                output: VLMOutput = self.model(
                    **batch, alpha=self.alpha, label_count=label_count, token_count=token_count
                )
            output.loss.float().backward()
            self.sums += torch.stack([output.loss_bce, output.loss_ce, output.loss]).detach()
            losses.append(output.loss.detach())
        sum_gradients(self.parameters, self.accelerator)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.train.max_grad_norm or math.inf)
        self.require_finite(norm, losses, ids)
        rate = float(self.schedule.get_last_lr()[0])
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return norm, rate

    def counts(self, batches: list[Batch]) -> torch.Tensor:
        """Count known labels and supervised tokens of the step over all processes; 2."""
        labels = sum((~torch.isnan(batch["targets"])).sum() for batch in batches)
        tokens = sum((batch["labels"][:, 1:] != IGNORED).sum() for batch in batches)
        counts = torch.stack([torch.as_tensor(labels), torch.as_tensor(tokens)])
        return self.accelerator.reduce(counts.to(self.accelerator.device), "sum")  # type: ignore[no-any-return]

    def require_finite(self, norm: torch.Tensor, losses: list[torch.Tensor], ids: list[list[str]]) -> None:
        """Raise `UserError` for a non-finite loss or gradient before the optimizer step; one device sync a step."""
        if all_finite(torch.stack([*losses, norm.to(losses[0])]).float()):
            return
        broken = [(loss.item(), names) for loss, names in zip(losses, ids, strict=True) if not torch.isfinite(loss)]
        what, value = ("loss", broken[0][0]) if broken else ("gradient", float(norm))
        cases = [name for names in ([names for _, names in broken] or ids) for name in names]
        raise UserError(
            f"step {self.state.global_step + 1}: the {what} is {value}, so the step is not taken; look at "
            f"the cases {', '.join(cases)}, or lower the learning rates and go on with --resume"
        )

    # ------------------------------------------------------------------------ log, validation, checkpoints

    def record(self, row: dict[str, float]) -> None:
        """Add a row to the log, the trackers and the progress bar."""
        row = row | {"epoch": self.state.epoch, "step": self.state.global_step}
        self.state.log_history.append(row)
        self.log.write(row)

    def training_row(self, norm: torch.Tensor, rate: float) -> dict[str, float]:
        """Build a log row: losses, gradient norm, learning rate and speed of the steps since the last row."""
        step, start = self.state.global_step, self.logged
        text_steps = step - max(start, self.config.loss.head_only_steps)
        bce, ce, joint = self.each_process(self.sums).T.tolist()  # each process's share of the batch means
        parts = {
            "loss_bce": [value / (step - start) for value in bce],
            # NaN, not 0, without a step on text: nothing was measured.
            "loss_ce": [value / text_steps if text_steps > 0 else math.nan for value in ce],
        }
        self.sums.zero_()
        self.logged = step
        return {
            "loss": sum(joint) / (step - start),
            **{name: sum(values) for name, values in parts.items()},
            "grad_norm": float(norm),
            "learning_rate": rate,
            **by_process(parts),
            **speeds(self.each_process(self.throughput.row())),
        }

    def each_process(self, values: torch.Tensor) -> torch.Tensor:
        """Gather n values of each process; n → P × n."""
        return self.accelerator.gather(values[None])  # type: ignore[no-any-return]

    def validate(self) -> None:
        """Score the validation split, without text in the head-only steps."""
        start, config = time.perf_counter(), self.config
        options = config.evaluation.batch_size, "validation", self.alpha < 1, config.train.workers
        scores = score_cases(self.model, self.validation, *options)
        metrics = split_metrics(scores, self.model.spec.labels, config.loss.alpha)
        self.record({**metrics, "eval_runtime": time.perf_counter() - start})
        if math.isfinite(metrics["eval_loss"]):  # NaN in the head-only steps: no joint loss to compare
            self.state.compare(metrics["eval_loss"])

    def save(self) -> None:
        """Write a checkpoint, and delete old ones except the best."""
        position = torch.tensor([self.logged, self.logged], device=self.sums.device)
        own = checkpoints.process_state(torch.cat([self.sums, position]))
        state = {name: self.accelerator.gather(v[None].to(self.accelerator.device)) for name, v in own.items()}
        step = self.state.global_step
        if is_main():
            checkpoints.write_checkpoint(
                checkpoint_folder(self.folder.checkpoints, step),
                self.model.trainable_parameters(),
                self.optimizer.state_dict(),
                self.schedule.state_dict(),
                state,
                self.state.to_dict(),
            )
            keep = self.config.train.keep_checkpoints
            checkpoints.prune(self.folder.checkpoints, step, keep, self.state.best_global_step)
        self.accelerator.wait_for_everyone()

    def resume(self, checkpoint: Path) -> None:
        """Read weights, optimizer, schedule, state and running sums; the random state follows at the first step.

        Raises `UserError` for a checkpoint that is not whole or of another model.
        """
        checkpoints.load_trainable(self.model, checkpoint)
        optimizer, schedule = checkpoints.read_optimizer(checkpoint)
        self.optimizer.load_state_dict(optimizer)
        self.schedule.load_state_dict(schedule)
        set_rates(self.optimizer, self.schedule)
        self.state = TrainState.read(checkpoint / checkpoints.STATE)
        self.state.check_best(self.folder.checkpoints)
        sums = checkpoints.read_processes(checkpoint)["sums"]  # P × 5
        if len(sums) == self.accelerator.num_processes:
            self.sums.copy_(sums[self.accelerator.process_index, :3])
        elif self.accelerator.is_main_process:
            self.sums.copy_(sums[:, :3].sum(dim=0))
        self.logged = int(sums[0, 3])

    def restore_random_state(self, checkpoint: Path) -> None:
        """Restore this process's random states; with another number of processes, warn and keep the current ones."""
        states = checkpoints.read_processes(checkpoint)
        before, now = len(states["sums"]), self.accelerator.num_processes
        if before != now:
            log_rank0(f"warning: begun by {before} processes, now {now}: the random draws differ")
            return
        checkpoints.set_random_state({name: v[self.accelerator.process_index] for name, v in states.items()})

    def load_best(self) -> None:
        """Load the weights of the best checkpoint into the model; without one, keep those of the last step."""
        if self.state.best_global_step:
            checkpoints.load_trainable(
                self.model, checkpoint_folder(self.folder.checkpoints, self.state.best_global_step)
            )


def split_batch(batch_size: int, micro_batch_size: int, processes: int) -> tuple[int, int]:
    """Compute the micro batch size and each process's accumulation steps; raises `UserError` if they do not divide."""
    micro = min(micro_batch_size, max(1, batch_size // processes))  # many processes need smaller ones
    accumulation = batch_size // (micro * processes)
    if accumulation * micro * processes != batch_size:
        raise UserError(
            f"train.batch_size: {batch_size} is not a multiple of micro_batch_size x processes ({micro} x {processes})"
        )
    return micro, accumulation
