"""Which files an adapter folder holds, and its config.json: all but weights that it takes to rebuild the model."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import vlm
from vlm.cli import from_dict
from vlm.config import ModelConfig, VitalConfig
from vlm.data.case import CaseSpec
from vlm.data.images import ImageSpec
from vlm.data.schema import VitalsSchema, VitalsStatistics
from vlm.errors import UserError
from vlm.model.calibration import Calibration

if TYPE_CHECKING:  # what only reads a config need not wait for it
    from vlm.model.clinical_vlm import ClinicalVLM

FORMAT = 1
"""Raised when a folder of this version could not be read by an older one."""
FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "vlm.safetensors",
    "config.json",
    "metrics.json",
    "README.md",
)
"""All files an adapter folder may hold."""
REQUIRED = FILES[:4]


def describe(model: "ClinicalVLM") -> dict[str, Any]:
    """Everything but weights that it takes to rebuild the model; the content of config.json."""
    return {
        "format": FORMAT,
        "clinical_vlm_version": vlm.__version__,
        "base_fingerprint": model.base_fingerprint,
        "model": asdict(model.model_config),
        "image": asdict(model.spec.image),
        "vitals": [asdict(vital) for vital in model.spec.schema.vitals],
        "statistics": asdict(model.spec.statistics),
        "labels": list(model.spec.labels),
        "calibration": asdict(model.calibration),
    }


class AdapterConfig(NamedTuple):
    """The content of config.json."""

    model: ModelConfig
    spec: CaseSpec
    base_fingerprint: str
    calibration: Calibration


def read_config(folder: Path) -> AdapterConfig:
    """Read config.json; raises `UserError` if it is missing, incomplete or of another format."""
    file = folder / "config.json"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot read the adapter's config: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise UserError(f"{file}: format {found}, this version reads {FORMAT}; is this an adapter of clinical-vlm?")
    try:
        where = str(file)
        statistics = values["statistics"]
        spec = CaseSpec(
            image=ImageSpec(**values["image"]),
            schema=VitalsSchema(tuple(from_dict(VitalConfig, vital, where) for vital in values["vitals"])),
            statistics=VitalsStatistics(
                tuple(statistics["centre"]), tuple(statistics["scale"]), tuple(map(tuple, statistics["edges"]))
            ),
            labels=tuple(values["labels"]),
        )
        model = from_dict(ModelConfig, values["model"], where)
        return AdapterConfig(model, spec, str(values["base_fingerprint"]), Calibration(**values["calibration"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: incomplete config: {error}") from None


def digest(folder: Path) -> str:
    """A hash of the weights and the config of an adapter folder: what it would draft, not what is said of it."""
    hashed = hashlib.sha256()
    for name in REQUIRED:
        hashed.update((folder / name).read_bytes())
    return hashed.hexdigest()
