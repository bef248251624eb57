"""What a loaded adapter is, for the page and for clients."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm.adapter import AdapterConfig, digest, read_config
from vlm.inference.report import NOTICE


@dataclass(frozen=True)
class Adapter:
    """An adapter folder's name, config and digest."""

    name: str
    config: AdapterConfig
    digest: str

    @classmethod
    def of(cls, name: str, folder: Path) -> "Adapter":
        """That in a folder, by the name it was asked for; raises `UserError` as `read_config` does."""
        return cls(name, read_config(folder), digest(folder))

    def describe(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        spec = self.config.spec
        return {
            "base": self.config.model.llm.base,
            "base_fingerprint": self.config.base_fingerprint,
            "adapter_digest": self.digest,
            "vitals": [asdict(vital) for vital in spec.schema.vitals],
            "labels": list(spec.labels),
            "image_size": spec.image.size,
            "calibration": asdict(self.config.calibration),
            "notice": NOTICE,
        }
