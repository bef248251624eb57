"""Words of the built-in cohort: vitals, labels, report sections, their sentences, and the facts read back."""

import re
from collections.abc import Iterable

from vlm.config import SectionConfig, TableConfig, VitalConfig
from vlm.data.cohort import FactReader, Facts

VITALS = [
    VitalConfig("glucose", "mmol/L", plausible=[1, 50], reference=[3.9, 7.8], loinc="14749-6"),
    VitalConfig("systolic", "mmHg", ["sbp"], plausible=[40, 300], reference=[90, 139], loinc="8480-6"),
    VitalConfig("diastolic", "mmHg", ["dbp"], plausible=[20, 200], reference=[60, 89], loinc="8462-4"),
    VitalConfig("age", "share of 100 years", ["age_index"], plausible=[0, 1.3]),
]
FINDINGS = {"none": None, "mild": "Mild infiltration", "patchy": "Patchy opacities", "dense": "Dense shadow"}
SIDES, ZONES = ("right", "left", "both"), ("upper", "middle", "lower")
LABELS = ["pathology", *(f"{finding}_opacity" for finding in FINDINGS if finding != "none"), "right_lung", "left_lung",
          *(f"{zone}_zone" for zone in ZONES)]  # fmt: skip
NO_IMAGE, NO_GLUCOSE = "No image was available.", "Glucose was not measured."
NO_PRESSURE = "Blood pressure was not measured."
TABLE = TableConfig(
    file="cases.csv",
    images="images",
    image="image",
    id="case",
    patient="patient",
    probability="pathology_probability",
    labels=LABELS,
    label_findings={
        "pathology": "opacity",
        **{f"{side}_lung": f"opacity in the {side} lung" for side in SIDES if side != "both"},
        **{f"{zone}_zone": f"opacity in the {zone} zone" for zone in ZONES},
    },
    vitals=[*VITALS],
    report=[
        SectionConfig("image_report", ["image"], NO_IMAGE),
        SectionConfig("glucose_report", ["glucose"], NO_GLUCOSE),
        SectionConfig("pressure_report", ["systolic", "diastolic"], NO_PRESSURE),
    ],
)


def image_sentence(finding: str, side: str, zone: str) -> str:
    """Write the report sentence about the image."""
    if finding == "none":
        return "No opacity in either lung."
    place = f"both {zone} zones" if side == "both" else f"the {side} {zone} zone"
    return f"{FINDINGS[finding]} in {place}."


def level(vital: VitalConfig, value: float) -> str:
    """Classify a value as `low`, `normal` or `elevated` by the vital's reference range."""
    low, high = vital.reference
    return "low" if value < low else "elevated" if value > high else "normal"


def pressure_level(systolic: float, diastolic: float) -> str:
    """Classify blood pressure: elevated if either value is, else low if either is."""
    levels = {level(VITALS[1], systolic), level(VITALS[2], diastolic)}
    return "elevated" if "elevated" in levels else "low" if "low" in levels else "normal"


# ------------------------------------------------------------------------------------ reading reports

EVIDENCE = {"finding": "image", "side": "image", "zone": "image", "glucose": "vitals", "pressure": "vitals"}
Sentence = tuple[re.Pattern[str], dict[str, str]]
"""Pattern of a whole sentence, whose groups are facts, and the facts that it always states."""
SENTENCES: list[Sentence] = [
    (re.compile(r"no opacity in either lung"), {"finding": "none"}),
    (re.compile(r"no image was available"), {"finding": "no image"}),
    (re.compile(r"(?P<finding>mild infiltration|patchy opacities|dense shadow) in "
                r"(?:the (?P<side>right|left)|(?P<both>both)) (?P<zone>upper|middle|lower) zones?"), {}),
    (re.compile(r"glucose (?:is|was) (?P<glucose>low|normal|elevated|not measured)"), {}),
    (re.compile(r"blood pressure (?:is|was) (?P<pressure>low|normal|elevated|not measured)"), {}),
]  # fmt: skip


def read_facts(report: str) -> Facts:
    """Parse the five facts of a report; see `facts_of`."""
    return facts_of(report, SENTENCES, EVIDENCE)


def facts_of(report: str, sentences: Iterable[Sentence], names: Iterable[str]) -> Facts:
    """Parse the named facts of a report; None if not stated, `contradiction` if two are stated.

    A finding's words in a sentence of another form give the finding `unclear`.
    """
    facts: Facts = dict.fromkeys(names)
    for sentence in re.split(r"[.\n]+", report.lower()):
        matches = [(pattern.fullmatch(sentence.strip()), fixed) for pattern, fixed in sentences]
        if not any(match for match, _ in matches) and re.search(r"opacit|infiltrat|shadow", sentence):
            facts["finding"] = "unclear" if facts["finding"] is None else "contradiction"
        for match, fixed in matches:
            if match is None:
                continue
            stated = {**match.groupdict(), **fixed}
            if stated.pop("both", None):
                stated["side"] = "both"
            for name, value in stated.items():
                if value is not None:
                    facts[name] = value if facts[name] in (None, value) else "contradiction"
    return facts


UNSAID = {"finding": "no image", "glucose": "not measured", "pressure": "not measured"}
FACTS = FactReader("phantom", read_facts, EVIDENCE, UNSAID)
