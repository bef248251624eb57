"""Generate a synthetic cohort with known ground truth from a seed.

Its vitals and pathology probability have the correlations of the source paper's Figure 1 (Minukhin and
Rudoi): glucose 0.80, systolic pressure -0.54, diastolic pressure 0.01. The report states facts that only the
image shows (finding, side, zone) and facts that only the vitals show (glucose, blood pressure). A model that
ignores one of the two is therefore found out. It is not a model of any disease.
"""

import json
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

from vlm.atomic import create_once, writing
from vlm.config import DataConfig, PhantomConfig
from vlm.data.cohort import Cohort
from vlm.data.ingest.phantom_image import draw_chest
from vlm.data.ingest.phantom_study import STUDY_FACTS, STUDY_TABLE, STUDY_VERSION, study_columns, study_pictures
from vlm.data.ingest.phantom_words import (
    FACTS,
    FINDINGS,
    LABELS,
    SIDES,
    TABLE,
    VITALS,
    ZONES,
    image_sentence,
    level,
    pressure_level,
)
from vlm.data.ingest.table import load_table
from vlm.errors import UserError
from vlm.progress import progress

VERSION = 1
"""Generator version; increase it if the same seed draws other cases, so that an old folder is regenerated."""


def load_phantom(data: DataConfig) -> Cohort:
    """Draw the cohort into `data.root` unless it exists, then read it like any table."""
    root = data.folder
    stamp = root / "cohort.json"
    wanted = _stamp(data.phantom)
    if not stamp.is_file() or json.loads(stamp.read_text()) != wanted:
        if root.exists() and not stamp.is_file() and any(root.iterdir()):
            raise UserError(f"{root}: not empty and no phantom cohort; set data.root to a folder that may be filled")
        with writing(root):
            root.parent.mkdir(parents=True, exist_ok=True)
        with create_once(root, manifest=False) as staging:
            write_cohort(data.phantom, staging)
            (staging / stamp.name).write_text(json.dumps(wanted))
            shutil.rmtree(root, ignore_errors=True)
    table, facts = (STUDY_TABLE, STUDY_FACTS) if data.phantom.study else (TABLE, FACTS)
    return replace(load_table(data, table), facts=facts)


def _stamp(config: PhantomConfig) -> dict[str, Any]:
    """Describe what a folder was drawn from; a cohort without studies is described as before there were any."""
    options = {"version": VERSION, **asdict(config)}
    return {**options, "study": STUDY_VERSION} if options.pop("study") else options


# ------------------------------------------------------------------------------------- drawing cases


def draw_cases(config: PhantomConfig) -> pd.DataFrame:
    """Draw one row a case: the columns of the paper's Table 1, the labels and the three parts of the report.

    With `config.study`, the columns of `study_columns` besides; all others but the glucose stay as they are.
    """
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
    frame = pd.DataFrame(
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
    return study_columns(frame, config.seed) if config.study else frame


def _labels(pathology: np.ndarray, finding: np.ndarray, side: np.ndarray, zone: np.ndarray) -> dict[str, np.ndarray]:
    columns = [pathology, *(finding == name for name in FINDINGS if name != "none"),
               np.isin(side, ["right", "both"]), np.isin(side, ["left", "both"]),
               *(zone == name for name in ZONES)]  # fmt: skip
    return {name: column.astype(int) for name, column in zip(LABELS, columns, strict=True)}


def write_cohort(config: PhantomConfig, root: Path) -> None:
    """Write `cases.csv` and `images/` below `root`; the table comes last, so an interrupted run leaves none."""
    frame = draw_cases(config)
    (root / "images").mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        tasks = pool.map(
            partial(_write_images, config.seed, root / "images"), frame.to_dict("records"), range(len(frame))
        )
        for _ in progress(tasks, "drawing the phantom cohort", len(frame)):
            pass
    frame.to_csv(root / "cases.csv", index=False)


def _write_images(seed: int, folder: Path, case: Mapping[Any, Any], number: int) -> None:
    pictures = {case["image"]: _draw(seed, case, number)[0]} if case["image"] else {}
    for name, picture in {**pictures, **study_pictures(seed, case, number)}.items():
        (folder / name).write_bytes(cv2.imencode(".png", picture)[1].tobytes())  # imwrite fails silently


def _draw(seed: int, case: Mapping[Any, Any], number: int) -> tuple[np.ndarray, np.ndarray]:
    return draw_chest(case["finding"], case["side"], case["zone"], np.random.default_rng([seed, number]))


def opacity_masks(config: PhantomConfig, cases: Collection[str]) -> dict[str, np.ndarray]:
    """Return the opacity mask of each given case: image height × width, bool, all False if it has none."""
    rows = enumerate(draw_cases(config).to_dict("records"))
    return {case["case"]: _draw(config.seed, case, number)[1] for number, case in rows if case["case"] in cases}
