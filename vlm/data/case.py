"""Build model examples from single cases, whatever their source."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlm.config.limits import LONGEST_DRAFT
from vlm.data.images.image import ImageSpec, is_blank, to_pixel_values
from vlm.data.images.modality import check_modalities
from vlm.data.sections import check_section_names, section_names
from vlm.data.signals.signal_spec import SignalSpec
from vlm.data.study import PRIOR, StudyPicture, StudySpec, role_numbers, sorted_pictures
from vlm.data.vitals.schema import VitalsSchema, VitalsStatistics, check_names
from vlm.data.vitals.values import suspected_unit
from vlm.errors import UserError
from vlm.findings.vocabulary import DEFAULT, shipped
from vlm.plain import shortened

if TYPE_CHECKING:  # inference needs no tables, and their libraries take a second to import
    from vlm.data.cohort import Cohort

Example = dict[str, Any]
"""id, pixel_values (n × 3 or 1 × S × S), has_image, image_roles (n × 3: view, prior, days), vitals (m, NaN missing),
targets (K, NaN unknown), report, context; where the model reads a signal also signal (C × L, NaN at gaps and without
one). A case without an image has one black picture and has_image False."""


@dataclass(frozen=True)
class CaseSpec:
    """Input and output specification of a trained model; saved in the adapter."""

    image: ImageSpec
    schema: VitalsSchema
    statistics: VitalsStatistics
    labels: tuple[str, ...]
    study: StudySpec | None = None
    """Images of a case; None for a model of one image."""
    sections: tuple[str, ...] = ()
    """Names of the sections, if they are headings of the target."""
    context: bool | None = field(default=None, compare=False)
    """True if training cases had a context, such as an indication; None if the adapter does not say."""
    signal: SignalSpec | None = None
    """Signal of a case, such as an ECG; None for a model that reads none."""
    findings: str = field(default=DEFAULT, compare=False)
    """Vocabulary of the reports' findings, one that comes with the package; empty if it was a file of the user's own,
    whose patterns nobody else should have to run."""
    label_findings: dict[str, str] = field(default_factory=dict, compare=False)
    """Label → finding that it stands for, where the names differ."""
    familiarity: int = field(default=0, compare=False)
    """Directions of the training pictures' features that the adapter keeps; 0 for none."""
    max_new_tokens: int = field(default=96, compare=False)
    """Longest draft, in tokens, unless the user says another: that of the evaluation after training."""
    modalities: tuple[str, ...] = field(default=(), compare=False)
    """Modalities that the training pictures name as DICOM files, such as CR, in order; empty if none is known."""

    @property
    def study_images(self) -> int:
        """Most images that the model reads of a case."""
        return self.study.max_images if self.study is not None else 1

    def __post_init__(self) -> None:
        self.statistics.check(self.schema)
        check_names(self.labels, "labels")
        if len(set(self.labels)) < len(self.labels):
            raise UserError("labels: one stands there twice")
        check_section_names(self.sections, "sections")
        if not 0 <= self.familiarity <= 64:
            raise UserError(f"familiarity: 0 to 64 directions, not {self.familiarity}")
        check_modalities(self.modalities)
        if not 1 <= self.max_new_tokens <= LONGEST_DRAFT:
            raise UserError(f"max_new_tokens: 1 to {LONGEST_DRAFT:,} tokens, not {self.max_new_tokens}")
        if self.findings not in ("", *shipped()):
            raise UserError(f"findings: no vocabulary is named {shortened(str(self.findings))}")
        if unknown := self.label_findings.keys() - set(self.labels):
            raise UserError(f"label_findings: no label is named {shortened(min(unknown))}")

    @classmethod
    def fit(
        cls, cohort: "Cohort", image: ImageSpec, bins: int, max_images: int = 1, headings: bool = False
    ) -> "CaseSpec":
        """Take names from the cohort; fit the vitals' statistics and the images' roles on its training split alone.

        `headings` says whether sections are written under their names.
        """
        import pyarrow.compute as pc

        from vlm.data.storage import column, matrix

        rows = cohort.split("train")
        statistics = VitalsStatistics.fit(cohort.schema, matrix(rows, "vitals", len(cohort.schema)), bins)
        sections = section_names(cohort.sections) if headings else ()
        context = pc.any(pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(column(rows, "context"))), 0)).as_py()
        study, signal = StudySpec.fit(rows, max_images), SignalSpec.fit(rows, cohort.signal)
        return cls(image, cohort.schema, statistics, cohort.labels, study, sections, bool(context), signal,
                   cohort.findings if cohort.findings in shipped() else "",
                   {label: finding for label, finding in cohort.label_findings.items() if label in cohort.labels},
                   )  # fmt: skip


