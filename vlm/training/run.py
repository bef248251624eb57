"""One training job from config to adapter: data, model, training, test, figures."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from transformers import EvalPrediction, ProgressCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from vlm.adapter import save, starting_weights
from vlm.atomic import private
from vlm.config import Config
from vlm.data.blank_images import glance
from vlm.data.case import CaseSpec
from vlm.data.cohort import Cohort
from vlm.data.collate import Collator
from vlm.data.dataset import CaseDataset
from vlm.data.fingerprint import contents_fingerprint
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.device import Choice, choose_device, choose_precision, choose_threads
from vlm.distributed import is_main, say, world_size
from vlm.errors import UserError
from vlm.evaluation.evaluate import evaluate
from vlm.evaluation.learned import load_learned
from vlm.evaluation.scoring import score_cases, split_metrics
from vlm.evaluation.summary import summary_lines
from vlm.evaluation.temperature import fit_temperature
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.llm import choose_dequantization, values_of
from vlm.training.dry_run import dry_run
from vlm.training.ending import StopAtSignal, one_line_endings
from vlm.training.features import choose_features, keep_features
from vlm.training.lengths import check_lengths
from vlm.training.monitor.log import EpochOfDataset, Progress, RunLog
from vlm.training.monitor.trackers import make_trackers
from vlm.training.resumable import EarlyStopping
from vlm.training.run_folder import RunFolder, read_log
from vlm.training.self_test import self_test
from vlm.training.sharding import asked_to_shard
from vlm.training.trainer import ReportTrainer, part_of

MOST_IMAGES, MOST_SECONDS = 5_000, 60.0
"""Images that a dry run looks at, and for how long: training itself looks at fewer before it begins."""


def train(config: Config, resume: bool = False) -> Path:
    """Run the job and return its folder; raises `UserError` for anything the user can mend.

    Raises `Stopped` after Ctrl-C or SIGTERM, when the step that ran is saved.
    """
    folder = RunFolder(config)
    with one_line_endings(folder), folder.locked() if is_main() else nullcontext():
        return _train(config, folder, resume)


def _train(config: Config, folder: RunFolder, resume: bool) -> Path:
    transformers_logging.set_verbosity_error()
    make_trackers(config.train.report_to, folder.path)  # a missing one is said before the data are read
    device, dtype = _choices(config)
    shard = asked_to_shard()  # before accelerate reads what was asked
    processes = PartialState(cpu=device.type == "cpu")
    with processes.main_process_first():  # one process draws the phantom cohort, the others find it there
        cohort = load_cohort(config.data)
    say(cohort.describe(), *(f"warning: {warning}" for warning in cohort.warnings))
    say(*(f"warning: {line}" for line in glance(cohort.dataset, ImageSpec(config.data.image_size))))
    contents = contents_fingerprint(cohort)
    checkpoint = folder.check(config, cohort.fingerprint, resume, contents)
    processes.wait_for_everyone()  # none may write to the folder that another has not looked at yet
    say(*(f"warning: {warning}" for warning in folder.warnings))
    model = build_model(config, cohort, device, dtype)
    base = model.base_sha256 or model.base_fingerprint
    if checkpoint:
        folder.compare_base(base)
    say(describe_parameters(model), *_base_lines(model, config, cohort))
    start = starting_weights(model, config.train.start_from) if config.train.start_from else {}
    with private():  # it makes its folder
        trainer = build_trainer(config, model, cohort, folder)
    if shard.value and processes.num_processes > 1:
        say(f"split the base: True ({shard.reason})")
        trainer.shard()
    kept = choose_features(config)
    say(f"keep the CNN's features: {kept.value} ({kept.reason})")
    learned = load_learned(config.evaluation.learned_metrics) if is_main() else []
    test = case_dataset(config, model.spec, cohort, "test")
    untrained = score_cases(model, test, config.evaluation.batch_size, "untrained")
    if untrained.tokens.any():
        loss = split_metrics(untrained, model.spec.labels)["eval_loss_ce"]
        say(f"untrained adapter on the test split: text loss {loss:.3f} a token")
    if is_main():  # last: a mistake in config, data or base leaves the folder as it was
        folder.create(config, cohort.fingerprint, resume, contents, base)
    processes.wait_for_everyone()
    if start:
        model.load_state_dict(start, strict=False)  # strict: the names were chosen from the model's own
        say(f"starting from {config.train.start_from}: {len(start)} tensors fit, the rest starts fresh")
    keep_features(model, config, trainer.case_datasets)
    if checkpoint and trainer.has_finished(checkpoint):
        say("every step of this run is made; its best checkpoint is tested again")
    else:
        stop = StopAtSignal()
        trainer.add_callback(stop)
        with stop, private():  # trackers write too
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if is_main():
        save(model, folder.adapter)  # before the long test: whatever happens to it, the adapter is there
    validation = case_dataset(config, model.spec, cohort, "validation")
    scores = score_cases(model, validation, config.evaluation.batch_size, "validation", text=False)
    model.calibration = fit_temperature(scores, validation.rows["patient"])
    metrics = evaluate(model, cohort, config, folder.path, untrained, read_log(folder.log), learned)
    if is_main():
        save(model, folder.adapter, metrics)
        say(*summary_lines(metrics), f"run: {folder.path}, adapter: {folder.adapter}")
    processes.destroy_process_group()  # no process waits for the main one, whose measures may take longer than a wait
    return folder.path


def try_step(config: Config) -> None:
    """Build everything, make one step and say what memory training will take; writes nothing.

    Raises `UserError` as `train` does.
    """
    transformers_logging.set_verbosity_error()
    device, dtype = _choices(config)
    cohort = load_cohort(config.data)
    say(cohort.describe(), *(f"warning: {warning}" for warning in cohort.warnings))
    seen = glance(cohort.dataset, ImageSpec(config.data.image_size), MOST_IMAGES, MOST_SECONDS)
    say(*(f"warning: {line}" for line in seen))
    model = build_model(config, cohort, device, dtype)
    say(describe_parameters(model), *_base_lines(model, config, cohort))
    training = case_dataset(config, model.spec, cohort, "train")
    if not len(training):
        raise UserError("data.split: no case is left to train on")
    say(*dry_run(model, config, training))


def _base_lines(model: ClinicalVLM, config: Config, cohort: Cohort) -> list[str]:
    """Try the base, and say what was found of it and of texts that are too long for it."""
    targets = model.model_config.llm.lora_targets
    chosen = [f"LoRA targets: {', '.join(targets)} (so this base names its layers)"]
    splits = {split: case_dataset(config, model.spec, cohort, split) for split in ("train", "validation", "test")}
    return [
        *(chosen if targets != config.model.llm.lora_targets else []),
        *self_test(model),
        *check_lengths(model.prompt, splits, config.evaluation.max_new_tokens),
    ]


def build_model(config: Config, cohort: Cohort, device: torch.device, dtype: torch.dtype) -> ClinicalVLM:
    """A fresh model for these data; the same seed gives the same initial weights."""
    set_seed(config.train.seed)
    mean, std = _cnn_normalisation(config.model.vision.name)
    spec = CaseSpec.fit(cohort, ImageSpec(config.data.image_size, mean, std), config.model.vitals.bins)
    return ClinicalVLM.from_config(config.model, spec, device, dtype)


def build_trainer(config: Config, model: ClinicalVLM, cohort: Cohort, folder: RunFolder) -> ReportTrainer:
    """The trainer with its datasets, collator, log and early stopping."""
    validation = case_dataset(config, model.spec, cohort, "validation")
    training = case_dataset(config, model.spec, cohort, "train")
    if not len(training):
        raise UserError("data.split: no case is left to train on")
    callbacks: list = [RunLog(folder.log), EpochOfDataset(training)]
    callbacks += make_trackers(config.train.report_to, folder.path)
    if config.train.patience and not len(validation):
        raise UserError("train.patience: no case is left for validation, so nothing can stop the training early")
    if config.train.patience:
        callbacks.append(EarlyStopping(config.train.patience))
    trainer = ReportTrainer(
        model,
        training_arguments(config, folder, has_validation=len(validation) > 0, device=model.device),
        config.loss,
        config.train,
        data_collator=Collator(model.prompt, with_ids=True),
        train_dataset=training,
        eval_dataset=validation if len(validation) else None,
        compute_metrics=lambda output: split_metrics_of(output, model.spec.labels, config.loss.alpha),
        callbacks=callbacks,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Progress())
    return trainer


def split_metrics_of(output: EvalPrediction, labels: tuple[str, ...], alpha: float) -> dict[str, float]:
    """Metrics of an evaluation in training, from what `prediction_step` returned."""
    from vlm.evaluation.scoring import CaseScores

    scores = CaseScores.from_columns(np.asarray(output.predictions), np.asarray(output.label_ids))
    return split_metrics(scores, labels, alpha)


def case_dataset(config: Config, spec: CaseSpec, cohort: Cohort, split: str) -> CaseDataset:
    """Examples of a split, with dropout and augmentation in training."""
    make = partial(CaseDataset, cohort.split(split), spec, cohort.sections, tuple(config.data.withhold))
    if split != "train":
        return make()
    data, seed = config.data, config.train.seed
    return make(dropout=data.dropout, augment=data.augment, seed=seed, interleave_shards=data.interleave_shards)


def training_arguments(
    config: Config, folder: RunFolder, has_validation: bool, device: torch.device
) -> TrainingArguments:
    """Our options in the words of Transformers."""
    train = config.train
    processes = max(1, int(torch.distributed.get_world_size()) if torch.distributed.is_initialized() else world_size())
    micro = min(train.micro_batch_size, max(1, train.batch_size // processes))  # many processes need smaller ones
    share = train.batch_size // (micro * processes)
    if share * micro * processes != train.batch_size:
        raise UserError(
            f"train.batch_size: {train.batch_size} is not a multiple of micro_batch_size x processes "
            f"({micro} x {processes})"
        )
    when = "steps" if has_validation else "no"
    return TrainingArguments(
        output_dir=str(folder.checkpoints),
        num_train_epochs=train.epochs,
        max_steps=train.max_steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=config.evaluation.batch_size,
        gradient_accumulation_steps=share,
        learning_rate=train.learning_rate,
        weight_decay=train.weight_decay,
        warmup_steps=train.warmup_steps,
        lr_scheduler_type=train.schedule,
        max_grad_norm=train.max_grad_norm,
        optim=train.optimizer,
        bf16=choose_precision(train.precision, device).value == torch.bfloat16,
        seed=train.seed,
        data_seed=train.seed,
        logging_steps=train.log_steps,
        logging_nan_inf_filter=False,
        eval_strategy=when,
        eval_steps=train.eval_steps,
        save_strategy="steps",
        save_steps=train.eval_steps,
        load_best_model_at_end=has_validation,
        metric_for_best_model="eval_loss" if has_validation else None,
        greater_is_better=False,
        dataloader_num_workers=train.workers,
        disable_tqdm=False,
        remove_unused_columns=False,
        label_names=["targets"],
        use_cpu=device.type == "cpu",
        report_to="none",  # those of train.report_to are made beside it
        run_name=config.run.name,
    )


def _cnn_normalisation(name: str) -> tuple[float, float]:
    """Mean and standard deviation that a timm model was trained with, as one grey value each."""
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    mean, std = (config.mean, config.std) if config else ((0.5,), (0.5,))
    return round(sum(mean) / len(mean), 6), round(sum(std) / len(std), 6)


def _choices(config: Config) -> tuple[torch.device, torch.dtype]:
    """Make and print every automatic choice with its reason."""
    threads, device = choose_threads(config.train.threads), choose_device()
    torch.set_num_threads(threads.value)
    precision = choose_precision(config.train.precision, device.value)
    choices: dict[str, Choice] = {"device": device, "precision": precision, "threads": threads}
    choices["dequantize 4-bit"] = choose_dequantization(config.model.llm, device.value)
    for name, choice in choices.items():
        say(f"{name}: {str(choice.value).removeprefix('torch.')} ({choice.reason})")
    return device.value, precision.value


def describe_parameters(model: ClinicalVLM) -> str:
    """Trained, frozen and total parameters, and the trained ones by part."""
    parts: dict[str, int] = {}
    for name, value in model.trainable_parameters().items():
        part = {"llm": "LoRA", "cnn": "CNN"}.get(part_of(name), "projectors and head")
        parts[part] = parts.get(part, 0) + value.numel()
    trained = sum(parts.values())
    total = trained + sum(values_of(p) for p in model.parameters() if not p.requires_grad)
    shares = ", ".join(f"{part} {count:,}" for part, count in parts.items())
    return f"parameters: trained {trained:,} ({shares}), frozen {total - trained:,}, total {total:,}"
