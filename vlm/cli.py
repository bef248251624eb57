"""From a YAML file and dotted overrides to a `Config`; an unknown key is named with its nearest match."""

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from vlm.config import Config
from vlm.config.limits import LARGEST_SIDE, model_problems
from vlm.errors import UserError


def parse_config(argv: Sequence[str], description: str = "") -> tuple[Config, bool]:
    """Read `--config FILE`, dotted overrides such as `--train.max_steps 10`, and `--resume`.

    Returns the config and whether to resume; `--dry-run` is for the caller to see. Raises `UserError` for an unknown
    key, a value of the wrong type or range, and an unreadable file.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file; see configs/.")
    parser.add_class_arguments(Config, None)
    parser.add_argument("--resume", action="store_true", help="Go on from the newest whole checkpoint.")
    parser.add_argument("--dry-run", action="store_true", help="Make one step, say what memory it takes, and end.")
    _check_options(argv)
    for file in _config_files(argv):
        _check_keys(_read_yaml(file), Config, file)
    try:
        namespace = parser.parse_args(list(argv))
        fields = parser.instantiate(namespace).as_dict()
    except jsonargparse.ArgumentError as error:
        raise UserError(_one_line(error)) from None
    resume = fields.pop("resume")
    for option in ("config", "dry_run"):
        fields.pop(option, None)
    config = Config(**fields)
    _check_values(config)
    return config, resume


def to_yaml(config: Any) -> str:
    """A config dataclass as YAML that `parse_config` reads back."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def from_dict(cls: type, values: dict[str, Any], where: str) -> Any:
    """Build the (nested) dataclass `cls` from plain values, as JSON or YAML gives them.

    Raises `UserError` that names `where` and the key if a key is unknown or a value has the wrong shape.
    """
    _check_keys(values, cls, where)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, None)
    try:
        return cls(**parser.instantiate(parser.parse_object(values)).as_dict())
    except (jsonargparse.ArgumentError, TypeError) as error:
        raise UserError(f"{where}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).replace("<class ", "").replace("'>", "'").split())


def _config_files(argv: Sequence[str]) -> Iterator[str]:
    for index, word in enumerate(argv):
        if word.startswith("--config="):
            yield word.removeprefix("--config=")
        elif word == "--config" and index + 1 < len(argv):
            yield argv[index + 1]


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot read the config: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not valid YAML: {_one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: a config is a mapping such as `train: {{seed: 1}}`")
    return values


def _check_options(argv: Sequence[str]) -> None:
    """Refuse an unknown `--option` before argparse does, to be able to say what was meant."""
    known = {f"--{name}" for name in _dotted_names(Config)}
    known |= {"--config", "--resume", "--dry-run", "--help", "--print_config"}
    for word in argv:
        option = word.split("=")[0]
        if not option.startswith("--") or option.rstrip("+") in known or option.endswith(".help"):
            continue
        raise UserError(f"unknown option {option}{_nearest(option, known)}")


def _dotted_names(cls: type, prefix: str = "") -> Iterator[str]:
    for name, kind in typing.get_type_hints(cls).items():
        yield prefix + name
        if dataclasses.is_dataclass(kind):
            yield from _dotted_names(kind, f"{prefix}{name}.")  # type: ignore[arg-type]


def _check_keys(values: Any, cls: Any, where: str, prefix: str = "") -> None:
    """Walk the values beside the dataclass; `list[SomeDataclass]` is walked item by item."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: {prefix.rstrip('.') or 'the config'} is a mapping of keys, not {values!r}")
    kinds = typing.get_type_hints(cls)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in kinds:
            known = [f"{prefix}{k}" for k in kinds]
            everywhere = known if prefix else [*known, *_dotted_names(cls)]
            raise UserError(f"{where}: unknown key {name}{_nearest(name, everywhere)}")
        kind = kinds[key]
        if dataclasses.is_dataclass(kind) and value is not None:
            _check_keys(value, kind, where, f"{name}.")
        item = next(iter(typing.get_args(kind)), None)
        choices = (item, *typing.get_args(item))  # an item may be a dataclass, or a dataclass or a word
        described = next((choice for choice in choices if dataclasses.is_dataclass(choice)), None)
        if isinstance(value, list) and described:
            for index, element in enumerate(value):
                if not (isinstance(element, str) and str in choices):
                    _check_keys(element, described, where, f"{name}[{index}].")


def _nearest(name: str, known: Any) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]}?" if matches else "; --help lists them all"


def _check_values(config: Config) -> None:
    """Ranges that the types do not say; each message names the key."""
    train, dropout, split = config.train, config.data.dropout, config.data.split
    rules = [
        (0 <= config.loss.alpha <= 1, "loss.alpha", "between 0 and 1"),
        (train.micro_batch_size > 0, "train.micro_batch_size", "at least 1"),
        (
            train.batch_size % max(train.micro_batch_size, 1) == 0,
            "train.batch_size",
            "a multiple of train.micro_batch_size",
        ),
        (train.log_steps > 0, "train.log_steps", "at least 1"),
        (train.eval_steps > 0, "train.eval_steps", "at least 1"),
        (train.max_steps == -1 or train.max_steps > 0, "train.max_steps", "-1 or at least 1"),
        (train.epochs > 0, "train.epochs", "more than 0"),
        (
            split.validation >= 0 and split.test >= 0 and split.validation + split.test < 1,
            "data.split",
            "shares that leave some patients to train on",
        ),
        (
            all(0 <= p < 1 for p in (dropout.image, dropout.vitals, dropout.value)),
            "data.dropout",
            "probabilities below 1",
        ),
        (config.evaluation.batch_size > 0, "evaluation.batch_size", "at least 1"),
        (config.evaluation.max_new_tokens > 0, "evaluation.max_new_tokens", "at least 1"),
        (config.evaluation.ablation_cases >= 0, "evaluation.ablation_cases", "at least 0"),
        (32 <= config.data.image_size <= LARGEST_SIDE, "data.image_size", f"32 to {LARGEST_SIDE:,} pixels"),
        *((False, key, meaning) for key, meaning in model_problems(config.model)),
        (1 <= config.data.lanes <= 16, "data.lanes", "1 to 16"),
        (all(source.weight > 0 for source in config.data.sources), "data.sources", "of weights above 0"),
        (config.run.name not in ("", ".", "..") and "/" not in config.run.name, "run.name", "a plain folder name"),
    ]
    for holds, key, meaning in rules:
        if not holds:
            raise UserError(f"{key}: must be {meaning}")
