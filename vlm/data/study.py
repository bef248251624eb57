"""Describe the images of a study: their view, current or prior, the days between, and their order."""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vlm.errors import UserError, nearest
from vlm.plain import is_clean, shortened

if TYPE_CHECKING:  # one case needs no tables, and their libraries take a second to import
    import datasets

PRIOR = "prior"
"""Role of an image of an earlier study, whatever its view."""
FRONTAL = ("PA", "AP")
"""Views of which a study has one or the other."""
MOST_IMAGES, MOST_VIEWS, LONGEST_VIEW = 32, 32, 40
EXPECTED_SHARE = 0.1
"""Smallest share of training studies with a role for which its absence is told to the model."""
LONGEST_DAYS = 40_000.0
"""Largest number of days between two studies of one person."""
_SYNONYMS = {
    "pa": "PA", "posteroanterior": "PA", "posterior anterior": "PA", "ap": "AP", "anteroposterior": "AP",
    "anterior posterior": "AP", "lateral": "lateral", "lat": "lateral", "ll": "lateral", "rl": "lateral",
    "left lateral": "lateral", "right lateral": "lateral",
}  # fmt: skip
"""Accepted spelling → view; another word is a view of its own, in lower case."""
Cell = dict[str, Any]
"""One image of a row: path, view, prior, days."""


class StudyPicture(NamedTuple):
    """One decoded image of a study with its role."""

    picture: np.ndarray
    """S × S, uint8."""
    view: str = ""
    """View, as `view_name` returns it; empty if it is not known."""
    prior: bool = False
    """True for an image of an earlier study."""
    days: float = 0.0
    """Days before this study; 0 for a current image, NaN for a prior of unknown time."""

    @property
    def role(self) -> str:
        """`prior`, or the view of a current image."""
        return PRIOR if self.prior else self.view


