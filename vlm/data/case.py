"""Build model examples from single cases, whatever their source."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlm.data.images.image import ImageSpec, is_blank, to_pixel_values
from vlm.data.vitals.schema import VitalsSchema, VitalsStatistics, check_names
from vlm.errors import UserError

if TYPE_CHECKING:  # inference needs no tables, and their libraries take a second to import
    from vlm.data.cohort import Cohort

Example = dict[str, Any]
"""id, pixel_values (3 or 1 × S × S), has_image, vitals (m, NaN missing), targets (K, NaN unknown), report, context."""


@dataclass(frozen=True)
class CaseSpec:
    """Input and output specification of a trained model; saved in the adapter."""

    image: ImageSpec
    schema: VitalsSchema
    statistics: VitalsStatistics
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        self.statistics.check(self.schema)
        check_names(self.labels, "labels")
        if len(set(self.labels)) < len(self.labels):
            raise UserError("labels: one stands there twice")

    @classmethod
    def fit(cls, cohort: "Cohort", image: ImageSpec, bins: int) -> "CaseSpec":
        """Take names from the cohort, and fit the vitals' statistics on its training split alone."""
        from vlm.data.storage import matrix

        rows = cohort.split("train")
        statistics = VitalsStatistics.fit(cohort.schema, matrix(rows, "vitals", len(cohort.schema)), bins)
        return cls(image, cohort.schema, statistics, cohort.labels)


def make_example(
    spec: CaseSpec,
    picture: np.ndarray | None,
    vitals: np.ndarray,
    id: str = "",
    targets: np.ndarray | None = None,
    report: str = "",
    context: str = "",
) -> Example:
    """Build the example that `Collator` takes; S × S uint8 picture or None, m vitals with NaN.

    A blank picture counts as missing.
    """
    if picture is not None and is_blank(picture):
        picture = None
    size = spec.image.size
    pixels = (
        np.zeros((spec.image.channels, size, size), np.float32)
        if picture is None
        else to_pixel_values(picture, spec.image)
    )
    return {
        "id": id,
        "pixel_values": torch.from_numpy(pixels),
        "has_image": picture is not None,
        "vitals": torch.from_numpy(vitals.astype(np.float32)),
        "targets": torch.from_numpy(targets if targets is not None else np.full(len(spec.labels), np.nan, np.float32)),
        "report": report,
        "context": context,
    }


def missing_notes(schema: VitalsSchema, x: Sequence[float], implausible: Collection[str]) -> list[str]:
    """List for the user which vitals were not given, and which series have one value, so no change."""
    known = {vital.name for vital, value in zip(schema.vitals, x, strict=True) if not math.isnan(value)}
    missing = [vital.name for vital in schema.given if vital.name not in {*known, *implausible}]
    single = [name for name in schema.features if name in known and f"{name}_change" not in known]
    notes = [f"not given: {', '.join(missing)}"] if missing else []
    return notes + ([f"one value alone, so no change over time: {', '.join(single)}"] if single else [])


def random_cases(spec: CaseSpec, count: int) -> Iterator[Example]:
    """Generate synthetic cases: vitals near the training median, pictures of soft shadows; every fourth has none."""
    rng = np.random.default_rng(0)
    centre, scale = np.array(spec.statistics.centre), np.array(spec.statistics.scale)
    numbers = np.array([not vital.categories for vital in spec.schema.vitals], dtype=bool)
    for number in range(count):
        x = np.where(numbers, centre + scale * rng.normal(size=len(centre)), rng.integers(0, 2, len(centre)))
        coarse = rng.integers(0, 256, (4, 4), dtype=np.uint8)
        size = spec.image.size
        picture = np.kron(coarse, np.ones((-(-size // 4),) * 2, np.uint8))[:size, :size]
        yield make_example(spec, picture if number % 4 != 3 else None, x)
