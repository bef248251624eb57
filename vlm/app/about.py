"""Describe a loaded adapter, for the page and for clients."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vlm.adapter import AdapterConfig, read_config
from vlm.errors import UserError
from vlm.inference.fhir import Software
from vlm.inference.shared_base import check_same_base
from vlm.model.calibration import Calibration
from vlm.report import NOTICE


@dataclass(frozen=True)
class Adapter:
    """The config of an adapter folder, and the name and version that drafts carry."""

    config: AdapterConfig
    software: Software
    name: str = ""
    """Name for clients that ask for a model."""

    @classmethod
    def of(cls, folder: Path, given: str = "") -> "Adapter":
        """Read the config in a folder; raises `UserError` as `read_config` does.

        Its name is the Hub id that was `given`, or the folder's; of `runs/ward-7/adapter` that of the run.
        """
        where = folder.resolve()
        own = where.parent.name if where.name == "adapter" else where.name
        is_id = given and not Path(given).is_dir()
        return cls(read_config(folder), Software.of(folder), given if is_id else own)

    def calibrated(self, calibration: Calibration) -> "Adapter":
        """Return it with the calibration that its drafts have, such as that of a site."""
        return replace(self, config=self.config._replace(calibration=calibration))

    @property
    def title(self) -> str:
        """Short title of the adapter."""
        return f"adapter {self.software.adapter[:8]} on {self.software.base.rpartition('/')[2]}"

    def describe(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        spec = self.config.spec
        return {
            "base": self.software.base,
            "base_fingerprint": self.config.base_fingerprint,
            "adapter_digest": self.software.adapter,
            "vitals": [asdict(vital) for vital in spec.schema.given],
            "labels": list(spec.labels),
            "study": asdict(spec.study) if spec.study is not None else None,
            "sections": list(spec.sections),
            "context": spec.context,
            "image_size": spec.image.size,
            **({"signal": asdict(spec.signal)} if spec.signal is not None else {}),
            "calibration": asdict(self.config.calibration),
            "notice": NOTICE,
        }


def check_together(adapters: Sequence[Adapter]) -> None:
    """Raise `UserError` for adapters that one process cannot serve: of one name, or of several bases."""
    named = [adapter.name for adapter in adapters]
    if twice := [name for name in named if named.count(name) > 1]:
        raise UserError(f"--adapter: two are named {twice[0]}, and requests choose by name; rename a folder")
    check_same_base([(adapter.name, adapter.config) for adapter in adapters])
