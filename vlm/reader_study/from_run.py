"""Make a reader study from a run: draw cases, gather their texts and pictures, and shuffle the pages of each reader."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np

from vlm.atomic import flush, staged, write_file
from vlm.config import Config
from vlm.config.parsing import parse_config
from vlm.data.cohort import Cohort
from vlm.data.images.color import bgr
from vlm.data.images.image import ImageSpec, decode_image, resize, shows_nothing, stretch_contrast
from vlm.data.images.store import image_label, read_image_bytes
from vlm.data.ingest.sources import load_cohort
from vlm.data.packed.shards import is_packed, read_packed
from vlm.data.shown_evidence import available_evidence, compose_report
from vlm.data.study import PRIOR, role_of
from vlm.errors import UserError, one_line
from vlm.evaluation.baselines import constant_report
from vlm.evaluation.compare import Rows, read_predictions
from vlm.findings.labeller import Labeller
from vlm.plain import printable
from vlm.reader_study.blinding import merge_same, new_code, shuffled_pages
from vlm.reader_study.study_file import (
    FORMAT,
    IMAGES,
    MOST_CASES,
    MOST_READERS,
    MOST_SOURCES,
    OURS,
    REFERENCE,
    Layout,
    Picture,
    Reader,
    Study,
    StudyCase,
    write_study,
)
from vlm.report import ReadImage

CONSTANT, NEAREST = "constant", "nearest"
SOURCES = (OURS, REFERENCE, CONSTANT, NEAREST)
LONGEST_SIDE = 2048
"""Most pixels of a picture's side; a larger one is made smaller."""


@dataclass(frozen=True)
class StudyPlan:
    """What to make a study of."""

    run: Path
    """Folder with predictions.jsonl."""
    cases: int = 50
    readers: int = 2
    seed: int = 0
    layout: Layout = "single"
    sources: Sequence[str] = (OURS, REFERENCE, CONSTANT)
    """Some of `SOURCES`, `draft` among them."""
    against: Sequence[Path] = ()
    """Other runs tested on the same cases, whose drafts are judged as well."""
    data: str = ""
    """Config of the cases; empty: that of the run."""
    options: Sequence[str] = ()
    """Options of the config, such as `--data.root`, `DIR`."""

    def check(self) -> None:
        """Raise `UserError` for numbers out of range, and for sources that are unknown, doubled or too few."""
        for name, most in (("cases", MOST_CASES), ("readers", MOST_READERS)):
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"--{name}: must be between 1 and {most:,}")
        if self.seed < 0:
            raise UserError("--seed: must not be negative")
        if OURS not in self.sources or not set(self.sources) <= set(SOURCES):
            raise UserError(f"--sources: draft, and some of {', '.join(SOURCES[1:])}")
        names = self.names
        if len(set(names)) < len(names):
            raise UserError("--sources, --against: two have the same name; name each once")
        if not 2 <= len(names) <= MOST_SOURCES:
            raise UserError(f"--sources, --against: 2 to {MOST_SOURCES} in all; without a second nothing is compared")

    @property
    def names(self) -> list[str]:
        """Names of all sources, `draft` first."""
        others = [name for name in self.sources if name != OURS]
        return [OURS, *others, *(_name_of(run) for run in self.against)]


def make_study(plan: StudyPlan, output: Path) -> dict[str, int]:
    """Write the folder of a study; returns the code that opens each reader's pages → the reader's number.

    Raises `UserError` for a folder that is not empty, for a run without predictions or with fewer cases, and for cases
    that the config does not have.
    """
    plan.check()
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: not empty; name a new folder with --output")
    rows = read_predictions(plan.run)
    chosen = draw_cases(rows, plan)
    config = _config_of(plan)
    cohort = load_cohort(config.data)
    if cohort.signal is not None:
        print("warning: the cases have signals, which a reader is not shown")
    table = _rows_of(cohort, chosen, plan)
    texts = _texts_of(plan, rows, chosen, config, cohort, table)
    patients: dict[str, int] = {}
    with staged(output, manifest=False) as folder:
        (folder / IMAGES).mkdir()
        cases = []
        for number, (name, cells) in enumerate(zip(chosen, table, strict=True), 1):
            patient = patients.setdefault(_field(rows[name], "patient"), len(patients) + 1)
            vitals = _with_units(rows[name].get("vitals") or {}, cohort)
            images = _write_pictures(folder / IMAGES, number, cells["images"])
            merged = merge_same([(source, texts[source][name]) for source in plan.names])
            told = printable(cells["context"] or ""), printable(cells["prior_report"] or "")
            cases.append(StudyCase(patient, vitals, images, merged, *told))
        flush(folder / IMAGES)
        numbers = range(1, plan.readers + 1)
        readers = [Reader(shuffled_pages(cases, plan.layout, plan.seed, reader)) for reader in numbers]
        study = Study(FORMAT, _name_of(plan.run), plan.seed, plan.layout, plan.names, cases, readers)
        codes = {new_code(): reader for reader in numbers}
        write_study(folder, study, codes)
    return codes


def draw_cases(rows: Rows, plan: StudyPlan) -> list[str]:
    """Draw the ids of cases at random by the seed, among those that have a reference if it is judged."""
    known = sorted(name for name, row in rows.items() if REFERENCE not in plan.sources or _field(row, "reference"))
    if len(known) < plan.cases:
        raise UserError(f"--cases: {plan.cases}, but {plan.run} has {len(known)} that can be judged")
    places = np.random.default_rng(plan.seed).choice(len(known), plan.cases, replace=False)
    return [known[place] for place in places]


