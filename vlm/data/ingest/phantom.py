"""Generate a synthetic cohort with known ground truth from a seed.

Its vitals and pathology probability have the correlations of the source paper's Figure 1 (Minukhin and
Rudoi): glucose 0.80, systolic pressure -0.54, diastolic pressure 0.01. The report states facts that only the
image shows (finding, side, zone) and facts that only the vitals show (glucose, blood pressure). A model that
ignores one of the two is therefore found out. It is not a model of any disease.
"""

import json
import re
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from vlm.atomic import made_once, writing
from vlm.config import DataConfig, PhantomConfig, SectionConfig, TableConfig, VitalConfig
from vlm.data.cohort import Cohort, FactReader, Facts
from vlm.data.ingest.phantom_image import draw_chest
from vlm.data.ingest.table import load_table
from vlm.errors import UserError

VERSION = 1
"""Generator version; increase it if the same seed draws other cases, so that an old folder is regenerated."""

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
    label_findings={"pathology": "opacity"},
    vitals=[*VITALS],
    report=[
        SectionConfig("image_report", ["image"], NO_IMAGE),
        SectionConfig("glucose_report", ["glucose"], NO_GLUCOSE),
        SectionConfig("pressure_report", ["systolic", "diastolic"], NO_PRESSURE),
    ],
)


def load_phantom(data: DataConfig) -> Cohort:
    """Draw the cohort into `data.root` unless it exists, then read it like any table."""
    root = Path(data.root)
    stamp = root / "cohort.json"
    wanted = {"version": VERSION, **asdict(data.phantom)}
    if not stamp.is_file() or json.loads(stamp.read_text()) != wanted:
        if root.exists() and not stamp.is_file() and any(root.iterdir()):
            raise UserError(f"{root}: not empty and no phantom cohort; set data.root to a folder that may be filled")
        with writing(root):
            root.parent.mkdir(parents=True, exist_ok=True)
        with made_once(root, manifest=False) as staging:
            write_cohort(data.phantom, staging)
            (staging / stamp.name).write_text(json.dumps(wanted))
            shutil.rmtree(root, ignore_errors=True)
    return replace(load_table(data, TABLE), facts=FACTS)


# ------------------------------------------------------------------------------------- drawing cases


def draw_cases(config: PhantomConfig) -> pd.DataFrame:
    """Draw one row a case: the columns of the paper's Table 1, the labels and the three parts of the report."""
    rng = np.random.default_rng(config.seed)
    n = config.cases
    # Order: glucose, systolic, diastolic, probability of pathology.
    correlation = np.array(
        [[1, -0.01, 0.03, 0.80], [-0.01, 1, 0.30, -0.54], [0.03, 0.30, 1, 0.01], [0.80, -0.54, 0.01, 1]]
    )
    latent = rng.multivariate_normal(np.zeros(4), correlation, size=n)
    glucose = np.clip(7.4 + 2.0 * latent[:, 0], 2.5, 20).round(1)
    systolic = np.clip(126 + 19 * latent[:, 1], 75, 210).round().astype(int)
    diastolic = np.clip(78 + 10 * latent[:, 2], 45, 120).round().astype(int)
    diastolic = np.minimum(diastolic, systolic - 15)
    probability = np.clip(0.5 + 0.2 * latent[:, 3], 0.01, 0.99).round(3)
    age = np.clip(rng.normal(0.55, 0.17, n), 0.18, 0.95).round(2)
    pathology = rng.random(n) < probability
    severity = probability + rng.normal(0, 0.2, n)
    finding = np.select([~pathology, severity < 0.5, severity < 0.75], ["none", "mild", "patchy"], "dense")
    side = np.where(pathology, rng.choice(SIDES, n, p=[0.38, 0.37, 0.25]), "")
    zone = np.where(finding == "dense", "lower", np.where(pathology, rng.choice(ZONES, n), ""))
    missing = rng.random((n, 3)) < config.missing
    names = [f"phantom-{config.seed}-{number:05d}" for number in range(n)]
    return pd.DataFrame(
        {
            "case": names,
            "patient": names,
            "image": np.where(missing[:, 0], "", [f"{name}.png" for name in names]),
            "glucose": np.where(missing[:, 1], "", glucose.astype(str)),
            "blood_pressure": np.where(
                missing[:, 2], "", [f"{s}/{d}" for s, d in zip(systolic, diastolic, strict=True)]
            ),
            "age": age,
            "pathology_probability": probability,
            "finding": finding,
            "side": side,
            "zone": zone,
            **_labels(pathology, finding, side, zone),
            "image_report": [image_sentence(*row) for row in zip(finding, side, zone, strict=True)],
            "glucose_report": [f"Glucose is {level(VITALS[0], value)}." for value in glucose],
            "pressure_report": [
                f"Blood pressure is {pressure_level(s, d)}." for s, d in zip(systolic, diastolic, strict=True)
            ],
        }
    )


