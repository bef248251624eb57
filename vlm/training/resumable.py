"""The Transformers `Trainer` with our checkpoints: whole or not there, without a pickle, resumed to the bit."""

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from vlm.atomic import verify
from vlm.distributed import say
from vlm.errors import UserError
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.training import checkpoints
from vlm.training.run_folder import CHECKPOINT_FILES, checkpoint_folder
from vlm.training.sharding import shard_base


class EarlyStopping(EarlyStoppingCallback):
    """Transformers' own, which counts no evaluation of the head alone: those have no joint loss to compare."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:  # type: ignore[override]
        if math.isfinite(metrics["eval_loss"]):
            super().on_evaluate(args, state, control, metrics, **kwargs)


class ResumableTrainer(Trainer):
    """Writes and reads the folders of `vlm.training.checkpoints`; the best one is kept beside the newest."""

    def __init__(self, model: ClinicalVLM, args: TrainingArguments, keep: int, **options: Any) -> None:
        super().__init__(model, args, **options)
        self._keep = keep
        self._terms = torch.zeros(2, device=args.device)  # sums of loss_bce and loss_ce since the last log row
        self._terms_since = 0

    def shard(self) -> None:
        """Split the frozen base over the processes; the `Trainer` then averages the gradients of what trains."""
        say(shard_base(self.accelerator.unwrap_model(self.model), self.args.device))
        self.is_distributed_loading_by_transformers = True

    @property
    def _checkpoints(self) -> Path:
        return Path(str(self.args.output_dir))

    # ------------------------------------------------------------------------------------- writing

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """In place of the `Trainer`'s own, which writes pickles, in place, and does not look at them again."""
        assert self.optimizer is not None and self.lr_scheduler is not None
        self.store_flos()
        processes = self._of_all_processes(checkpoints.process_state(self._sums()))
        self._note_state()  # in every process: each of them loads the best at the end
        if self.args.should_save:
            checkpoints.write_checkpoint(
                checkpoint_folder(self._checkpoints, self.state.global_step),
                self.accelerator.unwrap_model(self.model).trainable_parameters(),
                self.optimizer.state_dict(),
                self.lr_scheduler.state_dict(),
                processes,
                self.state,
            )
            checkpoints.prune(self._checkpoints, self.state.global_step, self._keep, self.state.best_global_step)
        self.accelerator.wait_for_everyone()

    def _note_state(self) -> None:
        """Bring into the `Trainer`'s state what is kept outside it."""
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(checkpoint_folder(self._checkpoints, self.state.best_global_step))
        for part in (*self.callback_handler.callbacks, self.control):
            if isinstance(part, ExportableState):
                _callback_states(self.state)[type(part).__name__] = part.state()

    def _sums(self) -> torch.Tensor:
        """What the next log row has summed so far: both terms, the loss, and the steps it began after; 5."""
        steps = torch.tensor([self._terms_since, self._globalstep_last_logged], device=self._terms.device)
        return torch.cat([self._terms, self._tr_loss[None], steps])

    def _of_all_processes(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each tensor with those of the other processes: P × …"""
        rows = {name: value[None] for name, value in values.items()}
        if self.args.world_size == 1:
            return rows
        return {name: self.accelerator.gather(value.to(self.args.device)) for name, value in rows.items()}

    # ------------------------------------------------------------------------------------- reading

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_trainable(self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint))

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """The best checkpoint is found by its step, wherever the run lies now, and early stopping counts on."""
        begun = super()._init_training_state(*args, **kwargs)
        self._find_best()
        self._count_on(self.state)
        return begun

    def _count_on(self, state: TrainerState) -> bool:
        """Give early stopping the evaluations it had counted; whether it had stopped the run."""
        states = _callback_states(state)
        kept = states.get(EarlyStopping.__name__) or states.get(EarlyStoppingCallback.__name__, {})  # of earlier runs
        counted = kept.get("attributes", {}).get("early_stopping_patience_counter", 0)
        stoppers = [part for part in self.callback_handler.callbacks if isinstance(part, EarlyStopping)]
        for stopper in stoppers:
            stopper.early_stopping_patience_counter = counted
        return any(stopper.early_stopping_patience <= counted for stopper in stoppers)

    def _find_best(self) -> None:
        if not self.state.best_global_step:
            return
        best = checkpoint_folder(self._checkpoints, self.state.best_global_step)
        try:
            verify(best, CHECKPOINT_FILES)
            self.state.best_model_checkpoint = str(best)
        except UserError as error:
            say(f"warning: the best checkpoint so far is lost, and the best from here on is taken: {error}")
            self.state.best_global_step = self.state.best_metric = self.state.best_model_checkpoint = None

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.optimizer is not None and self.lr_scheduler is not None
            optimizer, scheduler = checkpoints.read_optimizer(Path(checkpoint))
            self.optimizer.load_state_dict(optimizer)
            self.lr_scheduler.load_state_dict(scheduler)
            _set_rates(self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Random generators, and the sums of the log row that was begun; called before the first step."""
        if checkpoint is None:
            return
        processes = checkpoints.read_processes(Path(checkpoint))
        sums = processes["sums"].double()  # P × 5
        count, rank = len(sums), self.args.process_index
        if count == self.args.world_size:
            checkpoints.set_random_state({name: value[rank] for name, value in processes.items()})
            sums = sums[rank]
        else:
            say(f"warning: begun by {count} processes, now {self.args.world_size}: the random draws differ")
            terms = sums[:, :2].sum(dim=0) * (rank == 0)  # of all processes the terms are added, the losses averaged
            sums = torch.cat([terms, sums[:, 2].mean()[None], sums[0, 3:]])
        self._terms.copy_(sums[:2])
        self._tr_loss.fill_(sums[2])
        self._terms_since, self._globalstep_last_logged = map(int, sums[3:].tolist())

    def has_finished(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is the last of the run; if it is, the run's best weights are loaded.

        The `Trainer` itself makes one step more when it is given such a checkpoint.
        """
        state = TrainerState.load_from_json(str(checkpoint / checkpoints.STATE))
        same_length = self.args.max_steps > 0 or self.args.num_train_epochs == state.num_train_epochs
        steps = self.args.max_steps if self.args.max_steps > 0 else state.max_steps
        if not self._count_on(state) and (not same_length or state.global_step < steps):
            return False
        self.state = state
        self._find_best()
        load_trainable(self.accelerator.unwrap_model(self.model), Path(self.state.best_model_checkpoint or checkpoint))
        return True

    def _load_best_model(self) -> None:
        load_trainable(self.accelerator.unwrap_model(self.model), Path(str(self.state.best_model_checkpoint)))


def _set_rates(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    """The learning rates of this run's length at the step reached: a finished run's own are 0, and it may go on."""
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
    for group, rate, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = rate * factor(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]  # what the log says


def _callback_states(state: TrainerState) -> dict[str, Any]:
    return cast(dict[str, Any], state.stateful_callbacks)  # a list is what it is made from


def load_trainable(model: ClinicalVLM, checkpoint: Path) -> None:
    """Put a checkpoint's weights into the model; raises `UserError` if it is not whole or of another model."""
    given = checkpoints.read_weights(checkpoint)
    wanted = model.trainable_parameters()
    different = wanted.keys() ^ given.keys() or {n for n in wanted if wanted[n].shape != given[n].shape}
    if different:
        raise UserError(f"{checkpoint}: tensor {min(different)} does not fit; the config changed since this run began")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(given[name])
