"""Manifest of packed shards: `pack.json`, with the column schema and the size and hash of each shard.

    train-00000-of-00012.parquet    all columns of a cohort, the image's bytes among them
    pack.json                       vitals, labels, parts of the report; rows, size and SHA-256 of each shard

The folder may lie at any address that fsspec opens. Its contents are untrusted and validated before use.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, BinaryIO

import datasets
import fsspec

from vlm.config import SectionConfig, VitalConfig
from vlm.config.strict import from_dict, to_dict
from vlm.data.cohort import check_needs, features
from vlm.data.signals.signal_spec import SignalFormat
from vlm.data.vitals.schema import VitalsSchema, check_names
from vlm.errors import UserError
from vlm.plain import shortened
from vlm.untrusted import parse_json
from vlm.version import __version__

ONE_IMAGE, STUDIES = 1, 2
"""Formats: an image a case, as earlier versions read it too; or several with their roles."""
FILE = "pack.json"
LARGEST_FILE = 64 << 20
"""Largest size of a pack.json, bytes."""
MOST_SHARDS = 200_000
LARGEST_SHARD = 1 << 30
"""Largest size of a shard to read, bytes; written shards have 64 MiB, exceeded only by the last image."""
_SHARD = re.compile(r"(train|validation|test)-(\d{5})-of-(\d{5})\.parquet")


@dataclass(frozen=True)
class Shard:
    """Manifest entry of one shard."""

    rows: int
    size: int
    """Size of the file, bytes."""
    sha256: str


@dataclass(frozen=True)
class Pack:
    """Contents of pack.json."""

    schema: VitalsSchema
    labels: tuple[str, ...]
    sections: tuple[SectionConfig, ...]
    label_findings: dict[str, str]
    facts: str
    """Source whose reader extracts the facts of these reports; empty if there is none."""
    image_side: int
    """Longest side after downscaling the images, pixels; 0: unchanged."""
    fingerprint: str
    """Fingerprint of the cohort."""
    warnings: tuple[str, ...]
    """Warnings of the cohort when it was packed."""
    shards: dict[str, Shard]
    """Shard name → manifest entry, in row order."""
    format: int = ONE_IMAGE
    signal: SignalFormat | None = None
    """What the samples of the signals are; None without signals."""

    def to_json(self) -> bytes:
        """Serialize to the JSON that `read_pack` reads."""
        values = {
            "format": self.format,
            "clinical_vlm_version": __version__,
            "vitals": [to_dict(vital) for vital in self.schema.vitals],  # without what an earlier version does not know
            "labels": list(self.labels),
            "sections": [to_dict(section) for section in self.sections],
            "label_findings": self.label_findings,
            "facts": self.facts,
            "image_side": self.image_side,
            "fingerprint": self.fingerprint,
            "warnings": list(self.warnings),
            **({"signal": asdict(self.signal)} if self.signal is not None else {}),
            "shards": {name: asdict(shard) for name, shard in self.shards.items()},
        }
        return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()

    @property
    def features(self) -> datasets.Features:
        """Declare the columns of a shard: a cohort's, images last, so that the others are contiguous in the file."""
        declared = features(len(self.schema), len(self.labels), len(self.sections), self.signal is not None)
        roles = declared.pop("images").feature
        if self.format == ONE_IMAGE:
            del declared["prior_report"]
            return datasets.Features({**declared, "image": datasets.Image()})
        del roles["path"]
        return datasets.Features({**declared, "images": datasets.List({**roles, "image": datasets.Image()})})


def shard_name(split: str, number: int, count: int) -> str:
    """Name a shard in the pattern by which `datasets` finds splits."""
    return f"{split}-{number:05d}-of-{count:05d}.parquet"


def split_of(shard: str) -> str:
    """Parse the split from a shard's name."""
    return shard.split("-")[0]


def join_address(root: str, name: str) -> str:
    """Join a pack's root and a file name."""
    return f"{root.rstrip('/')}/{name}"