def _labels(pathology: np.ndarray, finding: np.ndarray, side: np.ndarray, zone: np.ndarray) -> dict[str, np.ndarray]:
    columns = [pathology, *(finding == name for name in FINDINGS if name != "none"),
               np.isin(side, ["right", "both"]), np.isin(side, ["left", "both"]),
               *(zone == name for name in ZONES)]  # fmt: skip
    return {name: column.astype(int) for name, column in zip(LABELS, columns, strict=True)}


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


def write_cohort(config: PhantomConfig, root: Path) -> None:
    """Write `cases.csv` and `images/` below `root`; the table comes last, so an interrupted run leaves none."""
    frame = draw_cases(config)
    (root / "images").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        tasks = pool.map(
            partial(_write_image, config.seed, root / "images"), frame.to_dict("records"), range(len(frame))
        )
        for _ in tqdm(tasks, total=len(frame), desc="drawing the phantom cohort", unit="case"):
            pass
    frame.to_csv(root / "cases.csv", index=False)


def _write_image(seed: int, folder: Path, case: Mapping[Any, Any], number: int) -> None:
    if case["image"]:
        picture, _ = _draw(seed, case, number)
        (folder / case["image"]).write_bytes(cv2.imencode(".png", picture)[1].tobytes())  # imwrite fails silently


def _draw(seed: int, case: Mapping[Any, Any], number: int) -> tuple[np.ndarray, np.ndarray]:
    return draw_chest(case["finding"], case["side"], case["zone"], np.random.default_rng([seed, number]))


def opacity_masks(config: PhantomConfig, cases: Collection[str]) -> dict[str, np.ndarray]:
    """Return the opacity mask of each given case: image height × width, bool, all False if it has none."""
    rows = enumerate(draw_cases(config).to_dict("records"))
    return {case["case"]: _draw(config.seed, case, number)[1] for number, case in rows if case["case"] in cases}


# ------------------------------------------------------------------------------------ reading reports

EVIDENCE = {"finding": "image", "side": "image", "zone": "image", "glucose": "vitals", "pressure": "vitals"}
_SENTENCES = [
    (re.compile(r"no opacity in either lung"), {"finding": "none"}),
    (re.compile(r"no image was available"), {"finding": "no image"}),
    (re.compile(r"(?P<finding>mild infiltration|patchy opacities|dense shadow) in "
                r"(?:the (?P<side>right|left)|(?P<both>both)) (?P<zone>upper|middle|lower) zones?"), {}),
    (re.compile(r"glucose (?:is|was) (?P<glucose>low|normal|elevated|not measured)"), {}),
    (re.compile(r"blood pressure (?:is|was) (?P<pressure>low|normal|elevated|not measured)"), {}),
]  # fmt: skip


def read_facts(report: str) -> Facts:
    """Parse the five facts of a report; None if not stated, `contradiction` if two are stated.

    A finding's words in a sentence of another form give the finding `unclear`.
    """
    facts: Facts = dict.fromkeys(EVIDENCE)
    for sentence in re.split(r"[.\n]+", report.lower()):
        matches = [(pattern.fullmatch(sentence.strip()), fixed) for pattern, fixed in _SENTENCES]
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


FACTS = FactReader("phantom", read_facts, EVIDENCE)
