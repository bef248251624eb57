"""Ablation arms: the same cases with evidence swapped, blanked or withheld."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vlm.data.case import Example
from vlm.data.cohort import FactReader, Facts
from vlm.data.dataset import CaseDataset
from vlm.data.shown_evidence import available_evidence, compose_report, with_prior_report
from vlm.data.study import PRIOR, StudyPicture, sorted_pictures
from vlm.data.study_features import make_shown_example
from vlm.evaluation.evidence_parts import CONTEXT, SIGNAL, TREND, Parts, Source, choose_donors, one

PRIOR_REPORT = "prior_report"
"""The text of `prior`; its images are with the other images where these are swapped together."""


@dataclass(frozen=True)
class Arm:
    """An ablation arm: the evidence that each case is shown."""

    name: str
    image: Source = "own"
    """Source of all images of a case."""
    vitals: Source = "own"
    part: str = ""
    """The one further part whose source differs: a view, `prior`, `context`, `trend` or `signal`; empty for none."""
    shown: Source = "own"
    """Source of that part."""

    @property
    def title(self) -> str:
        """Return the name in words."""
        return self.name.replace("_", " ")

    @property
    def changes(self) -> dict[str, Source]:
        """Map each part of the evidence that is not the case's own to its source."""
        sources = {"image": self.image, "vitals": self.vitals, self.part: self.shown}
        return {part: source for part, source in sources.items() if source != "own"}


ARMS = (
    Arm("as_given"),
    Arm("image_swapped", image="swapped"),
    Arm("vitals_swapped", vitals="swapped"),
    Arm("image_blanked", image="blank"),
    Arm("image_withheld", image="none"),
    Arm("vitals_withheld", vitals="none"),
    Arm("both_withheld", image="none", vitals="none"),
)


def all_arms(dataset: CaseDataset) -> list[Arm]:
    """List the arms of a split: `ARMS`, and two for each further part of the evidence that its cases have."""
    arms = list(ARMS)
    for part in Parts(dataset).further:
        name = part.replace(" ", "_")
        arms += [Arm(f"{name}_swapped", part=part, shown="swapped"), Arm(f"{name}_withheld", part=part, shown="none")]
    return arms


