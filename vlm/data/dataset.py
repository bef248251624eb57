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
from vlm.data.case import CaseSpec, Example
from vlm.data.images.image import ImageSpec, augment, decode_image, is_blank, to_square
from vlm.data.images.store import image_label, read_image_bytes
from vlm.data.packed.shards import is_packed, read_packed
from vlm.data.shown_evidence import available_evidence, compose_report, drop_roles, with_prior_report
from vlm.data.signals.signal_spec import from_bytes
from vlm.data.storage import column
from vlm.data.study import PRIOR, Cell, StudyPicture, chosen_cells, role_of
from vlm.data.study_features import StudyFeatures, make_shown_example
from vlm.distributed import log_rank0
from vlm.errors import UserError


def load_pictures(cells: Sequence[Cell], spec: CaseSpec) -> list[StudyPicture]:
    """Decode the images of a row that the model reads; blank ones are left out."""
    pictures = (_load(cell, spec) for cell in chosen_cells(cells, spec.study))
    return [item for item in pictures if not is_blank(item.picture)]


def _load(cell: Cell, spec: CaseSpec) -> StudyPicture:
    days = float(cell["days"]) if cell["prior"] else 0.0
    return StudyPicture(read_square(cell["path"], spec.image), cell["view"] or "", bool(cell["prior"]), days)


