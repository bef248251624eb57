"""Parts of a case's evidence that an ablation changes one at a time, and another patient's to show in their place."""

from functools import cached_property
from typing import Literal

import numpy as np

from vlm.data.dataset import CaseDataset
from vlm.data.storage import matrix
from vlm.data.study import PRIOR, role_of

Source = Literal["own", "swapped", "blank", "none"]
"""`blank` is an all-black image; `none` is a missing image, which the model was trained on."""
CONTEXT, TREND, SIGNAL = "context", "trend", "signal"
"""The text shown in the prompt; what is computed from a series of values, but for the last; samples such as an ECG."""
FURTHER_SHARE = 0.1
"""Smallest share of the test cases with a part of the evidence, beside image and vitals, for which it has arms."""
_ONE = {"image": "an image", "vitals": "vitals", PRIOR: "an earlier study", CONTEXT: "a context",
        TREND: "values over time", SIGNAL: "a signal"}  # fmt: skip
_NAMES = {PRIOR: "prior", CONTEXT: "context", TREND: "trend", SIGNAL: "signal"}
_OF_SEVERAL = ("change", "slope", "count")
"""Features of a series that its last value alone does not give."""


class Parts:
    """Evidence of the N cases of a split: all images, the vitals, and further parts where enough cases have them.

    Further parts are the views that mostly accompany another one, such as `lateral`, then `prior` (its images and its
    report), `context`, `trend` and `signal`.
    """

    def __init__(self, dataset: CaseDataset) -> None:
        self.vitals = matrix(dataset.rows, "vitals", len(dataset.spec.schema))
        """N × m."""
        self.roles = [dataset.shown_roles(index) for index in range(len(dataset))]
        texts = dataset.rows.select_columns(["context", "prior_report"])
        self.signals = dataset.has_signal()
        """N, bool."""
        self.contexts = [context or "" for context in texts["context"]]
        self.prior_reports = [report or "" for report in texts["prior_report"]]
        series = dataset.spec.schema.features.values()
        self.trend_places = [places[name] for places in series for name in _OF_SEVERAL]
        """Columns of the vitals that a trend consists of."""
        self.change_places = [places["change"] for places in series]
        self.count_places = [places["count"] for places in series]
        self._expected = dataset.spec.study.expected if dataset.spec.study else ()
        self._cells = dataset.rows.select_columns(["images"])["images"] if self._expected else []

    @cached_property
    def views(self) -> tuple[str, ...]:
        """Views that the model expects and that stand beside another image in most cases that have them."""
        counts = {view: sum(view in roles for roles in self.roles) for view in self._expected if view != PRIOR}
        first = max(counts, key=lambda view: counts[view], default="")
        return tuple(view for view in counts if view not in (first, *_ONE) and self._accompanies(view))

    def _accompanies(self, view: str) -> bool:
        others = [{*map(role_of, cells)} - {PRIOR, view} for cells in self._cells if view in map(role_of, cells)]
        return bool(others) and sum(map(bool, others)) > len(others) / 2

    @cached_property
    def further(self) -> tuple[str, ...]:
        """Further parts that enough cases have."""
        return tuple(part for part in (*self.views, *_NAMES) if self.has(part).sum() > FURTHER_SHARE * len(self.roles))

    @property
    def of_images(self) -> tuple[str, ...]:
        """Parts that consist of images: `image`, which is those of no further part, then views and `prior`."""
        return ("image", *(part for part in self.further if part not in (CONTEXT, TREND, SIGNAL)))

    def of_role(self, role: str) -> str:
        """Return the part to which an image of this role belongs."""
        return role if role in self.of_images else "image"

    def has(self, part: str) -> np.ndarray:
        """Find the cases that have a part; N, bool."""
        if part not in self._has:
            self._has[part] = np.array(self._find(part), dtype=bool)
        return self._has[part]

    @cached_property
    def _has(self) -> dict[str, np.ndarray]:
        return {}

    def _find(self, part: str) -> "list[bool] | np.ndarray":
        if part == "image":
            return [bool(roles) for roles in self.roles]
        if part == "vitals":
            return ~np.isnan(self.vitals).all(axis=1)
        if part == TREND:
            return ~np.isnan(self.vitals[:, self.change_places]).all(axis=1)
        if part == SIGNAL:
            return self.signals
        if part == CONTEXT:
            return [bool(text.strip()) for text in self.contexts]
        reports = self.prior_reports if part == PRIOR else [""] * len(self.roles)
        return [part in roles or bool(report) for roles, report in zip(self.roles, reports, strict=True)]


def one(part: str) -> str:
    """Name one piece of a part of the evidence in a sentence, with its article."""
    return _ONE.get(part, f"a view {part}")


def choose_donors(has: np.ndarray, patients: np.ndarray, shown: Source, seed: int) -> np.ndarray:
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
