"""Parse a YAML file and dotted overrides into a `Config`; an unknown key is named with its nearest match."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from vlm.config import Config
from vlm.config.limits import LARGEST_SIDE, LONGEST_DRAFT, model_problems
from vlm.config.renamed import rename_keys, rename_options
from vlm.config.strict import check_keys, check_texts, dotted_names, way_out
from vlm.errors import UserError
from vlm.untrusted import read_yaml

PRESETS = {file.stem: file for file in sorted((Path(__file__).parent / "presets").glob("*.yaml"))}
"""Name → file of the configs shipped with the package."""


def load_config(source: str | Path, overrides: Mapping[str, object] | None = None) -> Config:
    """Read a config file, or a preset by its name, such as `demo`; `overrides` are of the form `{"train.seed": 1}`.

    Raises `UserError` as `parse_config` does.
    """
    return parse_config(["--config", str(source), *as_options(overrides or {})])[0]


def as_options(overrides: Mapping[str, object]) -> list[str]:
    """Convert dotted keys and values to command-line arguments."""
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in overrides.items()]


def is_config(name: str) -> bool:
    """Check whether a name is a config, a file or a preset, rather than a table."""
    return name in PRESETS or name.endswith((".yaml", ".yml"))


def parse_config(argv: Sequence[str], description: str = "") -> tuple[Config, bool]:
    """Read `--config FILE`, dotted overrides such as `--train.max_steps 10`, and `--resume`.

    Returns the config and whether to resume; `--dry-run`, `--seeds` and `--folds` are for the caller to see. Raises
    `UserError` for an unknown key, a value of the wrong type or range, and an unreadable file.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help=f"YAML file, or a preset: {', '.join(PRESETS)}.")
    parser.add_class_arguments(Config, None)
    parser.add_argument("--resume", action="store_true", help="Go on from the newest whole checkpoint.")
    parser.add_argument("--dry-run", action="store_true", help="Make one step, print its time and memory, and end.")
    parser.add_argument("--seeds", type=int, help="Train so many runs, each with the next seed, and pool them.")
    parser.add_argument("--folds", type=int, help="Train on so many folds of the patients, and pool their results.")
    arguments = list(rename_options(list(_with_preset_files(argv))))
    _check_options(arguments)
    for index, file in _config_files(arguments):
        arguments[index] = arguments[index].removesuffix(file) + _checked_config(file)
    try:
        namespace = parser.parse_args(arguments)
        fields = parser.instantiate(namespace).as_dict()
    except jsonargparse.ArgumentError as error:
        raise UserError(_one_line(error)) from None
    resume = fields.pop("resume")
    for option in ("config", "dry_run", "seeds", "folds"):
        fields.pop(option, None)
    config = Config(**fields)
    _check_values(config)
    return config, resume


def to_yaml(config: Any) -> str:
    """Convert a config dataclass to YAML that `parse_config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def dotted(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys, with list items by their index."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        flat |= dotted(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return flat


def _one_line(error: Exception) -> str:
    return " ".join(str(error).replace("<class ", "").replace("'>", "'").split())


def _with_preset_files(argv: Sequence[str]) -> Iterator[str]:
    """Replace a preset's name, a word without a dot or a slash, by its file."""
    for before, word in zip(["", *argv], argv, strict=False):
        if before == "--config":
            yield _preset_file(word)
        elif word.startswith("--config="):
            yield f"--config={_preset_file(word.removeprefix('--config='))}"
        else:
            yield word


def _preset_file(name: str) -> str:
    if name in PRESETS:
        return str(PRESETS[name])
    if name and not {".", "/", "\\"} & set(name) and not Path(name).exists():
        raise UserError(f"--config {name}: no such file; the presets are {', '.join(PRESETS)}")
    return name


