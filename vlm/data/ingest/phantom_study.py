"""Make studies of the synthetic cases: a lateral view, a prior, values over time and the reason for the study.

Each shows one thing that nothing else does: the lateral a posterior effusion, the prior picture how the opacity has
changed, the earlier glucose values whether it rises, the indication the reason. A model that ignores one of them is
found out, and one that states such a thing without its evidence invents it.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from vlm.config import SectionConfig, StudyImageConfig
from vlm.data.cohort import FactReader, Facts
from vlm.data.ingest.phantom_image import draw_chest
from vlm.data.ingest.phantom_lateral import draw_lateral
from vlm.data.ingest.phantom_words import (
    EVIDENCE,
    LABELS,
    NO_IMAGE,
    SENTENCES,
    SIDES,
    TABLE,
    UNSAID,
    VITALS,
    ZONES,
    Sentence,
    facts_of,
)

STUDY_VERSION = 1
"""Generator version of the columns and pictures that are drawn here."""
MISSING = {"lateral": 0.15, "prior": 0.15, "trend": 0.2, "indication": 0.15}
"""Share of the cases without it; training withholds views and priors besides, `data.dropout`."""
EARLIER = {"larger": (0.6, 2.5), "unchanged": (1.0, 1.0), "smaller": (3.2, 1.5)}
"""Change since the prior → extent and density of the opacity in the prior picture; today's are 1."""
TRENDS = {"rising": (1.3, 2.6), "stable": (-0.2, 0.2), "falling": (-2.6, -1.3)}
"""Trend → lowest and highest change of the glucose over 48 hours, mmol/L."""
REASONS = {"cough": "Cough.", "fever": "Fever.", "chest pain": "Chest pain.", "dyspnea": "Dyspnea."}
"""Reason for the study → the indication."""
CHANGES = ("new", "larger", "smaller", "unchanged", "resolved")
STUDY_LABELS = [*LABELS, "effusion", *(f"{change}_opacity" for change in CHANGES)]
"""What is true of the patient, also where the picture that shows it is missing."""


# ------------------------------------------------------------------------------------- drawing cases


