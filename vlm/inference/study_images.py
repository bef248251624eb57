"""Read the images of one case with their roles, and say what is missing or doubtful."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlm.data.case import CaseSpec, Example
from vlm.data.images.image import is_blank
from vlm.data.images.square import Square, as_square, is_nearly_uniform
from vlm.data.study import PRIOR, StudyPicture, StudySpec, check_days, roles_of, view_name
from vlm.errors import UserError
from vlm.report import ReadImage


class StudyImage(NamedTuple):
    """One image of a case, as it is given."""

    image: str | Path | Square | np.ndarray
    """Image file, or the square that was read from one; as an array S × S, or S × S × 3 in colour, uint8."""
    view: str = ""
    """View, such as PA, AP or lateral; empty if it is not known."""
    prior: bool = False
    """True for an image of an earlier study."""
    days: float | None = None
    """Days from the earlier study to this one; None if they are not known."""


Images = str | Path | Square | np.ndarray | Sequence[StudyImage | str | Path] | None
"""One image, several with their roles, or None."""


def as_images(images: Images) -> list[StudyImage]:
    """List the images of a case; one without a role is a current image of unknown view."""
    if images is None:
        return []
    if isinstance(images, str | Path | Square | np.ndarray):
        return [StudyImage(images)]
    return [item if isinstance(item, StudyImage) else StudyImage(item) for item in images]


def read_study(
    images: Images, spec: CaseSpec, read: Callable[[str | Path], Square]
) -> tuple[list[StudyPicture], list[str]]:
    """Read the images of a case with `read`; returns them with their roles, and warnings.

    Raises `UserError` for more images than the adapter takes, for a role that it was not trained with, for a prior
    dated after, and as `read` does.
    """
    given = as_images(images)
    roles = check_roles(given, spec)
    squares = [read(item.image) if isinstance(item.image, str | Path) else as_square(item.image, spec.image)
               for item in given]  # fmt: skip
    pictures = [role._replace(picture=square.pixels) for role, square in zip(roles, squares, strict=True)]
    return pictures, [*_warnings(pictures, spec), *_picture_warnings(squares), *_modality_warnings(squares, spec)]


def check_roles(given: Sequence[StudyImage], spec: CaseSpec) -> list[StudyPicture]:
    """Return the roles of the images of a case, without their pictures; raises `UserError` as `read_study` does."""
    _check_count(given, spec)
    roles = []
    for number, item in enumerate(given, 1):
        where = "the image" if len(given) == 1 else f"image {number} of {len(given)}"
        view = view_name(item.view, where)
        days = 0.0
        if spec.study is not None:
            spec.study.check_view(view, where)
        elif view:
            raise UserError(f"{where}: the adapter was trained without views; leave {view} away")
        if item.prior:
            days = math.nan if item.days is None else check_days(item.days, where)
        elif item.days:
            raise UserError(f"{where}: a current image has no days before the study; say that it is a prior")
        roles.append(StudyPicture(np.empty(0, np.uint8), view, item.prior, days))
    return roles


def images_read(example: Example, study: StudySpec | None) -> tuple[ReadImage, ...]:
    """Name the images of an example by their roles, in the model's order."""
    if not example["has_image"]:
        return ()
    roles = roles_of(example["image_roles"].numpy(), study)
    return tuple(ReadImage(r.view, r.prior, r.days if r.prior and not math.isnan(r.days) else None) for r in roles)


def _check_count(given: Sequence[StudyImage], spec: CaseSpec) -> None:
    if len(given) > spec.study_images:
        way_out = "one: it was trained on one a case" if spec.study is None else f"{spec.study.max_images} at most"
        raise UserError(f"{len(given)} images were given; the adapter reads {way_out}")
    if spec.study is None and any(item.prior for item in given):
        raise UserError("an earlier image was given; the adapter was trained without any")


def _warnings(pictures: Sequence[StudyPicture], spec: CaseSpec) -> list[str]:
    if not pictures:
        return ["no image given"]
    warnings = []
    if all(item.prior for item in pictures):
        warnings.append("no current image given")
    digests = [item.picture.tobytes() for item in pictures]
    if len(set(digests)) < len(digests):
        warnings.append("two of the images are the same picture")
    if any(item.prior and math.isnan(item.days) for item in pictures):
        warnings.append("the time of the prior is not given")
    if spec.study is not None:
        roles = {spec.study.filled_by(item.role) for item in pictures}
        missing = [PRIOR if role == PRIOR else f"{role} view" for role in spec.study.expected if role not in roles]
        warnings += [f"not given: {', '.join(missing)}"] if missing else []
    return warnings


def _picture_warnings(squares: Sequence[Square]) -> list[str]:
    """Say which pictures show next to nothing, and which lose their colours; one of one value is told as missing."""
    told = {
        "in colour; the adapter was trained in grey": [square.loses_color for square in squares],
        "almost uniform, as a blank scan or an empty page is": [
            is_nearly_uniform(square.pixels) and not is_blank(square.pixels) for square in squares
        ],
    }
    return [f"{_which(sum(which), len(which))} {what}" for what, which in told.items() if any(which)]


def _modality_warnings(squares: Sequence[Square], spec: CaseSpec) -> list[str]:
    """Say which modalities the adapter was not trained on; nothing where it keeps none."""
    others = [square.modality for square in squares if square.modality not in ("", *spec.modalities)]
    if not others or not spec.modalities:
        return []
    several = f"the modality of {len(others)} of the {len(squares)} pictures"
    whose = "the picture's modality" if len(squares) == 1 else several
    return [f"{whose} is {', '.join(sorted(set(others)))}; the adapter was trained on {', '.join(spec.modalities)}"]


def _which(count: int, of: int) -> str:
    return "the picture is" if of == 1 else f"{count} of the {of} pictures {'is' if count == 1 else 'are'}"
