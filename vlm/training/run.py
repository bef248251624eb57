"""Run one training job from config to adapter: data, model, training, test, figures."""

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed

from vlm.adapter import save, starting_weights
from vlm.config import Config
from vlm.data.blank_images import check_sample
from vlm.data.case import CaseSpec
from vlm.data.cohort import Cohort
from vlm.data.color_choice import Color, choose_color
from vlm.data.dataset import CaseDataset
from vlm.data.fingerprint import contents_fingerprint
from vlm.data.images.image import ImageSpec
from vlm.data.ingest.sources import load_cohort
from vlm.data.splits import SPLITS
from vlm.data.training_modalities import find_modalities
from vlm.device import Choice, choose_device, choose_precision, choose_threads, gpu_multiplies_bf16, memory_of
from vlm.distributed import is_main, log_rank0
from vlm.errors import UserError
from vlm.evaluation.evaluate import Trained, evaluate, plain_splits
from vlm.evaluation.groupings import check_subgroups
from vlm.evaluation.learned import load_learned
from vlm.evaluation.scoring import score_cases, split_metrics
from vlm.evaluation.split_measures import score_some
from vlm.evaluation.summary import summary_lines
from vlm.evaluation.temperature import fit_temperature
from vlm.inference.features import are_kept_for_test, choose_features, keep_features, keep_for_test
from vlm.model.bases.lora_targets import describe_choice
from vlm.model.bases.quantization import advise_bf16, choose_dequantization, values_of
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.model.encoders.build import image_pictures, image_spec
from vlm.progress import whole_job
from vlm.training.dry_run import dry_run
from vlm.training.ending import one_line_endings
from vlm.training.fit_reliability import fit_reliability
from vlm.training.kernels import apply_kernels
from vlm.training.lengths import check_lengths
from vlm.training.loop import TrainingLoop
from vlm.training.micro_batch import choose_micro_batch, longest_cases
from vlm.training.monitor.log import check_trackers
from vlm.training.optimizer import part_of
from vlm.training.phases import expected_phases
from vlm.training.run_folder import RunFolder, read_log
from vlm.training.self_test import self_test
from vlm.training.sharding import asked_to_shard, shard_base
from vlm.training.start_point import open_start

MOST_IMAGES, MOST_SECONDS = 5_000, 60.0
"""Maximum images and seconds of a dry run's image check; training itself checks fewer before it begins."""


def train(config: Config, resume: bool = False) -> Path:
    """Run the job and return its folder; raises `UserError` for anything the user can fix.

    Raises `Stopped` after Ctrl-C or SIGTERM, once the current step is saved.
    """
    config = _sized(config)
    folder = RunFolder(config)
    with one_line_endings(folder), folder.locked() if is_main() else nullcontext(), ExitStack() as opened:
        return _train(config, folder, resume, opened)