# ------------------------------------------------------------------------------------------ the cases


def _config_of(plan: StudyPlan) -> Config:
    file = plan.data or str(plan.run / "config.yaml")
    if not plan.data and not Path(file).is_file():
        raise UserError(f"{file}: no such file; name the config of the cases with --data")
    return parse_config(["--config", file, *plan.options])[0]


def _rows_of(cohort: Cohort, chosen: Sequence[str], plan: StudyPlan) -> datasets.Dataset:
    """Select the chosen cases, in their order."""
    places = {name: place for place, name in enumerate(cohort.dataset["id"])}
    if lost := [name for name in chosen if name not in places]:
        where = plan.data or plan.run / "config.yaml"
        raise UserError(f"{where}: has no case {lost[0]} of {plan.run}; name the config of its cases with --data")
    return cohort.dataset.select([places[name] for name in chosen])


def _with_units(vitals: Mapping[str, Any], cohort: Cohort) -> dict[str, str]:
    """Write the vitals as a reader sees them: name → value with its unit."""
    units = {vital.name: vital.unit for vital in cohort.schema.vitals}
    words = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in vitals.items()}
    written = {name.replace("_", " "): f"{word} {units.get(name, '')}".strip() for name, word in words.items()}
    return {name: printable(text) for name, text in written.items()}


def _write_pictures(folder: Path, number: int, cells: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Write a case's images as PNG files that hold pixels alone, current before prior; blank ones are left out."""
    pictures: list[Picture] = []
    for cell in sorted((cell for cell in cells if cell["path"]), key=lambda cell: (cell["prior"], cell["view"] or "")):
        data = _picture(cell["path"])
        if data is not None:
            days = cell["days"] if cell["prior"] and not math.isnan(cell["days"]) else None
            role = ReadImage(cell["view"] or "", bool(cell["prior"]), days)
            pictures.append(Picture(f"{number:04}-{len(pictures) + 1}.png", "" if role == ReadImage() else str(role)))
            write_file(folder / pictures[-1].file, data)
    return pictures


def _picture(path: str) -> bytes | None:
    """Read an image as a viewer shows it and encode it as PNG; None for one that shows nothing."""
    with one_line(f"{image_label(path)}: cannot read the image"):
        image = read_packed(path, True) if is_packed(path) else decode_image(*read_image_bytes(path), True)
        if shows_nothing(image):
            return None
        ratio = min(1.0, LONGEST_SIDE / max(image.shape[:2]))
        height, width = (max(1, round(side * ratio)) for side in image.shape[:2])
        shown = resize(stretch_contrast(image, ImageSpec()), height, width)
        return bytes(cv2.imencode(".png", bgr(shown))[1].tobytes())


# ------------------------------------------------------------------------------------------ the texts


def _texts_of(
    plan: StudyPlan,
    rows: Rows,
    chosen: Sequence[str],
    config: Config,
    cohort: Cohort,
    table: datasets.Dataset,
) -> dict[str, dict[str, str]]:
    """Gather the texts of each source: source → case id → text."""
    texts = {
        OURS: {name: _field(rows[name], "report") for name in chosen},
        REFERENCE: {name: _field(rows[name], "reference") for name in chosen},
    }
    if CONSTANT in plan.sources:
        constant = constant_report(training_reports(cohort), Labeller.load(config.data.findings))
        texts[CONSTANT] = dict.fromkeys(chosen, constant)
    if NEAREST in plan.sources:
        texts[NEAREST] = dict(zip(chosen, _nearest(plan, config, cohort, table), strict=True))
    for run in plan.against:
        theirs = read_predictions(run)
        for name in chosen:
            if name not in theirs or theirs[name].get("reference") != rows[name]["reference"]:
                raise UserError(f"--against {run}: case {name} is missing or has another reference than in {plan.run}")
        texts[_name_of(run)] = {name: _field(theirs[name], "report") for name in chosen}
    return texts


def training_reports(cohort: Cohort) -> list[str]:
    """Compose the reports of the training split, as far as the evidence of each case supports them."""
    reports = []
    for row in cohort.split("train"):
        roles = {role_of(cell) for cell in row["images"] if cell["path"]}
        roles |= {PRIOR} if row["prior_report"] else set()
        vitals = np.array(row["vitals"], dtype=np.float32)
        evidence = available_evidence(cohort.schema.names, vitals, roles, row["context"] or "", bool(row.get("signal")))
        reports.append(compose_report(row["sections"], cohort.sections, evidence))
    return reports


def _nearest(plan: StudyPlan, config: Config, cohort: Cohort, table: datasets.Dataset) -> list[str]:
    """Retrieve the report of the nearest training case of each case, by the features of the run's encoder."""
    folder = plan.run / "adapter"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; the source nearest needs the adapter of the run")
    from vlm.adapter import load  # here alone a model is needed
    from vlm.data.dataset import CaseDataset
    from vlm.evaluation.baselines import nearest_reports

    model = load(folder)
    train, asked = (CaseDataset(rows, model.spec, cohort.sections) for rows in (cohort.split("train"), table))
    return nearest_reports(model, train, asked, config.evaluation.batch_size, config.train.workers)


def _name_of(run: Path) -> str:
    return printable(run.resolve().name)


def _field(row: Mapping[str, Any], name: str) -> str:
    text = row.get(name)
    if not isinstance(text, str):
        raise UserError(f"predictions.jsonl: case {row['id']}: {name} is no text; not the predictions of a run")
    return text
