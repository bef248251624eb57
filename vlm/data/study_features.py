"""Hold the features that a frozen encoder makes of a split's images; cases read them in place of the pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from vlm.data.case import CaseSpec, Example, make_example
from vlm.data.study import StudyPicture, role_numbers


@dataclass
class StudyFeatures:
    """Precomputed features of a frozen encoder for all images of a split; they replace the pixels."""

    values: np.ndarray
    """M × places × C, the images of each case in turn."""
    starts: np.ndarray
    """N + 1: the images of case i are starts[i] to starts[i + 1]."""
    roles: list[StudyPicture]
    """M, without their pictures."""

    def of(self, index: int) -> list[StudyPicture]:
        """Return the images of a case with features as pictures."""
        places = range(self.starts[index], self.starts[index + 1])
        return [self.roles[place]._replace(picture=np.array(self.values[place])) for place in places]

    def select(self, rows: np.ndarray) -> "StudyFeatures":
        """Return the features of some cases, in their order."""
        places = [place for row in rows for place in range(self.starts[row], self.starts[row + 1])]
        starts = np.cumsum([0, *np.diff(self.starts)[rows]])
        return StudyFeatures(self.values[places], starts, [self.roles[place] for place in places])


def make_shown_example(
    spec: CaseSpec, features: StudyFeatures | None, pictures: Sequence[StudyPicture], vitals: np.ndarray, **rest: Any
) -> Example:
    """Build an example as `make_example` does, of pictures, or of the `features` of a split that stand in their place.

    `rest` are the further arguments of `make_example`.
    """
    if features is None:
        return make_example(spec, pictures, vitals, **rest)
    shown = [item.picture for item in pictures] or [np.zeros(features.values.shape[1:], np.float32)]
    return make_example(spec, [], vitals, **rest) | {
        "pixel_values": torch.stack([torch.from_numpy(image) for image in shown]),
        "has_image": bool(pictures),
        "image_roles": torch.from_numpy(role_numbers(pictures, spec.study)),
    }  # type: ignore[return-value]