@contextmanager
def open_address(address: str) -> Iterator[BinaryIO]:
    """Open a file at a path or at any address that fsspec opens.

    Raises `UserError` that names it for whatever keeps it from being read, within the block too.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        with filesystem.open(path, "rb") as file:
            yield file
    except UserError:
        raise
    except FileNotFoundError:
        way_out = "data.root is a whole folder that `clinical-vlm pack` wrote"
        raise UserError(f"{address}: no such file; {way_out}") from None
    except Exception as error:  # each storage backend raises its own errors
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{address}: cannot be read: {said}") from None


@cache
def read_pack(root: str) -> Pack:
    """Read the pack at this folder or address, once per process.

    Raises `UserError` that names what is missing, of another format, or not as we would write it.
    """
    address = join_address(root, FILE)
    with open_address(address) as file:
        data = file.read(LARGEST_FILE + 1)
    try:
        if len(data) > LARGEST_FILE:
            raise ValueError(f"larger than {LARGEST_FILE >> 20} MiB")
        values = parse_json(data, MOST_SHARDS)
        if not isinstance(values, dict) or values.get("format") not in (ONE_IMAGE, STUDIES):
            found = values.get("format") if isinstance(values, dict) else None
            known = f"this version reads {ONE_IMAGE} and {STUDIES}"
            raise ValueError(f"format {found!r:.20}, {known}; was it made by `clinical-vlm pack`?")
        return _parse(values, address)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{address}: cannot read the pack: {said:.300}") from None
    except UserError as error:
        raise UserError(f"{address}: {str(error).removeprefix(f'{address}: '):.300}") from None


def _parse(values: dict[str, Any], where: str) -> Pack:
    schema = VitalsSchema(tuple(from_dict(VitalConfig, vital, where) for vital in _list(values, "vitals", dict)))
    sections = tuple(from_dict(SectionConfig, section, where) for section in _list(values, "sections", dict))
    views = () if values["format"] == ONE_IMAGE else None
    for section in sections:
        check_needs(section.needs, schema, f"sections: {section.column:.100}: needs", views)
    labels = tuple(_list(values, "labels", str))
    check_names(labels, "labels")
    if len(set(labels)) < len(labels):
        raise ValueError("labels: one stands there twice")
    findings = values["label_findings"]
    if not findings.keys() <= set(labels) or not all(isinstance(finding, str) for finding in findings.values()):
        raise ValueError("label_findings: not a finding for some of the labels")
    shards = {name: _shard(name, shard) for name, shard in values["shards"].items()}
    _check_whole(shards)
    warnings = tuple(_list(values, "warnings", str))
    side, facts, fingerprint = values["image_side"], values["facts"], values["fingerprint"]
    if type(side) is not int or not isinstance(facts, str) or not isinstance(fingerprint, str):
        raise TypeError("image_side is a number, facts and fingerprint are words")
    whole = (schema, labels, sections, findings, facts, side, fingerprint, warnings, shards)
    signal = from_dict(SignalFormat, values["signal"], where) if "signal" in values else None
    return Pack(*whole, format=values["format"], signal=signal)


def _list(values: dict[str, Any], key: str, kind: type) -> list[Any]:
    if not isinstance(values[key], list) or not all(isinstance(value, kind) for value in values[key]):
        raise TypeError(f"{key}: not a list of {'names' if kind is str else 'entries'}")
    return values[key]


def _shard(name: str, values: Any) -> Shard:
    shard = Shard(**values)
    whole = type(shard.rows) is int and type(shard.size) is int and isinstance(shard.sha256, str)
    if not (whole and 0 < shard.rows < shard.size <= LARGEST_SHARD and re.fullmatch("[0-9a-f]{64}", shard.sha256)):
        raise ValueError(f"shards: {shortened(name)}: no shard has such rows, size and SHA-256")
    return shard


def _check_whole(shards: dict[str, Shard]) -> None:
    """Raise `ValueError` unless all shards of each split are listed, in order."""
    names = [_SHARD.fullmatch(name) for name in shards]
    counts = {match[1]: int(match[3]) for match in names if match}
    wanted = [
        shard_name(split, number, count) for split, count in counts.items() for number in range(min(count, len(shards)))
    ]
    if not shards or wanted != list(shards):
        raise ValueError("shards: not the shards 00000 to the last of each split, in order")
