"""Contradictions planted by a program are found, and true drafts are left alone: synthetic chests, dermoscopy."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from vlm.config import VitalConfig
from vlm.data.ingest.phantom_words import VITALS, image_sentence, level, pressure_level
from vlm.data.vitals.schema import VitalsSchema
from vlm.findings.labeller import Labeller
from vlm.reliability.contradictions import find_contradictions
from vlm.reliability.label_sets import LabelThresholds
from vlm.reliability.thresholds import Reliability
from vlm.report import Contradiction

CASES = 300
OPACITY = {"pathology": "opacity"}
CHEST = VitalsSchema((*VITALS,))
SKIN = VitalsSchema((VitalConfig("age", "years", plausible=[0, 120], reference=[18, 65]),))
DIAGNOSES = {"melanoma": "Melanoma", "nevus": "Melanocytic nevus", "basal_cell_carcinoma": "Basal cell carcinoma",
             "dermatofibroma": "Dermatofibroma", "benign_keratosis": "Seborrheic keratosis"}  # fmt: skip
SITES = ["face", "scalp", "neck", "chest", "abdomen", "back", "arm", "leg", "foot"]


@dataclass
class Case:
    """A draft with what is known of its case."""

    sentences: list[str]
    schema: VitalsSchema
    vitals: list[float]
    probabilities: dict[str, float]
    stands_for: dict[str, str]
    reliability: Reliability
    labeller: Labeller = field(default_factory=Labeller.load)

    def flags(self) -> tuple[Contradiction, ...]:
        known = self.probabilities, self.stands_for, self.reliability, self.labeller, self.vitals, self.schema
        return find_contradictions(" ".join(self.sentences), *known)


def chest(rng: random.Random) -> Case:
    """A true draft of a synthetic chest, in one of several orders and wordings."""
    finding = rng.choice(["none", "mild", "patchy", "dense"])
    side, zone = rng.choice(["right", "left", "both"]), rng.choice(["upper", "middle", "lower"])
    glucose = rng.choice([rng.uniform(2.6, 3.8), rng.uniform(4, 7.7), rng.uniform(8, 15)])
    systolic, diastolic = rng.choice([(150, 95), (120, 80), (84, 55)])
    about = [image_sentence(finding, side, zone)]
    if finding != "none" and rng.random() < 0.5:
        places = "in both lungs" if side == "both" else f"in the {side} lung"
        about.append(rng.choice([f"Impression: opacity {places}.", "No pleural effusion.", "No other opacity."]))
    if finding == "none" and rng.random() < 0.5:
        about.append(rng.choice(["Impression: clear lungs.", "The heart is normal in size.", "No effusion."]))
    word = rng.choice(["is {}", "of {}"])
    said = level(VITALS[0], glucose) if word == "is {}" else f"{glucose:.1f} mmol/L"
    about += [f"Glucose {word.format(said)}.", f"Blood pressure is {pressure_level(systolic, diastolic)}."]
    p = rng.uniform(0.85, 1) if finding != "none" else rng.uniform(0, 0.15)
    kept = Reliability(0.9, {"pathology": LabelThresholds(0.3, 0.6)})
    return Case(about, CHEST, [glucose, systolic, diastolic, 0.5], {"pathology": p}, OPACITY, kept)


def skin(rng: random.Random) -> Case:
    """A true draft of a lesion of the skin."""
    name, site = rng.choice(list(DIAGNOSES)), rng.choice(SITES)
    about = [
        rng.choice(
            [
                f"A small lesion with regular outline, darker than the skin, at age {40 + len(site)}.",
                "A large lesion with irregular outline, somewhat darker.",
                "Medium-sized, redder lesion.",
            ]
        )
    ]
    about.append(f"{DIAGNOSES[name]} on the {site}.")
    if rng.random() < 0.5:
        other = rng.choice([label for label in DIAGNOSES if label != name])
        about.append(rng.choice([f"No {DIAGNOSES[other].lower()}.", "Further examination advised.",
                                 f"{DIAGNOSES[name]} of the {site} is the diagnosis."]))  # fmt: skip
    p = {label: rng.uniform(0.85, 1) if label == name else rng.uniform(0, 0.15) for label in DIAGNOSES}
    named = {label: label for label in DIAGNOSES}
    return Case(about, SKIN, [40.0 + len(site)], p, named, Reliability(), Labeller.load("dermoscopy_en"))


# ------------------------------------------------------------------------------------------------ what is planted


def turned_head(case: Case, rng: random.Random) -> tuple[Case, str]:
    """The head holds the reverse of what the draft says."""
    return replace(case, probabilities={name: 1 - p for name, p in case.probabilities.items()}), "probability"


def wrong_vital(case: Case, rng: random.Random) -> tuple[Case, str]:
    """The values are others than the draft says, or none."""
    if case.schema is SKIN:
        said = rng.choice(["Age is 12.", "Age is high.", "Age was not given."])
        return replace(case, sentences=[*case.sentences, said]), "vital"
    given = rng.choice([[25.0, 205, 118, 0.5], [np.nan, np.nan, np.nan, 0.5]])
    sentences = [*case.sentences[:-2], "Glucose is normal.", "Blood pressure is low."]
    return replace(case, sentences=sentences, vitals=given), "vital"


def other_place(case: Case, rng: random.Random) -> tuple[Case, str]:
    """A finding stands on one side or site, and on another."""
    if case.schema is SKIN:
        name = next(name for name, p in case.probabilities.items() if p > 0.5)
        site = next(site for site in rng.sample(SITES, 2) if f"the {site}" not in " ".join(case.sentences))
        return replace(
            case, sentences=[*case.sentences, f"Excision of the {DIAGNOSES[name].lower()}, {site}."]
        ), "place"
    side, other = rng.sample(["right", "left"], 2)
    first = image_sentence(rng.choice(["mild", "dense"]), side, "lower")
    second = rng.choice([image_sentence("patchy", other, "lower"), f"Impression: shadow in the {other} lung.",
                         image_sentence("dense", side, "upper")])  # fmt: skip
    kept = [text for text in case.sentences if "lood" in text or "lucose" in text]
    return replace(case, sentences=[first, *kept, second], probabilities={"pathology": 0.9}), "place"


def denied(case: Case, rng: random.Random) -> tuple[Case, str]:
    """A finding is asserted and denied."""
    if case.schema is SKIN:
        name = next(name for name, p in case.probabilities.items() if p > 0.5)
        said = rng.choice(["No {}.", "No evidence of {}.", "{} is excluded."]).format(DIAGNOSES[name].lower())
        return replace(case, sentences=[*case.sentences, said]), "denial"
    said = [image_sentence("dense", rng.choice(["left", "right"]), "lower"), *case.sentences[-2:]]
    no = rng.choice(["No opacity in either lung.", "Impression: clear lungs.", "There is no shadow."])
    said.insert(rng.randrange(len(said) + 1), no)
    return replace(case, sentences=said, probabilities={"pathology": 0.9}), "denial"


@pytest.mark.parametrize("plant", [turned_head, wrong_vital, other_place, denied])
@pytest.mark.parametrize("draw", [chest, skin])
def test_planted_contradictions_are_found(
    draw: Callable[[random.Random], Case], plant: Callable[[Case, random.Random], tuple[Case, str]]
) -> None:
    rng, missed = random.Random(0), []
    for _ in range(CASES):
        case, kind = plant(draw(rng), rng)
        flags = case.flags()
        if kind not in {flag.kind for flag in flags}:
            missed.append(case.sentences)
        assert all(flag.sentence in " ".join(case.sentences) and flag.why for flag in flags)
    assert len(missed) <= 0.05 * CASES, missed[:3]


@pytest.mark.parametrize("draw", [chest, skin])
def test_true_drafts_are_left_alone(draw: Callable[[random.Random], Case]) -> None:
    rng = random.Random(1)
    flagged = [(case.sentences, flags) for case in (draw(rng) for _ in range(CASES)) if (flags := case.flags())]
    assert len(flagged) <= 0.02 * CASES, flagged[:3]


# ---------------------------------------------------------------------------------------------------- one by one


def flags_of(
    text: str,
    p: float = 0.5,
    kept: Reliability | None = None,
    vitals: tuple[float, ...] = (),
    stands_for: Mapping[str, str] = OPACITY,
) -> list[str]:
    x = [*vitals, *[np.nan] * (4 - len(vitals))]
    known = {"pathology": p}, stands_for, kept or Reliability(), Labeller.load(), x, CHEST
    return [f"{flag.kind}: {flag}" for flag in find_contradictions(text, *known)]


def test_a_flag_names_sentence_kind_and_reason() -> None:
    assert flags_of("No opacity in either lung. Glucose is low.", 0.97, vitals=(9.0,)) == [
        "probability: 'No opacity in either lung': denies opacity, which the head holds likely (pathology 97.0%)",
        "vital: 'Glucose is low': says glucose low; given: elevated",
    ]
    assert flags_of("Shadow on the left. Opacity on the right.") == [
        "place: 'Opacity on the right': places opacity right, another sentence left"
    ]
    assert flags_of("No opacity.\nDense shadow in the right lung.") == [
        "denial: 'Dense shadow in the right lung': asserts opacity, which another sentence denies"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Opacity in the left lung. No opacity in the right lung.",
        "Opacity in the left lung. The right lung is clear.",
        "Opacity in the left lung. No other opacity. Lungs are otherwise clear.",
        "Opacity in the left lung. Another opacity in the right lung.",
        "Opacity in the left lung. At follow-up the opacity has resolved.",
        "Opacity in both lungs. Opacity on the left.",
        "Possible opacity on the left. No opacity.",
        "Schatten links. No opacity. Keine Verschattung rechts mit der Lunge und ohne das.",
        "",
    ],
)
def test_what_may_both_be_true_is_no_contradiction(text: str) -> None:
    assert flags_of(text) == []


def test_the_head_has_a_verdict_where_its_set_holds_one_answer() -> None:
    sure = Reliability(0.9, {"pathology": LabelThresholds(0.4, 0.3)})
    unsure = Reliability(0.9, {"pathology": LabelThresholds(0.1, 0.9)})
    assert flags_of("No opacity.", 0.5, sure) and not flags_of("No opacity.", 0.85, unsure)
    assert flags_of("Opacity.", 0.2, sure) and not flags_of("Opacity.", 0.35, sure), "neither answer fits"
    rare = Reliability(0.9, {"pathology": LabelThresholds(0.0, 0.3)})
    assert flags_of("No opacity.", 0.5, rare) and flags_of("Opacity.", 0.1, rare)
    assert not flags_of("Opacity.", 0.25, rare), "it is neither unlikely nor ruled out"
    assert flags_of("No opacity.", 0.81) and not flags_of("No opacity.", 0.79), "of a label without a set"
    assert not flags_of("No opacity.", 0.99, stands_for={}), "no label is named by a finding"


def test_a_long_draft_costs_little_time() -> None:
    long = "Dense shadow in the left lung, no opacity in the right one. Glucose is 9.1. " * 60
    start = time.process_time()
    flags_of(long, vitals=(9.1,))
    assert time.process_time() - start < 3
