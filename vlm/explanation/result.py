"""Hold an explanation as data, for a page or a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib import colormaps

from vlm.data.images.color import rgb
from vlm.data.images.image import Box
from vlm.errors import UserError
from vlm.report import Report

STRENGTH = 0.55
"""Opacity of the overlay where the heat is largest."""


class ShownImage(NamedTuple):
    """An image of the case, as it is shown."""

    name: str
    """Its role, such as `PA`, `lateral` or `prior, 30 days`; `image` where none was said."""
    pixels: np.ndarray
    """H × W uint8, or H × W × 3 in colour, in its own aspect ratio."""


class TintedWord(NamedTuple):
    """A piece of the draft, and the share of each source in it; the shares add up to 1."""

    text: str
    """The word and the spaces after it; all pieces together are the draft."""
    image: float
    vitals: float
    language: float
    """Share of the language model alone."""


@dataclass(frozen=True)
class Attribution:
    """Attributions of a span of the draft."""

    start: int
    end: int
    """End of its characters in the draft: `report.text[start:end]`."""
    image: float
    """The images' contribution to its log-probability, nats."""
    vitals: float
    """The vitals' contribution, nats."""
    alone: float
    """Its log-probability with neither."""

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of images, vitals and language.

        The language's share is exp(−|image| − |vitals|): where both speak for the word it is its probability with
        nothing given over that with everything given. The rest is divided in proportion to the nats.
        """
        image, vitals = abs(self.image), abs(self.vitals)
        language = float(np.exp(-image - vitals))
        rest = (1 - language) / max(image + vitals, 1e-12)
        return image * rest, vitals * rest, language


@dataclass(frozen=True)
class ExplainedWords(Attribution):
    """Chosen words with their attributions to places in the images and to vitals."""

    text: str
    cells: np.ndarray | None
    """n × h × w, nats of each cell of the CNN's last grid of each image; adds up to `image`. None without an image."""
    heat: np.ndarray | None
    """n × h × w, heat of the words, on the finer grid of an earlier stage; without a unit. None without an image."""
    by_vital: dict[str, float]
    """Nats of each vital; add up to `vitals`, a missing one is exactly 0."""
    completeness_error: float
    """Error of the sums, as a share of the evidence's contribution."""
    steps: int
    """Number of points on the path of integration."""

    @property
    def by_image(self) -> list[float]:
        """Nats of each image, the sum of its cells; n, they add up to `image`."""
        return [] if self.cells is None else [float(cells.sum()) for cells in self.cells]

    @property
    def image_shares(self) -> list[float]:
        """Share of each image in what the images contribute: its nats without their sign, over those of all; n."""
        sizes = [abs(nats) for nats in self.by_image]
        return [size / max(sum(sizes), 1e-12) for size in sizes]


@dataclass(frozen=True)
class ExplainedLabel:
    """A label's probability and the heat map of its logit."""

    name: str
    probability: float
    heat: np.ndarray | None
    """n × h × w, on the grid of the CNN's last stage but one, without a unit; None without an image."""