def _config_files(argv: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Find the config files among the arguments: (index of the argument, file)."""
    for index, word in enumerate(argv):
        if word.startswith("--config="):
            yield index, word.removeprefix("--config=")
        elif word == "--config" and index + 1 < len(argv):
            yield index + 1, argv[index + 1]


def _checked_config(file: str) -> str:
    """Check a config file and return what jsonargparse is to read: the file, or its YAML with old keys renamed.

    Raises `UserError` unless it is a mapping of known keys, and no text in it would be read as YAML again.
    """
    values = read_yaml(Path(file), "the config")
    if not isinstance(values, dict):
        raise UserError(f"{file}: a config is a mapping such as `train: {{seed: 1}}`")
    renamed = rename_keys(values, file)
    check_keys(values, Config, file)
    check_texts(values, Config, file)
    return yaml.safe_dump(values, allow_unicode=True) if renamed else file


def _check_options(argv: Sequence[str]) -> None:
    """Refuse an unknown `--option` before argparse does, to suggest the nearest known one."""
    known = {f"--{name}" for name in dotted_names(Config)}
    known |= {"--config", "--resume", "--dry-run", "--seeds", "--folds", "--help", "--print_config"}
    for word in argv:
        option = word.split("=")[0]
        if not option.startswith("--") or option.rstrip("+") in known or option.endswith(".help"):
            continue
        raise UserError(f"unknown option {option}{way_out(option, known)}")


def _check_values(config: Config) -> None:
    """Check ranges that the types do not express; each message names the key."""
    train, dropout, split = config.train, config.data.dropout, config.data.split
    micro, points = train.micro_batch_size, config.evaluation.operating_points
    rules = [
        (0 <= config.loss.alpha <= 1, "loss.alpha", "between 0 and 1"),
        (micro == "auto" or micro > 0, "train.micro_batch_size", "auto or at least 1"),
        (
            micro == "auto" or train.batch_size % max(micro, 1) == 0,
            "train.batch_size",
            "a multiple of train.micro_batch_size",
        ),
        (not train.start_revision or train.start_from, "train.start_revision", "null where train.start_from is null"),
        (0 < train.loraplus_lr_ratio <= 1000, "train.loraplus_lr_ratio", "more than 0 and at most 1,000"),
        (train.log_steps > 0, "train.log_steps", "at least 1"),
        (train.eval_steps > 0, "train.eval_steps", "at least 1"),
        (train.max_steps == -1 or train.max_steps > 0, "train.max_steps", "-1 or at least 1"),
        (0 < train.vision_layer_decay <= 1, "train.vision_layer_decay", "above 0 and at most 1"),
        (train.epochs > 0, "train.epochs", "more than 0"),
        (
            train.precision != "fp16",
            "train.precision",
            "auto, fastest, bf16 or fp32; in fp16 gradients vanish without loss scaling, which is not built in, and "
            "the activations of small models can overflow; on a GPU without bf16 auto takes fp32",
        ),
        (
            split.validation >= 0 and split.test >= 0 and split.validation + split.test < 1,
            "data.split",
            "shares that leave some patients to train on",
        ),
        (
            all(0 <= p < 1 for p in (dropout.image, dropout.vitals, dropout.value, dropout.signal)),
            "data.dropout",
            "probabilities below 1",
        ),
        (config.evaluation.batch_size > 0, "evaluation.batch_size", "at least 1"),
        (
            1 <= config.evaluation.max_new_tokens <= LONGEST_DRAFT,
            "evaluation.max_new_tokens",
            f"1 to {LONGEST_DRAFT:,}",
        ),
        (config.evaluation.ablation_cases >= 0, "evaluation.ablation_cases", "at least 0"),
        (config.evaluation.cases >= 0, "evaluation.cases", "at least 0"),
        (0.5 <= config.evaluation.coverage < 1, "evaluation.coverage", "0.5 or more and below 1"),
        (config.evaluation.sentence_cases >= 0, "evaluation.sentence_cases", "at least 0"),
        (0 <= config.evaluation.unsure_share < 1, "evaluation.unsure_share", "0 or more and below 1"),
        (
            all((p.sensitivity is None) != (p.specificity is None) and 0 < p.wanted < 1 for p in points)
            and len({p.name for p in points}) == len(points),
            "evaluation.operating_points",
            "a list of different {sensitivity: S} or {specificity: S}, S between 0 and 1",
        ),
        (
            split.folds == split.fold == 0 or 0 <= split.fold < split.folds,
            "data.split.fold",
            "from 0, below data.split.folds",
        ),
        (
            config.data.image_size == 0 or 32 <= config.data.image_size <= LARGEST_SIDE,
            "data.image_size",
            f"0 or 32 to {LARGEST_SIDE:,} pixels",
        ),
        *((False, key, meaning) for key, meaning in model_problems(config.model)),
        (1 <= config.data.interleave_shards <= 16, "data.interleave_shards", "1 to 16"),
        (all(source.weight > 0 for source in config.data.sources), "data.sources", "of weights above 0"),
        (config.run.name not in ("", ".", "..") and "/" not in config.run.name, "run.name", "a plain folder name"),
    ]
    for holds, key, meaning in rules:
        if not holds:
            raise UserError(f"{key}: must be {meaning}")