def _train(config: Config, folder: RunFolder, resume: bool, opened: ExitStack) -> Path:
    check_trackers(config.train.report_to)  # report a missing one before reading the data
    config, started = open_start(config, folder.config if resume else None)
    device, dtype = _choices(config)
    shard = asked_to_shard()  # before accelerate reads the environment
    processes = PartialState(cpu=device.type == "cpu")
    if shard.value and processes.num_processes > 1 and config.train.micro_batch_size == "auto":
        raise UserError("train.micro_batch_size: auto cannot try sizes with a base in shards; write a number")
    with processes.main_process_first():  # rank 0 draws the phantom cohort, the others read it
        cohort = load_cohort(config.data)
    check_subgroups(config, cohort)
    log_rank0(cohort.describe(), *(f"warning: {warning}" for warning in cohort.warnings))
    log_rank0(*(f"warning: {line}" for line in check_sample(cohort.dataset, ImageSpec(config.data.image_size))))
    config = _colored(config, cohort)
    contents = contents_fingerprint(cohort)
    checkpoint = folder.check(config, cohort.fingerprint, resume, contents)
    processes.wait_for_everyone()  # no process may write to the folder before all have checked it
    log_rank0(*(f"warning: {warning}" for warning in folder.warnings))
    model = build_model(config, cohort, device, dtype)
    base = f"{model.base_sha256 or model.base_fingerprint}\n{model.base_settings_sha256 or ''}"
    if checkpoint:
        folder.compare_base(base)
    log_rank0(describe_parameters(model), *_base_lines(model, config, cohort))
    _log_choices(apply_kernels(model, config.train))
    start = starting_weights(model, started) if started else {}  # resumed too: a checkpoint holds no frozen weights
    loop = build_loop(config, model, cohort, folder)
    if shard.value and processes.num_processes > 1:
        log_rank0(f"split the base: True ({shard.reason})", shard_base(model, device))
    kept = choose_features(config)
    log_rank0(f"keep the CNN's features: {kept.value} ({kept.reason})")
    learned = load_learned(config.evaluation.learned_metrics) if is_main() else []
    splits = plain_splits(model, cohort, config)
    phases = expected_phases(config, splits, loop.max_steps, are_kept_for_test(model, splits))
    opened.enter_context(whole_job(phases))
    untrained = score_some(model, splits["test"], config, "untrained")
    if untrained.scores.tokens.any():
        loss = split_metrics(untrained.scores, model.spec.labels)["eval_loss_ce"]
        log_rank0(f"untrained adapter on the test split: text loss {loss:.3f} a token")
    if is_main():  # last: a mistake in config, data or base leaves the folder as it was
        folder.create(config, cohort.fingerprint, resume, contents, base)
    processes.wait_for_everyone()
    if start:
        model.load_state_dict(start, strict=False)  # strict: the names were chosen from the model's own
        commit = f", commit {config.train.start_revision}" if config.train.start_revision else ""
        log_rank0(f"starting from {config.train.start_from}{commit}: {len(start)} tensors fit, the rest starts fresh")
    keep_features(model, config, [loop.training, loop.validation])
    splits["train"].learn_images(loop.training)
    splits["validation"].learn_images(loop.validation)
    if checkpoint:
        loop.resume(checkpoint)
    if loop.finished:
        log_rank0("every step of this run is made; its best checkpoint is tested again")
        loop.load_best()
    else:
        loop.run(checkpoint)
    if is_main():
        save(model, folder.adapter)  # before the long test, so that a failure there loses no adapter
    validation = splits["validation"]
    keep_for_test(model, config, splits)
    scores = score_cases(model, validation, config.evaluation.batch_size, "validation, head alone", text=False)
    model.calibration = fit_temperature(scores, validation.rows["patient"])
    fit_reliability(model, splits["train"], validation, scores, config)
    known = Trained(splits, untrained, scores, read_log(folder.log))
    metrics = evaluate(model, cohort, config, folder.path, known, learned)
    if is_main():
        save(model, folder.adapter, metrics)
        log_rank0(*summary_lines(metrics), f"run: {folder.path}, adapter: {folder.adapter}")
    return folder.path


def try_step(config: Config) -> None:
    """Build everything, run one step and report the memory that training will take; writes nothing.

    Raises `UserError` as `train` does.
    """
    config = _sized(config)
    device, dtype = _choices(config)
    cohort = load_cohort(config.data)
    log_rank0(cohort.describe(), *(f"warning: {warning}" for warning in cohort.warnings))
    seen = check_sample(cohort.dataset, ImageSpec(config.data.image_size), MOST_IMAGES, MOST_SECONDS)
    log_rank0(*(f"warning: {line}" for line in seen))
    model = build_model(config, cohort, device, dtype)
    log_rank0(describe_parameters(model), *_base_lines(model, config, cohort))
    _log_choices(apply_kernels(model, config.train))
    training = case_dataset(config, model.spec, cohort, "train")
    if not len(training):
        raise UserError("data.split: no case is left to train on")
    log_rank0(*dry_run(model, config, training))


def _base_lines(model: ClinicalVLM, config: Config, cohort: Cohort) -> list[str]:
    """Run the self-test of the base and check for texts beyond its context; returns the lines to print."""
    splits = {split: case_dataset(config, model.spec, cohort, split) for split in SPLITS}
    memory = memory_of(model.device) if gpu_multiplies_bf16(model.device) else 0  # bf16 weights are for bf16 units
    return [
        *describe_choice(model.base, config.model.llm, model.model_config.llm),
        f"prefix reuse: {model.prefix_reuse.value} ({model.prefix_reuse.reason})",
        *self_test(model),
        *advise_bf16(model.base, config.model.llm, memory),
        *check_lengths(model.prompt, splits, config.evaluation.max_new_tokens),
    ]


def _sized(config: Config) -> Config:
    """Write the size of the encoder's own pictures for `data.image_size: 0`."""
    if config.data.image_size:
        return config
    size = image_pictures(config.model.vision, 0)[0].size
    return replace(config, data=replace(config.data, image_size=size))


def _colored(config: Config, cohort: Cohort) -> Config:
    """Write the choice for `data.color: auto`."""
    if config.data.color != "auto":
        return config
    one = image_pictures(config.model.vision, config.data.image_size)[0].channels == 1
    color: Choice[Color] = Choice("grey", "the encoder takes one channel") if one else choose_color(cohort)
    log_rank0(f"pictures in colour: {color.value == 'rgb'} ({color.reason})")
    return replace(config, data=replace(config.data, color=color.value))


