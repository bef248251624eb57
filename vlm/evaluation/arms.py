"""Ablation arms: the same cases with evidence swapped, blanked or withheld."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from vlm.data.case import Example, make_example
from vlm.data.cohort import FactReader, Facts
from vlm.data.dataset import CaseDataset, load_pictures
from vlm.data.shown_evidence import available_evidence, compose_report, with_prior_report
from vlm.data.storage import matrix
from vlm.data.study import PRIOR, StudyPicture

Source = Literal["own", "swapped", "blank", "none"]
"""`blank` is an all-black image; `none` is a missing image, which the model was trained on."""


@dataclass(frozen=True)
class Arm:
    """An ablation arm: the evidence that each case is shown."""

    name: str
    image: Source = "own"
    vitals: Source = "own"


ARMS = (
    Arm("as_given"),
    Arm("image_swapped", image="swapped"),
    Arm("vitals_swapped", vitals="swapped"),
    Arm("image_blanked", image="blank"),
    Arm("image_withheld", image="none"),
    Arm("vitals_withheld", vitals="none"),
    Arm("both_withheld", image="none", vitals="none"),
)


_ONE = {"image": "an image", "vitals": "vitals"}


class ArmCases(torch.utils.data.Dataset[Example]):
    """Dataset of a split's cases under one arm: the arm's evidence, and the case's own report and labels."""

    def __init__(self, arm: Arm, dataset: CaseDataset, seed: int = 0) -> None:
        self.arm, self.dataset = arm, dataset
        rows = dataset.rows
        self.has_image = np.array([dataset.shows_image(index) for index in range(len(rows))], dtype=bool)
        self.vitals = matrix(rows, "vitals", len(dataset.spec.schema))
        has_vitals = np.array([not np.isnan(x).all() for x in self.vitals], dtype=bool)
        _, patients = np.unique(np.array(rows["patient"], dtype=object).astype(str), return_inverse=True)
        self.image_donor = _donors(self.has_image, patients, arm.image, seed)
        self.vitals_donor = _donors(has_vitals, patients, arm.vitals, seed + 1)
        changed = [has for has, shown in ((self.has_image, arm.image), (has_vitals, arm.vitals)) if shown != "own"]
        self.changed = np.logical_or.reduce(changed) if changed else np.zeros(len(rows), dtype=bool)
        """N, bool: cases whose evidence differs from their own. The others have nothing to swap or withhold."""
        self.undefined = self._undefined(has_vitals, patients)
        """Reason why the arm cannot be applied to any case; empty if it can."""

    def _undefined(self, has_vitals: np.ndarray, patients: np.ndarray) -> str:
        for kind, shown, has in (("image", self.arm.image, self.has_image), ("vitals", self.arm.vitals, has_vitals)):
            if shown == "swapped" and len(np.unique(patients[has])) == 1:
                return f"all {has.sum()} test cases with {_ONE[kind]} are of one patient: there is no other's to show"
        if self.arm == ARMS[0] or self.changed.any():
            return ""
        return f"no test case has {' or '.join(_ONE[kind] for kind in _ONE if getattr(self.arm, kind) != 'own')}"

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Example:
        """Build the example of one case: the arm's evidence and the case's own targets."""
        index = int(index)
        if self.arm == ARMS[0]:
            return self.dataset[index]
        row = self.dataset.rows[index]
        return make_example(
            self.dataset.spec,
            self._pictures(index),
            self._vitals(index),
            id=row["id"],
            targets=np.array(row["labels"], dtype=np.float32),
            report=self.dataset.report(index, bool(self.dataset.spec.sections)),
            context=with_prior_report(row["context"] or "", row["prior_report"] or ""),
        )

    @property
    def shown(self) -> list[tuple[int, int, str]]:
        """Image donor, vitals donor (-1 for none) and context of each case; equal tuples are the same input."""
        rows = self.dataset.rows.select_columns(["context", "prior_report"])
        contexts = (with_prior_report(row["context"] or "", row["prior_report"] or "") for row in rows)
        return list(zip(self.image_donor.tolist(), self.vitals_donor.tolist(), contexts, strict=True))

    def facts(self, reader: FactReader) -> list[Facts]:
        """List each case's facts: image facts from the image donor, vitals facts from the vitals donor."""
        wanted = []
        for index in range(len(self)):
            image = self._stated(reader, int(self.image_donor[index]), self.image_donor[index] >= 0, True)
            vitals = self._stated(reader, int(self.vitals_donor[index]), True, self.vitals_donor[index] >= 0)
            wanted.append(
                {name: (image if kind == "image" else vitals)[name] for name, kind in reader.evidence.items()}
            )
        return wanted

    def _stated(self, reader: FactReader, index: int, image: bool, vitals: bool) -> Facts:
        row = self.dataset.rows[max(index, 0)]
        own = self.vitals[max(index, 0)] if vitals else np.full(self.vitals.shape[1], np.nan)
        roles = self.dataset.shown_roles(max(index, 0)) if image else set()
        roles |= {PRIOR} if row["prior_report"] else set()
        seen = available_evidence(self.dataset.spec.schema.names, own, roles, row["context"] or "")
        return reader.read(compose_report(row["sections"], self.dataset.sections, seen))

    def _pictures(self, index: int) -> list[StudyPicture]:
        donor = int(self.image_donor[index])
        if self.arm.image == "blank" and self.has_image[index]:
            size = self.dataset.spec.image.size
            return [StudyPicture(np.zeros((size, size), dtype=np.uint8))]
        if donor < 0 or "image" in self.dataset.withhold:
            return []
        return load_pictures(self.dataset.rows[donor]["images"], self.dataset.spec)

    def _vitals(self, index: int) -> np.ndarray:
        donor = int(self.vitals_donor[index])
        if donor < 0 or "vitals" in self.dataset.withhold:
            return np.full(self.vitals.shape[1], np.nan, dtype=np.float32)
        return self.vitals[donor]


def _donors(has: np.ndarray, patients: np.ndarray, shown: Source, seed: int) -> np.ndarray:
    """Choose the donor row of each row's evidence; -1 for none. `patients` is each row's patient, numbered from 0.

    When swapped, each row with evidence gets another patient's, and each row is a donor once. If one patient has
    more than half of the rows, the others' rows are donors several times. If all rows are one patient's, none is.
    """
    rows = np.where(has, np.arange(len(has)), -1)
    if shown == "own":
        return rows
    if shown in ("none", "blank"):
        return np.full(len(has), -1)
    owners = np.random.default_rng(seed).permutation(np.flatnonzero(has))
    _, first, sizes = np.unique(patients[owners], return_index=True, return_counts=True)
    if len(sizes) < 2:
        return np.full(len(has), -1)
    place = {patients[owners[start]]: start for start in first.tolist()}
    owners = owners[np.argsort([place[patient] for patient in patients[owners]], kind="stable")]  # patient by patient
    rows[owners] = np.roll(owners, sizes.max())  # beyond the end of every patient's own rows
    left = owners[patients[rows[owners]] == patients[owners]]  # of a patient with more than half of the rows
    if len(left):
        rows[left] = np.resize(owners[patients[owners] != patients[left[0]]], len(left))
    return rows


def all_correct(stated: Sequence[Facts], wanted: Sequence[Facts], names: Sequence[str]) -> np.ndarray:
    """Check for each case whether its report states all of these facts correctly; N, bool."""
    return np.array([all(s[n] == w[n] for n in names) for s, w in zip(stated, wanted, strict=True)], dtype=bool)
