"""Read rows as model examples: picture, vitals, labels and the report that the evidence supports."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch

from vlm.config import AugmentConfig, DropoutConfig, SectionConfig
from vlm.data.case import CaseSpec, Example, make_example
from vlm.data.images.image import ImageSpec, augment, decode_image, is_blank, to_square
from vlm.data.images.store import image_label, read_image_bytes
from vlm.data.packed.shards import is_packed, read_packed
from vlm.data.storage import column
from vlm.distributed import log_rank0
from vlm.errors import UserError


def compose_report(texts: Sequence[str | None], sections: Sequence[SectionConfig], available: Collection[str]) -> str:
    """Join the sections of a report whose evidence is available; `otherwise` stands in for the rest.

    A report must not state what its reader cannot see: a model trained to do so invents findings.
    """
    parts = []
    for text, section in zip(texts, sections, strict=True):
        if text is None:  # reports of this source lack this section
            continue
        if all(need in available for need in section.needs):
            parts.append(text)
        else:
            parts.append(section.otherwise)
    return " ".join(part for part in parts if part)


def available_evidence(names: Sequence[str], vitals: np.ndarray, has_image: bool) -> set[str]:
    """Collect the evidence of a case: `image`, `vitals` (any of them) and the names of its vitals."""
    present = {name for name, value in zip(names, vitals, strict=True) if not np.isnan(value)}
    return present | ({"vitals"} if present else set()) | ({"image"} if has_image else set())


def load_picture(cell: Mapping[str, Any] | None, spec: CaseSpec) -> np.ndarray | None:
    """Decode an image cell to S × S uint8; None for a case without an image and for a blank one."""
    if not cell:
        return None
    picture = read_square(cell["path"], spec.image)
    return None if is_blank(picture) else picture


def read_square(path: str, spec: ImageSpec) -> np.ndarray:
    """Read the image of a cell from any storage as S × S uint8; raises `UserError` that names it, for any fault."""
    try:
        return to_square(read_packed(path) if is_packed(path) else decode_image(*read_image_bytes(path)), spec)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{image_label(path)}: cannot read the image: {type(error).__name__}") from None


@dataclass
class CaseDataset(torch.utils.data.Dataset[Example]):
    """Dataset of the examples of one split.

    In training, dropout and augmentation are drawn from (seed, epoch, row): the same whatever the number of
    workers or processes, and after a resume.
    """

    rows: datasets.Dataset
    spec: CaseSpec
    sections: Sequence[SectionConfig]
    withhold: Collection[str] = ()
    dropout: DropoutConfig | None = None
    """None outside training."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0
    epoch: int = 0
    interleave_shards: int = 1
    """Number of packed shards that training interleaves."""
    features: np.ndarray | None = None
    """Precomputed features of a frozen CNN, N × places × C; they replace the pixels, which are then not read."""
    _warned_blank: bool = field(default=False, init=False, repr=False)
    """True once a blank image was reported."""

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def weights(self) -> np.ndarray | None:
        """Sampling weights of the cases (N); None if uniform."""
        weights = column(self.rows, "weight").to_numpy().astype(np.float64)
        return None if self.dropout is None or np.ptp(weights) == 0 else weights

    def __getitem__(self, index: int) -> Example:
        """Read one case; raises `UserError` that names an unreadable image."""
        row = self.rows[int(index)]
        vitals = np.array(row["vitals"], dtype=np.float32)
        picture = self._picture(int(index), row) if self.features is None else self._features(int(index))
        if self.dropout is not None:
            rng = np.random.default_rng([self.seed, self.epoch, int(index)])
            picture, vitals = self._apply_dropout(picture, vitals, self.dropout, rng)
            vitals = self.spec.schema.without_orphans(vitals)
            if picture is not None and self.features is None:
                picture = augment(picture, self.augment, rng)
        # Evidence is withheld after its report is chosen: a control run has the targets of the run it is compared with.
        available = available_evidence(self.spec.schema.names, vitals, picture is not None)
        if "image" in self.withhold:
            picture = None
        if "vitals" in self.withhold:
            vitals = np.full_like(vitals, np.nan)
        example = make_example(
            self.spec,
            picture if self.features is None else None,
            vitals,
            id=row["id"],
            targets=np.array(row["labels"], dtype=np.float32),
            report=compose_report(row["sections"], self.sections, available),
            context=row["context"] or "",
        )
        if self.features is not None:
            seen = picture if picture is not None else np.zeros(self.features.shape[1:], np.float32)
            example |= {"pixel_values": torch.from_numpy(seen), "has_image": picture is not None}
        return example

    def plain(self) -> "CaseDataset":
        """Copy the dataset without dropout, augmentation, withheld evidence or precomputed features."""
        return replace(self, withhold=(), dropout=None, features=None)

    def shows_image(self, index: int) -> bool:
        """Check whether a case has an image that is not blank; the image is decoded at most once."""
        if self._shows[index] < 0:
            self._picture(index, self.rows[int(index)])
        return bool(self._shows[index])

    @cached_property
    def _shows(self) -> np.ndarray:
        """Image state of each case (N): 1 shows something, 0 does not, -1 not decoded yet."""
        return np.full(len(self.rows), -1, np.int8)

    def mark_images(self, shown: np.ndarray) -> None:
        """Set for all cases whether their image shows something (N, bool), if known from elsewhere."""
        self._shows[:] = shown

    def _features(self, index: int) -> np.ndarray | None:
        return np.array(self.features[index]) if self.features is not None and self.shows_image(index) else None

    @cached_property
    def report_lengths(self) -> np.ndarray:
        """Count the characters of each case's report; N."""
        sections = column(self.rows, "sections").chunks
        sizes = [pc.utf8_length(chunk.flatten()).fill_null(0).to_numpy(zero_copy_only=False) for chunk in sections]
        flat = np.concatenate([np.empty(0, np.int64), *sizes])
        return flat.reshape(len(self.rows), len(self.sections)).sum(axis=1)

    def _picture(self, index: int, row: Mapping[str, Any]) -> np.ndarray | None:
        picture = load_picture(row["image"], self.spec)
        self._shows[index] = picture is not None
        if row["image"] and picture is None and not self._warned_blank:
            self._warned_blank = True
            way = "shows one grey value alone and counts as no image; further ones are not named"
            log_rank0(f"warning: {image_label(row['image']['path'])}: {way}")
        return picture

    def report(self, index: int) -> str:
        """Compose the full reference report of a case from its available evidence."""
        row = self.rows[int(index)]
        vitals = np.array(row["vitals"], dtype=np.float32)
        needed = any("image" in section.needs for section in self.sections)
        shows_image = needed and self.shows_image(int(index))
        available = available_evidence(self.spec.schema.names, vitals, shows_image)
        return compose_report(row["sections"], self.sections, available)

    @property
    def reports(self) -> list[str]:
        """List all reference reports, in table order."""
        return [self.report(index) for index in range(len(self))]

    @staticmethod
    def _apply_dropout(
        picture: np.ndarray | None, vitals: np.ndarray, dropout: DropoutConfig, rng: np.random.Generator
    ) -> tuple[np.ndarray | None, np.ndarray]:
        draws = rng.random(2 + len(vitals))  # drawn always, so that one option does not shift another's numbers
        if draws[0] < dropout.image:
            picture = None
        lost = (draws[2:] < dropout.value) | (draws[1] < dropout.vitals)
        return picture, np.where(lost, np.float32("nan"), vitals)