def make_example(
    spec: CaseSpec,
    pictures: Sequence[StudyPicture],
    vitals: np.ndarray,
    id: str = "",
    targets: np.ndarray | None = None,
    report: str = "",
    context: str = "",
    signal: np.ndarray | None = None,
) -> Example:
    """Build the example that `Collator` takes from the pictures of a case, in any order, and m vitals with NaN.

    `signal` is C × l, in its unit, with NaN at gaps. A blank picture counts as missing.
    """
    shown = sorted_pictures(item for item in pictures if not is_blank(item.picture))
    size = spec.image.size
    pixels = [to_pixel_values(item.picture, spec.image) for item in shown]
    pixels = pixels or [np.zeros((spec.image.channels, size, size), np.float32)]
    return {
        "id": id,
        "pixel_values": torch.stack([torch.from_numpy(image) for image in pixels]),
        "has_image": bool(shown),
        "image_roles": torch.from_numpy(role_numbers(shown, spec.study)),
        "vitals": torch.from_numpy(vitals.astype(np.float32)),
        "targets": torch.from_numpy(targets if targets is not None else np.full(len(spec.labels), np.nan, np.float32)),
        "report": report,
        "context": context,
        **({"signal": torch.from_numpy(spec.signal.normalise(signal))} if spec.signal is not None else {}),
    }


def implausible_note(schema: VitalsSchema, name: str, value: float) -> str:
    """Say that a value is not plausible, and in which unit it would be."""
    vital = schema.vitals[schema.position(name)]
    unit = suspected_unit(vital, [value])
    hint = f" (in {unit} it would be: write {vital.name}={value:g} {unit})" if unit else ""
    what = "was left out of its series" if vital.over_time else "was taken as missing"
    return f"{vital.name} {value:g} is not plausible{hint} and {what}"


def untrained_notes(spec: CaseSpec, x: np.ndarray) -> list[str]:
    """List for the user which of m values lie beyond all those of training, which are the outermost edges."""
    notes = []
    for vital, value, edges in zip(spec.schema.vitals, x.tolist(), spec.statistics.edges, strict=True):
        if edges and not math.isnan(value) and not edges[0] - 1e-3 <= value <= edges[-1] + 1e-3:
            side = "below" if value < edges[0] else "above"
            notes.append(f"{vital.name} {value:g} lies {side} all values that the adapter was trained on")
    return notes


def missing_notes(schema: VitalsSchema, x: np.ndarray, implausible: Collection[str]) -> list[str]:
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
        signal = spec.signal.random(rng) if spec.signal is not None and number % 4 != 2 else None
        yield make_example(spec, _views(spec, picture) if number % 4 != 3 else [], x, signal=signal)


def _views(spec: CaseSpec, picture: np.ndarray) -> list[StudyPicture]:
    """Show a picture in each role that the model expects, or once."""
    expected = spec.study.expected if spec.study else ()
    roles = [StudyPicture(picture, "" if role == PRIOR else role, role == PRIOR, 30.0 * (role == PRIOR))
             for role in expected[: spec.study.max_images if spec.study else 0]]  # fmt: skip
    return roles or [StudyPicture(picture)]