@dataclass(frozen=True)
class Explanation:
    """Explanation of a drafted report. Maps lie over the square that the CNN saw; `overlay` lays them on an image."""

    report: Report
    pictures: tuple[ShownImage, ...]
    """The n images in the order of the maps: current before prior, by view; empty where none was read."""
    words: tuple[Attribution, ...]
    """Every word and punctuation mark of the draft, in order."""
    passages: tuple[ExplainedWords, ...]
    """The chosen words."""
    labels: tuple[ExplainedLabel, ...]
    vitals: tuple[str, ...]
    """Names of all vitals that the model can read."""
    notes: tuple[str, ...] = ()
    """Notes for the reader: no image, an error that stayed too large."""

    @property
    def completeness_error(self) -> float:
        """Largest completeness error of the chosen words; 0 where there are none."""
        return max((words.completeness_error for words in self.passages), default=0.0)

    @cached_property
    def leading_label(self) -> ExplainedLabel | None:
        """The most probable label; the first in the adapter's order among those that are equal to a tenth of a %."""
        return max(self.labels, key=lambda label: round(label.probability, 3), default=None)

    def tinted_words(self) -> list[TintedWord]:
        """Split the draft into pieces, each with the shares of image, vitals and language."""
        text = self.report.text
        stops = [*(word.start for word in self.words[1:]), len(text)][: len(self.words)]
        return [TintedWord(text[word.start : stop], *word.shares) for word, stop in zip(self.words, stops, strict=True)]

    def heat_of(self, name: str | None = None, image: int = 0) -> np.ndarray:
        """Return the heat of a label or of chosen words over an image (H × W, 0 to 1), given its place in `pictures`.

        Without a name it is the leading label's. Only positive heat is shown, of all images on one scale: 1 is the
        largest of any of them. Raises `UserError` for another name or image, and where there was no image.
        """
        known: dict[str, np.ndarray | None] = {}
        for words in self.passages:  # repeated words share one map
            seen = known.get(words.text.lower())
            known[words.text.lower()] = words.heat if seen is None or words.heat is None else seen + words.heat
        known |= {label.name: label.heat for label in self.labels}
        name = name if name is not None else getattr(self.leading_label, "name", next(iter(known), ""))
        key = name if name in known else name.lower()
        if key not in known:
            raise UserError(f"{name!r} is neither a label nor an explained word; known: {', '.join(known) or 'none'}")
        heat = known[key]
        if heat is None or not self.pictures:
            raise UserError("no image was read, so there is nothing to lay a heat over")
        if not 0 <= image < len(self.pictures):
            raise UserError(f"image {image}: the case has {len(self.pictures)}, numbered from 0")
        shown = [positive_heat(cells, item.pixels.shape[:2]) for cells, item in zip(heat, self.pictures, strict=True)]
        return shown[image] / max(*(float(heat.max()) for heat in shown), 1e-12)

    def lines(self) -> list[str]:
        """Format one aligned line for each of the chosen words, the completeness error, and the notes."""
        width = max((len(words.text) for words in self.passages), default=0)
        lines = [
            f"{words.text:<{width}}  image {image:4.0%}  vitals {vitals:4.0%}  language {language:4.0%}"
            f"{self._shares_line(words)}"
            for words in self.passages
            for image, vitals, language in [words.shares]
        ]
        error = [f"completeness error {self.completeness_error:.2%} at most"] if lines else []
        return [*lines, *error, *(f"note: {note}" for note in self.notes)]

    def _shares_line(self, words: ExplainedWords) -> str:
        """Format the share of each image; empty for one image."""
        if len(self.pictures) < 2:
            return ""
        pairs = zip(self.pictures, words.image_shares, strict=True)
        return "  of the images: " + "; ".join(f"{image.name} {share:.0%}" for image, share in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON: the maps as rows of cells by the name of their image, without the pictures."""
        names = [image.name for image in self.pictures]
        return {
            "images": names,
            "words": [{"text": piece.text, **_shares(piece[1:])} for piece in self.tinted_words()],
            "passages": [
                {"text": words.text, **_shares(words.shares), "image_nats": words.image, "vitals_nats": words.vitals,
                 "log_probability_alone": words.alone, "by_vital": words.by_vital,
                 "by_image": dict(zip(names, words.by_image, strict=True)),
                 "image_shares": dict(zip(names, words.image_shares, strict=True)),
                 "cells": _rows(words.cells, names), "heat": _rows(words.heat, names),
                 "completeness_error": words.completeness_error, "steps": words.steps}
                for words in self.passages
            ],
            "labels": [{"name": label.name, "probability": label.probability, "heat": _rows(label.heat, names)}
                       for label in self.labels],
            "completeness_error": self.completeness_error,
            "notes": list(self.notes),
        }  # fmt: skip


def resample_to_image(heat: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resample a map over the square (h × w cells) to the image inside it (H × W); scale positive values to 0 to 1."""
    inside = positive_heat(heat, shape)
    return inside / max(float(inside.max()), 1e-12)


def positive_heat(heat: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resample the positive part of a map over the square (h × w cells) to the image inside it (H × W).

    The padding that makes an image square is cropped, with its heat.
    """
    side = max(shape)
    box = Box.of(tuple(shape), side)
    positive = np.maximum(heat, 0).astype(np.float32)
    square = cv2.resize(positive, (side, side), interpolation=cv2.INTER_LINEAR)
    return square[box.rows, box.columns]


def _shares(shares: Sequence[float]) -> dict[str, float]:
    return dict(zip(("image", "vitals", "language"), shares, strict=True))


def _rows(heat: np.ndarray | None, names: Sequence[str]) -> dict[str, list[list[float]]] | None:
    if heat is None:
        return None
    maps = zip(names, heat.tolist(), strict=True)
    return {name: [[float(f"{value:.4g}") for value in row] for row in rows] for name, rows in maps}


def overlay(explanation: Explanation, name: str | None = None, image: int = 0) -> np.ndarray:
    """Overlay the heat of one label or of chosen words on an image, H × W × 3 uint8, RGB.

    Without a name it is the leading label's; `image` is the place in `pictures`. Raises `UserError` for a name that
    was not explained and where there was no image: there is no heat without one.
    """
    heat = explanation.heat_of(name, image)  # H × W
    picture = rgb(explanation.pictures[image].pixels).astype(np.float32)
    colour = colormaps["inferno"](0.15 + 0.8 * heat)[..., :3] * 255
    weight = STRENGTH * heat[..., None] ** 0.7  # a place without heat shows the image alone
    return np.round(picture * (1 - weight) + colour * weight).astype(np.uint8)