class ArmCases(torch.utils.data.Dataset[Example]):
    """Dataset of a split's cases under one arm: the arm's evidence, and the case's own report and labels."""

    def __init__(self, arm: Arm, dataset: CaseDataset, seed: int = 0) -> None:
        self.arm, self.dataset, self.parts = arm, dataset, Parts(dataset)
        self.vitals, self.has_image = self.parts.vitals, self.parts.has("image")
        _, patients = np.unique(np.array(dataset.rows["patient"], dtype=object).astype(str), return_inverse=True)
        self.image_donor = choose_donors(self.has_image, patients, arm.image, seed)
        self.vitals_donor = choose_donors(self.parts.has("vitals"), patients, arm.vitals, seed + 1)
        self._part_donor = choose_donors(self.parts.has(arm.part), patients, arm.shown, seed + 2)
        changed = [self.parts.has(part) for part in arm.changes]
        self.changed = np.logical_or.reduce(changed) if changed else np.zeros(len(dataset), dtype=bool)
        """N, bool: cases whose evidence differs from their own. The others have nothing to swap or withhold."""
        self.undefined = self._undefined(patients)
        """Reason why the arm cannot be applied to any case; empty if it can."""

    def _undefined(self, patients: np.ndarray) -> str:
        for part, shown in self.arm.changes.items():
            has = self.parts.has(part)
            if shown == "swapped" and len(np.unique(patients[has])) == 1:
                return f"all {has.sum()} test cases with {one(part)} are of one patient: there is no other's to show"
        if self.arm == ARMS[0] or self.changed.any():
            return ""
        return f"no test case has {' or '.join(map(one, self.arm.changes))}"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        """Build the example of one case: the arm's evidence and the case's own targets."""
        index = int(index)
        if self.arm == ARMS[0]:
            return self.dataset[index]
        row = self.dataset.rows[index]
        hidden = "vitals" in self.dataset.withhold
        return make_shown_example(
            self.dataset.spec,
            self.dataset.features,
            self._pictures(index),
            np.full(self.vitals.shape[1], np.nan, dtype=np.float32) if hidden else self._vitals(index),
            id=row["id"],
            targets=np.array(row["labels"], dtype=np.float32),
            report=self.dataset.report(index, bool(self.dataset.spec.sections)),
            context=with_prior_report(*self._texts(index)),
            signal=self._signal(index),
        )

    @property
    def shown(self) -> list[tuple[int | str, ...]]:
        """Image donor, vitals donor (-1 for none), donors of further parts, and the texts of each case.

        Equal tuples are the same input.
        """
        further = [self.donor(part).tolist() for part in self.parts.further if part != CONTEXT]
        texts = [with_prior_report(*self._texts(index)) for index in range(len(self))]
        return list(zip(self.image_donor.tolist(), self.vitals_donor.tolist(), *further, texts, strict=True))

    def donor(self, part: str) -> np.ndarray:
        """Return the row whose evidence of a part each case is shown; N, -1 for none."""
        if part == "image":
            return self.image_donor
        if part == "vitals":
            return self.vitals_donor
        if self.arm.part == part or (self.arm.part, part) == (PRIOR, PRIOR_REPORT):
            return self._part_donor
        rows = np.arange(len(self)) if part in (CONTEXT, PRIOR_REPORT, SIGNAL) else self.image_donor
        rows = self.vitals_donor if part == TREND else rows
        has = self.parts.has(PRIOR if part == PRIOR_REPORT else part)
        return np.where((rows >= 0) & has[rows], rows, -1)

    def facts(self, reader: FactReader) -> list[Facts]:
        """List each case's facts: each as the donor of its evidence has it, where that evidence is shown."""
        donors = {kind: self.donor(kind) for kind in dict.fromkeys(reader.evidence.values())}
        wanted = []
        for index in range(len(self)):
            seen = self._available(index)
            stated = {}
            for kind, rows in donors.items():
                row = self.dataset.rows[int(rows[index]) if rows[index] >= 0 else index]
                stated[kind] = reader.read(compose_report(row["sections"], self.dataset.sections, seen))
            wanted.append(reader.combine(stated))
        return wanted

    def _available(self, index: int) -> set[str]:
        """Collect the evidence that a case is shown."""
        context, prior_report = self._texts(index)
        roles = {PRIOR} if prior_report else set()
        for donor, parts in self._image_donors(index).items():
            roles |= {role for role in self.parts.roles[donor] if self.parts.of_role(role) in parts}
        signal, names = bool(self.donor(SIGNAL)[index] >= 0), self.dataset.spec.schema.names
        return available_evidence(names, self._vitals(index), roles, context, signal)

    def _texts(self, index: int) -> tuple[str, str]:
        """Return the context and the prior report that a case is shown."""
        donors = int(self.donor(CONTEXT)[index]), int(self.donor(PRIOR_REPORT)[index])
        texts = self.parts.contexts, self.parts.prior_reports
        context, report = (known[row] if row >= 0 else "" for known, row in zip(texts, donors, strict=True))
        return context, report

    def _image_donors(self, index: int) -> dict[int, set[str]]:
        """Map each row whose images a case is shown to the parts that it is shown of them."""
        donors: dict[int, set[str]] = {}
        for part in self.parts.of_images:
            donors.setdefault(int(self.donor(part)[index]), set()).add(part)
        donors.pop(-1, None)
        return donors

    def _pictures(self, index: int) -> list[StudyPicture]:
        if self.arm.image == "blank" and self.has_image[index]:
            size, features = self.dataset.spec.image.size, self.dataset.features
            return [StudyPicture(np.zeros((size, size), dtype=np.uint8))] if features is None else []
        if "image" in self.dataset.withhold:
            return []
        shown = [
            item
            for donor, parts in self._image_donors(index).items()
            for item in self.dataset.pictures(donor)
            if self.parts.of_role(item.role) in parts
        ]
        return sorted_pictures(shown)[: self.dataset.spec.study_images]

    def _signal(self, index: int) -> np.ndarray | None:
        """Return the samples of the signal that a case is shown, C × l, or None."""
        donor = int(self.donor(SIGNAL)[index])
        hidden = donor < 0 or SIGNAL in self.dataset.withhold
        return None if hidden else self.dataset.signal(self.dataset.rows[donor])

    def _vitals(self, index: int) -> np.ndarray:
        """Return the values that a case is shown, m; without its trend, as if only the last had been measured."""
        donor, trend = int(self.vitals_donor[index]), int(self._part_donor[index])
        if donor < 0:
            return np.full(self.vitals.shape[1], np.nan, dtype=np.float32)
        values = self.vitals[donor].copy()
        if self.arm.part == TREND and self.parts.has(TREND)[index]:
            places = self.parts.trend_places
            values[places] = self.vitals[trend, places] if trend >= 0 else self._alone(values)
        return values

    def _alone(self, values: np.ndarray) -> np.ndarray:
        counts = np.isin(self.parts.trend_places, self.parts.count_places) & ~np.isnan(values[self.parts.trend_places])
        return np.where(counts, 1, np.nan).astype(values.dtype)


def all_correct(stated: Sequence[Facts], wanted: Sequence[Facts], names: Sequence[str]) -> np.ndarray:
    """Check for each case whether its report states all of these facts correctly; N, bool."""
    return np.array([all(s[n] == w[n] for n in names) for s, w in zip(stated, wanted, strict=True)], dtype=bool)
