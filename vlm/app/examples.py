"""Make synthetic example cases for the page: drawn by a program, of no patient, and labelled so."""

from dataclasses import dataclass

import numpy as np

from vlm.config import PhantomConfig
from vlm.data.case import CaseSpec
from vlm.data.images.image import to_square
from vlm.data.images.square import Square
from vlm.data.ingest.phantom import draw_cases
from vlm.data.ingest.phantom_image import draw_chest
from vlm.data.ingest.phantom_words import VITALS

SEED = 2024
"""Seed of another cohort than those that the configs train on."""


@dataclass(frozen=True)
class SyntheticCase:
    """Values with which an example fills the form."""

    title: str
    picture: Square | None
    """Image as the model sees it."""
    vitals: dict[str, str]
    """Values by the names of the form's fields."""


def synthetic_cases(spec: CaseSpec) -> list[SyntheticCase]:
    """Make a case with an opacity, one without, one without an image; values only for vitals that the adapter reads."""
    frame = draw_cases(PhantomConfig(cases=60, seed=SEED, missing=0))
    chosen = [frame[frame["finding"] == finding].iloc[0] for finding in ("dense", "none", "patchy")]
    cases = []
    for number, row in enumerate(chosen, start=1):
        drawn, _ = draw_chest(row["finding"], row["side"], row["zone"], np.random.default_rng([SEED, number]))
        picture = Square(to_square(drawn.astype(np.float32), spec.image)) if number < 3 else None
        title = f"Synthetic {number}" + ("" if picture is not None else ", no image")
        vitals = {name: str(row[name]) for name in ("glucose", "blood_pressure", "age") if _reads(spec, name)}
        cases.append(SyntheticCase(title, picture, vitals))
    return cases


def _reads(spec: CaseSpec, column: str) -> bool:
    """Check whether the adapter has the vitals of a column of the cohort, in the same units."""
    units = {vital.name: vital.unit for vital in VITALS}
    names = spec.schema.names_in(column)
    return bool(names) and all(units.get(name) == spec.schema.vitals[spec.schema.position(name)].unit for name in names)