def build_model(config: Config, cohort: Cohort, device: torch.device, dtype: torch.dtype) -> ClinicalVLM:
    """Build a fresh model for these data; the same seed gives the same initial weights."""
    set_seed(config.train.seed)
    pictures, line = image_pictures(config.model.vision, config.data.image_size)
    log_rank0(line)
    image = image_spec(pictures, _colored(config, cohort).data.color == "rgb")
    spec = CaseSpec.fit(cohort, image, config.model.vitals.bins, config.data.max_images, config.data.section_headings)
    modalities = find_modalities(cohort)
    log_rank0(f"modalities: {', '.join(modalities.value) or 'none known'} ({modalities.reason})")
    spec = replace(spec, max_new_tokens=config.evaluation.max_new_tokens, modalities=modalities.value)
    if spec.study is not None:
        log_rank0(spec.study.describe())
    if spec.signal is not None:
        log_rank0(spec.signal.describe())
    model = ClinicalVLM.from_config(config.model, spec, device, dtype)
    if model.vision.lora_line:
        log_rank0(model.vision.lora_line)
    if (weights := model.model_config.vision.weights).startswith("hf-hub:"):
        log_rank0(f"weights of the image encoder in the adapter: False (they are frozen, and {weights} has them)")
    return model


def build_loop(config: Config, model: ClinicalVLM, cohort: Cohort, folder: RunFolder) -> TrainingLoop:
    """Build the training loop of a run; raises `UserError` without a case to train or to validate on."""
    training, validation = (case_dataset(config, model.spec, cohort, split) for split in ("train", "validation"))
    if not len(training):
        raise UserError("data.split: no case is left to train on")
    if config.train.patience and not len(validation):
        raise UserError("train.patience: no case is left for validation, so nothing can stop the training early")
    accelerator = Accelerator(
        cpu=model.device.type == "cpu",
        mixed_precision="no",  # the model sets its own autocast
        dataloader_config=DataLoaderConfiguration(non_blocking=model.device.type == "cuda"),
        log_with=list(config.train.report_to) or None,
        project_config=ProjectConfiguration(logging_dir=str(folder.path / "tensorboard")),
    )
    batch_of, processes = longest_cases(model, training), accelerator.num_processes
    micro_batch = choose_micro_batch(model, config.train, batch_of, processes)
    if config.train.micro_batch_size == "auto":
        _log_choices({"micro batch": micro_batch})
        config = replace(config, train=replace(config.train, micro_batch_size=micro_batch.value))
    return TrainingLoop(model, training, validation, config, folder, accelerator)


def case_dataset(config: Config, spec: CaseSpec, cohort: Cohort, split: str) -> CaseDataset:
    """Build the dataset of a split, with dropout and augmentation in training."""
    most = config.evaluation.cases if split == "test" else 0
    make = partial(CaseDataset, cohort.split(split, most), spec, cohort.sections, tuple(config.data.withhold))
    if split != "train":
        return make()
    data, seed = config.data, config.train.seed
    return make(dropout=data.dropout, augment=data.augment, seed=seed, interleave_shards=data.interleave_shards)


def _choices(config: Config) -> tuple[torch.device, torch.dtype]:
    """Make and print every automatic choice with its reason."""
    threads, device = choose_threads(config.train.threads), choose_device()
    torch.set_num_threads(threads.value)
    precision = choose_precision(config.train.precision, device.value)
    choices: dict[str, Choice[Any]] = {"device": device, "precision": precision, "threads": threads}
    width = 8 if config.model.llm.quantization == "int8" else 4
    choices[f"dequantize {width}-bit"] = choose_dequantization(config.model.llm, device.value)
    _log_choices(choices)
    return device.value, precision.value


def _log_choices(choices: Mapping[str, Choice[Any]]) -> None:
    for name, choice in choices.items():
        log_rank0(f"{name}: {str(choice.value).removeprefix('torch.')} ({choice.reason})")


def describe_parameters(model: ClinicalVLM) -> str:
    """Describe the number of trained parameters, in all and by part, and of frozen and total ones."""
    parts: dict[str, int] = {}
    for name, value in model.trainable_parameters().items():
        part = {"llm": "LoRA", "cnn": "CNN"}.get(part_of(name), "projectors and head")
        parts[part] = parts.get(part, 0) + value.numel()
    trained = sum(parts.values())
    total = trained + sum(values_of(p) for p in model.parameters() if not p.requires_grad)
    shares = ", ".join(f"{part} {count:,}" for part, count in parts.items())
    return f"parameters: trained {trained:,} ({shares}), frozen {total - trained:,}, total {total:,}"