class FlatImages(NamedTuple):
    """Images of N rows, M in all, row by row."""

    counts: np.ndarray
    """N, number of images of each row."""
    paths: np.ndarray
    """M, text."""
    views: np.ndarray
    """M, text."""
    prior: np.ndarray
    """M, bool."""
    days: np.ndarray
    """M, float32."""

    @property
    def row(self) -> np.ndarray:
        """Row of each image, M."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def first(self) -> np.ndarray:
        """Path of the first image of each row, N, text; empty without one."""
        starts = np.cumsum(self.counts) - self.counts
        there = self.counts > 0
        paths = np.full(len(self.counts), "", dtype=object)
        paths[there] = self.paths[starts[there]]
        return paths


def image_counts(rows: "datasets.Dataset") -> np.ndarray:
    """Count the images of each row, N, without reading their names."""
    import pyarrow.compute as pc

    from vlm.data.storage import column

    counts = [pc.list_value_length(chunk).to_numpy(zero_copy_only=False) for chunk in column(rows, "images").chunks]
    return np.concatenate([np.empty(0, np.int64), *counts]).astype(np.int64)


def flat_images(rows: "datasets.Dataset") -> FlatImages:
    """Read the images of all rows without a Python object for each row."""
    import pyarrow.compute as pc

    from vlm.data.storage import column

    cells = [chunk.flatten() for chunk in column(rows, "images").chunks]

    def values(name: str, kind: type) -> np.ndarray:
        parts = [pc.struct_field(part, name).to_numpy(zero_copy_only=False) for part in cells]
        return np.concatenate([np.empty(0, kind), *(part.astype(kind) for part in parts)])

    return FlatImages(image_counts(rows), values("path", object), values("view", object), values("prior", bool),
                      values("days", np.float32))  # fmt: skip


@dataclass(frozen=True)
class StudySpec:
    """Images that a model takes of one case, fitted on the training split; None in a spec stands for one image."""

    max_images: int
    """Most images of a case."""
    views: tuple[str, ...] = ()
    """Views that the model knows, sorted."""
    expected: tuple[str, ...] = ()
    """Roles whose absence the model is told: views of current images, and `prior`. PA stands for AP too, or AP for PA:
    a study has one of the two."""

    def __post_init__(self) -> None:
        if type(self.max_images) is not int or not 1 <= self.max_images <= MOST_IMAGES:
            raise UserError(f"study: max_images must be 1 to {MOST_IMAGES}, not {self.max_images!r:.20}")
        if len(self.views) > MOST_VIEWS or len(set(self.views)) < len(self.views):
            raise UserError(f"study: views: {MOST_VIEWS} different ones at most")
        if any(view_name(view) != view or not view for view in self.views):
            raise UserError("study: views: one is no plain word")
        if len(set(self.expected)) < len(self.expected) or not set(self.expected) <= {*self.views, PRIOR}:
            raise UserError("study: expected: names of views, or prior, each once")

    @classmethod
    def fit(cls, rows: "datasets.Dataset", max_images: int) -> "StudySpec | None":
        """Fit to the training rows; None if every case has at most one image, without a view or an earlier study.

        Raises `UserError` for more views than a model takes.
        """
        images = flat_images(rows)
        words = sorted(set(images.views) - {""})
        if not words and not images.prior.any() and images.counts.max(initial=0) <= 1:
            return None
        if len(words) > MOST_VIEWS:
            raise UserError(
                f"the images have {len(words)} views, more than {MOST_VIEWS}, such as {', '.join(words[:5])}"
            )
        roles = np.where(images.prior, PRIOR, images.views)
        frontal = max(FRONTAL, key=lambda view: int((roles == view).sum()))
        roles[np.isin(roles, FRONTAL)] = frontal
        shares = {role: len(np.unique(images.row[roles == role])) / max(len(rows), 1) for role in (*words, PRIOR)}
        return cls(max_images, tuple(words), tuple(role for role, share in shares.items() if share >= EXPECTED_SHARE))

    def describe(self) -> str:
        """Describe the choice in one line, to print."""
        views, expected = (", ".join(names) or "none" for names in (self.views, self.expected))
        why = "the training cases have several, or their roles"
        return f"images of a case: up to {self.max_images} ({why}); views: {views}; told of when absent: {expected}"

    def number(self, view: str) -> int:
        """Number a view from 1; 0 if it is unknown to the model or empty."""
        return self.views.index(view) + 1 if view in self.views else 0

    def check_view(self, view: str, where: str) -> None:
        """Raise `UserError` for a view that the model was not trained with."""
        if view and view not in self.views:
            near = nearest(view, self.views)
            hint = f"; did you mean {near}?" if near else ""
            known = ", ".join(self.views) or "none"
            raise UserError(f"{where}: the adapter knows no view {shortened(view)}, but {known}{hint}")

    def missing_names(self) -> list[str]:
        """Name the lack of each expected role, such as `no lateral`."""
        return [f"no {role}" for role in self.expected]

    def filled_by(self, role: str) -> str:
        """Return the expected role that an image of a role fills: its own, or the other frontal view; else `""`."""
        alike = FRONTAL if role in FRONTAL else (role,)
        return next((one for one in alike if one in self.expected), "")

    @cached_property
    def slots(self) -> list[int]:
        """Number of the expected role that each role fills, -1 for none; a role is 2 · view + prior."""
        roles = [role for view in ("", *self.views) for role in (view, PRIOR)]
        places = {"": -1, **{role: place for place, role in enumerate(self.expected)}}
        return [places[self.filled_by(role)] for role in roles]

    def absent(self, roles: np.ndarray) -> int:
        """Count the expected roles that no image of a case fills; `roles` is n × 3: view, prior, days."""
        return len(self.expected) - len({self.slots[int(2 * view + prior)] for view, prior, _ in roles} - {-1})


def view_name(word: str, where: str = "view") -> str:
    """Normalise the name of a view: `LATERAL` and `LL` → `lateral`, `pa` → `PA`, another one in lower case.

    Raises `UserError` for a text that is no plain word.
    """
    plain = re.sub(r"[\s_\-]+", " ", word).strip()
    if len(plain) > LONGEST_VIEW or not is_clean(plain) or re.search(r"[<>,;|]", plain):
        raise UserError(f"{where}: {shortened(word)} is no view; write a word of at most {LONGEST_VIEW} letters")
    lower = plain.lower()
    if lower == PRIOR:
        raise UserError(f"{where}: prior says when an image was taken, not its view; write PA, AP, lateral or the like")
    return _SYNONYMS.get(lower, lower)


def check_days(days: float, where: str) -> float:
    """Return the days from an earlier study to this one, NaN if unknown; raises `UserError` for a prior dated after."""
    if days < 0:
        raise UserError(f"{where}: {days:g} days before the study is after it; a prior is an earlier image")
    if days > LONGEST_DAYS:
        raise UserError(f"{where}: {days:g} days are more than {LONGEST_DAYS:,.0f}, longer than a life")
    return float(days)


def role_of(cell: Cell) -> str:
    """Return the role of an image of a row: `prior`, or the view of a current one, empty if it is not known."""
    return PRIOR if cell["prior"] else str(cell["view"] or "")


def image_cell(path: str, view: str = "", prior: bool = False, days: float = 0.0) -> Cell:
    """Build the cell of one image."""
    return {"path": path, "view": view, "prior": prior, "days": days}


def first_current(cells: Sequence[Cell]) -> Cell | None:
    """Return the first current image of a row, or None."""
    return next((cell for cell in cells if not cell["prior"]), None)


def chosen_cells(cells: Sequence[Cell], study: StudySpec | None) -> list[Cell]:
    """Choose the images that a model reads of a row: current before prior, the latest prior first, as many as it takes.

    A model of one image reads the first current one.
    """
    if study is None:
        current = first_current(cells)
        return [current] if current else []
    if len(cells) < 2:
        return list(cells)
    keys = [(cell["prior"], cell["view"] or "", math.isnan(cell["days"]), cell["days"], cell["path"]) for cell in cells]
    order = sorted(range(len(cells)), key=keys.__getitem__)
    return [cells[place] for place in order][: study.max_images]


def sorted_pictures(pictures: Iterable[StudyPicture]) -> list[StudyPicture]:
    """Sort the images of a study: current before prior, by view, the latest first, then by their pixels.

    So the order in which images of one role were given does not matter.
    """

    def key(item: StudyPicture) -> tuple[bool, str, bool, float, bytes]:
        unknown = math.isnan(item.days)
        digest = hashlib.sha256(np.ascontiguousarray(item.picture).tobytes()).digest()
        return item.prior, item.view, unknown, 0.0 if unknown else item.days, digest

    found = list(pictures)
    return sorted(found, key=key) if len(found) > 1 else found


def role_numbers(pictures: Sequence[StudyPicture], study: StudySpec | None) -> np.ndarray:
    """Number the roles of n pictures; n × 3 float32: view from 1 (0 unknown), prior (0 or 1), days."""
    rows = [(study.number(p.view) if study else 0, p.prior, p.days) for p in pictures] or [(0, False, 0.0)]
    return np.array(rows, dtype=np.float32)


def roles_of(numbers: np.ndarray, study: StudySpec | None) -> list[StudyPicture]:
    """Return the roles that `role_numbers` numbered (n × 3), with empty pictures."""
    views, nothing = ("", *(study.views if study else ())), np.empty(0, np.uint8)
    return [StudyPicture(nothing, views[int(view)], bool(prior), float(days)) for view, prior, days in numbers]


def cell_numbers(cells: Sequence[Cell], study: StudySpec | None) -> np.ndarray:
    """Number the roles of the images that a model reads of a row, without decoding them; n × 3."""
    nothing, chosen = np.empty(0, np.uint8), chosen_cells(cells, study)
    return role_numbers([StudyPicture(nothing, c["view"] or "", c["prior"], c["days"]) for c in chosen], study)