def read_square(path: str, spec: ImageSpec) -> np.ndarray:
    """Read the image of a cell from any storage (see `to_square`); raises `UserError` that names it, for any fault."""
    try:
        color = spec.in_color
        image = read_packed(path, color) if is_packed(path) else decode_image(*read_image_bytes(path), color)
        return to_square(image, spec)
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
    features: StudyFeatures | None = None
    """Precomputed features of a frozen encoder; the pixels are then not read."""
    blank: set[str] = field(default_factory=set, init=False, repr=False)
    """Paths of images that showed nothing."""

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
        pictures = self._pictures(int(index), row)
        context, prior_report = row["context"] or "", row["prior_report"] or ""
        signal = self.signal(row)
        if self.dropout is not None:
            rng = np.random.default_rng([self.seed, self.epoch, int(index)])
            pictures, vitals = self._apply_dropout(pictures, vitals, self.dropout, rng)
            vitals = self.spec.schema.without_orphans(vitals)
            if self.spec.study is not None:
                more = np.random.default_rng([self.seed, self.epoch, int(index), 1])
                pictures, context, prior_report = drop_roles(pictures, context, prior_report, self.dropout, more)
            if np.random.default_rng([self.seed, self.epoch, int(index), 2]).random() < self.dropout.signal:
                signal = None
            if self.features is None:
                pictures = [item._replace(picture=augment(item.picture, self.augment, rng)) for item in pictures]
        # Evidence is withheld after its report is chosen: a control run has the targets of the run it is compared with.
        roles = {item.role for item in pictures} | ({PRIOR} if prior_report else set())
        available = available_evidence(self.spec.schema.names, vitals, roles, context, signal is not None)
        if "image" in self.withhold:
            pictures = []
        if "vitals" in self.withhold:
            vitals = np.full_like(vitals, np.nan)
        if "signal" in self.withhold:
            signal = None
        return make_shown_example(
            self.spec,
            self.features,
            pictures,
            vitals,
            id=row["id"],
            targets=np.array(row["labels"], dtype=np.float32),
            report=compose_report(row["sections"], self.sections, available, bool(self.spec.sections)),
            context=with_prior_report(context, prior_report),
            signal=signal,
        )

    def plain(self) -> "CaseDataset":
        """Copy the dataset without dropout, augmentation, withheld evidence or precomputed features."""
        return replace(self, withhold=(), dropout=None, features=None)

    def select(self, cases: np.ndarray) -> "CaseDataset":
        """Return some of the cases, with what is known of their images."""
        some = replace(self, rows=self.rows.select(cases))
        some.learn_images(self, cases)
        return some

    def learn_images(self, other: "CaseDataset", cases: np.ndarray | None = None) -> None:
        """Take over what is known of the images of `other`, of whose cases these are some; None for all."""
        self.features = other.features.select(cases) if other.features and cases is not None else other.features
        self.blank |= other.blank
        self.mark_images(other._looked if cases is None else other._looked[cases])

    def shown_roles(self, index: int) -> set[str]:
        """Return the roles of a case's images that show something; an image is decoded at most once."""
        row = self.rows[int(index)]
        if not self._looked[index]:
            self._pictures(index, row)
        cells = chosen_cells(row["images"], self.spec.study)
        return {role_of(cell) for cell in cells if cell["path"] not in self.blank}

    def shows_image(self, index: int) -> bool:
        """Check whether a case has an image that is not blank."""
        return bool(self.shown_roles(index))

    @cached_property
    def _looked(self) -> np.ndarray:
        """True for a case whose images were decoded, N."""
        return np.zeros(len(self.rows), bool)

    def find_blank(self, cases: Sequence[int]) -> None:
        """Decode the images of some cases and note the blank ones."""
        for index in cases:
            for cell in chosen_cells(self.rows[index]["images"], self.spec.study):
                if is_blank(read_square(cell["path"], self.spec.image)):
                    self.blank.add(cell["path"])
            self._looked[index] = True

    def mark_images(self, shown: np.ndarray) -> None:
        """Mark cases (N, bool) none of whose images is blank, if known from elsewhere."""
        self._looked[shown] = True

    @cached_property
    def report_lengths(self) -> np.ndarray:
        """Count the characters of each case's report; N."""
        sections = column(self.rows, "sections").chunks
        sizes = [pc.utf8_length(chunk.flatten()).fill_null(0).to_numpy(zero_copy_only=False) for chunk in sections]
        flat = np.concatenate([np.empty(0, np.int64), *sizes])
        return flat.reshape(len(self.rows), len(self.sections)).sum(axis=1)

    def pictures(self, index: int) -> list[StudyPicture]:
        """Read the images of a case without blank ones, or take their precomputed features."""
        return self._pictures(index, self.rows[index])

    def _pictures(self, index: int, row: Mapping[str, Any]) -> list[StudyPicture]:
        if self.features is not None:
            return self.features.of(index)
        pictures = []
        for cell in chosen_cells(row["images"], self.spec.study):
            item = _load(cell, self.spec)
            if not is_blank(item.picture):
                pictures.append(item)
                continue
            if not self.blank:
                way = "shows one grey value alone and counts as no image; further ones are not named"
                log_rank0(f"warning: {image_label(cell['path'])}: {way}")
            self.blank.add(cell["path"])
        self._looked[index] = True
        return pictures

    def report(self, index: int, headings: bool = False) -> str:
        """Compose the full reference report of a case from its available evidence, without headings by default."""
        row = self.rows[int(index)]
        vitals = np.array(row["vitals"], dtype=np.float32)
        names = {*self.spec.schema.names, "vitals", "context", "signal"}
        needed = any(need not in names for section in self.sections for need in section.needs)
        roles = self.shown_roles(int(index)) if needed else set()
        roles = {*roles, PRIOR} if row["prior_report"] else roles
        signal = self.signal(row) is not None
        available = available_evidence(self.spec.schema.names, vitals, roles, row["context"] or "", signal)
        return compose_report(row["sections"], self.sections, available, headings)

    def signal(self, row: Mapping[str, Any]) -> np.ndarray | None:
        """Return the samples of a row's signal, C × l, or None."""
        return from_bytes(row.get("signal"), len(self.spec.signal.channels)) if self.spec.signal is not None else None

    def has_signal(self) -> np.ndarray:
        """Find the cases with a signal that the model reads; N, bool."""
        if self.spec.signal is None:
            return np.zeros(len(self.rows), bool)
        sizes = [pc.binary_length(part).to_numpy(zero_copy_only=False) for part in column(self.rows, "signal").chunks]
        return np.concatenate([np.zeros(0), *sizes]) > 0

    @property
    def reports(self) -> list[str]:
        """List all reference reports, in table order."""
        return [self.report(index) for index in range(len(self))]

    @staticmethod
    def _apply_dropout(
        pictures: list[StudyPicture], vitals: np.ndarray, dropout: DropoutConfig, rng: np.random.Generator
    ) -> tuple[list[StudyPicture], np.ndarray]:
        draws = rng.random(2 + len(vitals))  # drawn always, so that one option does not shift another's numbers
        if draws[0] < dropout.image:
            pictures = []
        lost = (draws[2:] < dropout.value) | (draws[1] < dropout.vitals)
        return pictures, np.where(lost, np.float32("nan"), vitals)
