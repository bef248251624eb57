"""Read and write the recalibration of one adapter for one site: a temperature and an offset for each label."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm.adapter.layout import digest
from vlm.adapter.validate import AdapterFolder
from vlm.atomic import replace_file
from vlm.errors import UserError
from vlm.model.calibration import Calibration
from vlm.plain import shortened
from vlm.untrusted import read_json

COOLEST, HOTTEST, FARTHEST = 1e-4, 1e4, 30.0
"""Lowest and highest temperature, as `Calibration` allows, and largest offset, in log-odds."""
KEYS = {"site", "adapter", "patients", "cases", "labels"}
SITE_NAME = re.compile(r"\w[\w-]{0,39}")


def check_site_name(name: str, where: str) -> None:
    """Raise `UserError` for a name that is no plain word, since it becomes part of a file's name."""
    if not SITE_NAME.fullmatch(name):
        raise UserError(f"{where}: {shortened(name)} is no name; write letters, digits, - and _, 40 at most")


@dataclass(frozen=True)
class SiteCalibration(Calibration):
    """Calibrate the labels of one site: the probability is sigmoid(logit / temperature + offset), label by label."""

    site: str = ""
    """Name of the site."""
    temperatures: tuple[float, ...] = ()
    """K, above 0."""
    offsets: tuple[float, ...] = ()
    """K, log-odds."""

    def __post_init__(self) -> None:
        check_site_name(self.site, "site")
        if not all(COOLEST <= value <= HOTTEST for value in self.temperatures):
            raise UserError(f"site {self.site}: a temperature is not from {COOLEST} to {HOTTEST:.0f}")
        if not all(abs(value) <= FARTHEST for value in self.offsets):
            raise UserError(f"site {self.site}: an offset is not from -{FARTHEST:g} to {FARTHEST:g}")
        if not (0 < self.patients <= self.cases and len(self.temperatures) == len(self.offsets)):
            raise UserError(f"site {self.site}: fitted on {self.patients} patients and {self.cases} cases")

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Convert logits (… × K) to probabilities."""
        scale, offset = (torch.tensor(v, dtype=logits.dtype, device=logits.device)
                         for v in (self.temperatures, self.offsets))  # fmt: skip
        return torch.sigmoid(logits / scale + offset)

    def describe(self) -> str:
        """Describe the calibration in one sentence for the reader."""
        return f"probabilities recalibrated for the site {self.site} on {self.patients} of its patients"


def site_file(adapter: Path, site: str) -> Path:
    """Name the file of a site, beside the adapter's folder, which takes no further files."""
    return adapter.resolve().parent / f"site-{site}.json"


def write_site(file: Path, adapter: AdapterFolder, calibration: SiteCalibration) -> None:
    """Write a site's calibration for an adapter, in an atomic write; it holds no patient's data."""
    pairs = zip(adapter.config.spec.labels, calibration.temperatures, calibration.offsets, strict=True)
    values = {
        "site": calibration.site,
        "adapter": digest(adapter.path),
        "patients": calibration.patients,
        "cases": calibration.cases,
        "labels": {label: {"temperature": t, "offset": b} for label, t, b in pairs},
    }
    replace_file(file, json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_site(file: str | Path, adapter: AdapterFolder) -> SiteCalibration:
    """Read a site's calibration for an adapter.

    Raises `UserError` for a file that is none, for one of another adapter, of other labels, or of values out of range.
    """
    values = read_json(Path(file), "the site's calibration")
    if not isinstance(values, dict) or values.keys() != KEYS:
        raise UserError(f"{file}: not the calibration of a site; its keys are {', '.join(sorted(KEYS))}")
    if values["adapter"] != digest(adapter.path):
        raise UserError(f"{file}: fitted to another adapter than {adapter.path}; fit it again (evaluate "
                        "--recalibrate_on N)")  # fmt: skip
    labels, wanted = values["labels"], adapter.config.spec.labels
    if not isinstance(labels, dict) or list(labels) != list(wanted):
        raise UserError(f"{file}: labels: are not those of the adapter, {', '.join(wanted)}")
    pairs = [_pair(file, label, row) for label, row in labels.items()]
    patients, cases = values["patients"], values["cases"]
    if type(patients) is not int or type(cases) is not int or not isinstance(values["site"], str):
        raise UserError(f"{file}: site is a text, patients and cases are whole numbers")
    temperatures, offsets = (tuple(pair[place] for pair in pairs) for place in (0, 1))
    own = adapter.config.calibration.temperature
    try:
        return SiteCalibration(own, patients, cases, values["site"], temperatures, offsets)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _pair(file: str | Path, label: str, row: Any) -> tuple[float, float]:
    if not isinstance(row, Mapping) or row.keys() != {"temperature", "offset"}:
        raise UserError(f"{file}: {label}: has a temperature and an offset, nothing else")
    values = row["temperature"], row["offset"]
    if any(type(value) not in (int, float) or not math.isfinite(value) for value in values):
        raise UserError(f"{file}: {label}: temperature and offset are numbers")
    return float(values[0]), float(values[1])