def study_columns(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Add to the drawn cases what a study has besides, from a random stream of its own."""
    rng = np.random.default_rng([seed, STUDY_VERSION])
    n = len(frame)
    missing = pd.DataFrame({name: rng.random(n) < share for name, share in MISSING.items()})
    effusion = rng.random(n) < 0.5
    opaque = (frame["finding"] != "none").to_numpy()
    change = np.where(
        opaque, rng.choice(["new", "larger", "smaller", "unchanged"], n), rng.choice(["none", "resolved"], n)
    )
    trend = rng.choice(list(TRENDS), n)
    reason = rng.choice(list(REASONS), n)
    return frame.assign(
        view=np.where(frame["image"] == "", "", "PA"),
        lateral=np.where(missing["lateral"], "", frame["case"] + "-lateral.png"),
        prior=np.where(missing["prior"], "", frame["case"] + "-prior.png"),
        prior_days=rng.integers(7, 120, n),
        indication=np.where(missing["indication"], "", [REASONS[name] for name in reason]),
        change=change,
        **_earlier_opacity(frame, change, rng),
        glucose=_series(frame["glucose"], trend, missing["trend"].to_numpy(), rng),
        effusion=effusion.astype(int),
        **{f"{name}_opacity": (change == name).astype(int) for name in CHANGES},
        trend=trend,
        reason_report=[f"Reason: {name}." for name in reason],
        change_report=[change_sentence(name) for name in change],
        lateral_report=np.where(effusion, "Small posterior effusion.", "No effusion."),
        trend_report=[f"Glucose is {name}." for name in trend],
    )


def _earlier_opacity(frame: pd.DataFrame, change: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw what the prior picture shows: today's opacity, or one of its own where it has resolved since."""
    n, resolved = len(frame), change == "resolved"
    finding = np.where(resolved, rng.choice(["mild", "patchy", "dense"], n), frame["finding"])
    side = np.where(resolved, rng.choice(SIDES, n), frame["side"])
    zone = np.where(resolved, np.where(finding == "dense", "lower", rng.choice(ZONES, n)), frame["zone"])
    shown = np.isin(change, ["new", "none"])
    return {
        "prior_finding": np.where(shown, "none", finding),
        "prior_side": np.where(shown, "", side),
        "prior_zone": np.where(shown, "", zone),
    }


def _series(last: pd.Series, trend: np.ndarray, alone: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Write each glucose as a series of three values over 48 hours, or as the last alone; empty where it is missing."""
    low, high = np.array([TRENDS[name] for name in trend]).T
    change, middle = rng.uniform(low, high), rng.uniform(0.35, 0.65, len(last))
    texts = []
    for value, delta, share, single in zip(last, change, middle, alone, strict=True):
        now = float(value or "nan")
        values = {"-48h": max(now - delta, 1.1), "-24h": max(now - delta * share, 1.1)} if not single else {}
        texts.append(";".join(f"{at:.1f}@{time}" for time, at in {**values, "0h": now}.items()) if value else "")
    return texts


def change_sentence(change: str) -> str:
    """Write the report sentence about the change since the prior."""
    if change == "none":
        return "No change."
    return "The earlier opacity has resolved." if change == "resolved" else f"The opacity is {change}."


def study_pictures(seed: int, case: Mapping[Any, Any], number: int) -> dict[str, np.ndarray]:
    """Draw the lateral view and the prior picture of a case that has them: name of the file → SIZE × SIZE, uint8."""
    pictures = {}
    if case.get("lateral"):
        pictures[case["lateral"]] = draw_lateral(bool(case["effusion"]), np.random.default_rng([seed, number, 2]))
    if case.get("prior"):
        shown = case["prior_finding"], case["prior_side"], case["prior_zone"]
        chest, film = np.random.default_rng([seed, number]), np.random.default_rng([seed, number, 1])
        extent, density = EARLIER.get(case["change"], (1.0, 1.0))
        pictures[case["prior"]], _ = draw_chest(*shown, chest, extent, density, film)
    return pictures


# ------------------------------------------------------------------------------------ reading reports

STUDY_EVIDENCE = {**EVIDENCE, "effusion": "lateral", "change": "prior", "trend": "trend", "reason": "context"}
_WORDS = "|".join(REASONS)
STUDY_SENTENCES: list[Sentence] = [
    *SENTENCES,
    (re.compile(r"small posterior effusion"), {"effusion": "small"}),
    (re.compile(r"no effusion"), {"effusion": "none"}),
    (re.compile(r"no lateral view"), {"effusion": "no lateral"}),
    (re.compile(r"the opacity is (?P<change>new|larger|smaller|unchanged)"), {}),
    (re.compile(r"the earlier opacity has (?P<change>resolved)"), {}),
    (re.compile(r"no change"), {"change": "none"}),
    (re.compile(r"no comparison"), {"change": "no comparison"}),
    (re.compile(r"glucose is (?P<trend>rising|stable|falling)"), {}),
    (re.compile(r"no earlier glucose"), {"trend": "not known"}),
    (re.compile(rf"reason: (?P<reason>{_WORDS}|not given)"), {}),
]


def read_study_facts(report: str) -> Facts:
    """Parse the nine facts of a study's report; see `facts_of`."""
    return facts_of(report, STUDY_SENTENCES, STUDY_EVIDENCE)


def mix_facts(stated: Mapping[str, Facts]) -> Facts:
    """Combine the facts of several cases' evidence; the change is from the prior of one to today's picture of another.

    Today's opacities all have one size, so a prior says how it differs from any of them, but for none at all.
    """
    facts = {name: stated[kind][name] for name, kind in STUDY_EVIDENCE.items()}
    before = facts["change"]
    if before in ("none", *CHANGES):
        sizes = {"new": "new", "none": "new", "resolved": "unchanged"}
        today_clear = {"new": "none", "none": "none"}
        facts["change"] = (
            today_clear.get(before, "resolved") if facts["finding"] == "none" else sizes.get(before, before)
        )
    return facts


STUDY_UNSAID = {**UNSAID, "effusion": "no lateral", "change": "no comparison", "trend": "not known",
                "reason": "not given"}  # fmt: skip
STUDY_FACTS = FactReader("phantom_study", read_study_facts, STUDY_EVIDENCE, STUDY_UNSAID, mix_facts)
STUDY_TABLE = replace(
    TABLE,
    vitals=[replace(VITALS[0], over_time=True, steady=0.6), *VITALS[1:]],
    view="view",
    study_images=[
        StudyImageConfig("lateral", view="lateral"),
        StudyImageConfig("prior", view="PA", prior=True, days="prior_days"),
    ],
    context="indication",
    labels=STUDY_LABELS,
    label_findings={**TABLE.label_findings, "effusion": "pleural_effusion"},
    report=[
        SectionConfig("reason_report", ["context"], "Reason: not given."),
        SectionConfig("image_report", ["PA"], NO_IMAGE),
        SectionConfig("change_report", ["PA", "prior"], "No comparison."),
        SectionConfig("lateral_report", ["lateral"], "No lateral view."),
        TABLE.report[1],
        SectionConfig("trend_report", ["glucose_change"], "No earlier glucose."),
        TABLE.report[2],
    ],
)
