"""Evaluate a model on the test split: draft, then write metrics, predictions, figures and a page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vlm.adapter.site_calibration import SiteCalibration
from vlm.atomic import make_folder, replace_file, writing
from vlm.config import Config
from vlm.data.cohort import Cohort
from vlm.data.dataset import CaseDataset
from vlm.data.sections import split_sections
from vlm.data.splits import SPLITS
from vlm.data.storage import matrix
from vlm.distributed import is_main, part_processes, world_size
from vlm.evaluation.ablation import ablation_measures, verdicts
from vlm.evaluation.arms import ARMS, ArmCases
from vlm.evaluation.baselines import classifier_scores, constant_report, nearest_reports
from vlm.evaluation.drafting import run_arms
from vlm.evaluation.figures import draw_figures
from vlm.evaluation.fluency import fluency_measures
from vlm.evaluation.groupings import all_groupings
from vlm.evaluation.html_report import write_page
from vlm.evaluation.learned import LearnedMetric
from vlm.evaluation.measures import (
    Bootstrap,
    Reports,
    auroc_of,
    fact_measures,
    finding_measures,
    head_against_text,
    label_measures,
    named_labels,
    number_measures,
    pooled_calibration_error,
    section_measures,
    text_loss_measure,
    text_measures,
)
from vlm.evaluation.operating_points import Points, fix_thresholds, operating_measures
from vlm.evaluation.predictions import write_predictions, write_table1
from vlm.evaluation.scoring import CaseScores, score_cases
from vlm.evaluation.site import beside, profile
from vlm.evaluation.split_measures import SplitScores, score_splits, split_measures
from vlm.evaluation.subgroups import all_measures, subgroup_measures
from vlm.evaluation.trust import reliability_measures
from vlm.findings.labeller import Labeller
from vlm.findings.structure import findings_of_labels
from vlm.inference.features import cache_features
from vlm.inference.lora_merge import merged_lora
from vlm.model.calibration import Calibration
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.progress import announce
from vlm.statistics.intervals import mean

OF_CALIBRATION = ("brier", "ece", "calibration_intercept", "calibration_slope")
"""Measures that are set beside those at the adapter's own calibration where a site's is used."""


class Trained(NamedTuple):
    """Hold what a training run knows before its test."""

    splits: Mapping[str, CaseDataset]
    """The splits as `plain_splits` builds them, maybe with the features of their images."""
    untrained: SplitScores
    """Of test cases before training."""
    validation: CaseScores
    """Of the validation split after it."""
    log: Sequence[dict[str, Any]]
    """Rows of the training log."""


def plain_splits(model: ClinicalVLM, cohort: Cohort, config: Config) -> dict[str, CaseDataset]:
    """Build the three splits of a cohort with the model's case spec, without dropout and augmentation.

    The test split has at most `evaluation.cases`.
    """
    most = {"test": config.evaluation.cases}
    rows = {name: cohort.split(name, most.get(name, 0)) for name in SPLITS}
    withhold = tuple(config.data.withhold)
    return {name: CaseDataset(some, model.spec, cohort.sections, withhold) for name, some in rows.items()}


def evaluate(
    model: ClinicalVLM,
    cohort: Cohort,
    config: Config,
    folder: Path,
    trained: Trained | None = None,
    learned: Sequence[LearnedMetric] = (),
    thresholds: Points | None = None,
    own: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate a model on the test split and write the results to `folder`; returns the metrics.

    With `trained`, what a training run knows, the measures of training and validation cases are set beside those of
    the test. Without `thresholds` of the operating points, these are fixed on the scores of the validation split. `own`
    are the metrics of the adapter's own test, which stand beside these. The caller loads `learned` before the work
    begins, since it may need a download. All ranks draft; rank 0 measures and writes, and the others return an empty
    dict after drafting, and nothing more is exchanged between them.
    """
    splits, options = trained.splits if trained else plain_splits(model, cohort, config), config.evaluation
    test, validation = splits["test"], trained.validation if trained else None
    bootstrap = Bootstrap(np.array(test.rows["patient"], dtype=object), options.bootstrap_draws)
    if world_size() == 1:  # several processes read the images, each its share
        cache_features(model, [test], options.batch_size, config.train.workers)
    with merged_lora(model):
        scores = score_cases(model, test, options.batch_size, "test")
        if validation is None and thresholds is None:
            validation = score_cases(model, splits["validation"], options.batch_size, "validation", text=False)
        as_given = ArmCases(ARMS[0], test)
        given, arms = run_arms(model, as_given, config, scores)
        of_splits = score_splits(model, splits, config) if trained else {}
    rows, references = arms.rows, test.reports
    labeller = Labeller.load(config.data.findings)
    reports = Reports(given.drafts, references, labeller)
    fluency = fluency_measures(model, reports, options.batch_size, bootstrap)
    part_processes()
    if not is_main():
        return {}
    announce("measures")
    probabilities = calibrated(model, scores)  # N × K
    if validation is not None and thresholds is None:
        known = splits["validation"].rows["patient"]
        thresholds = fix_thresholds(
            validation, calibrated(model, validation), model.spec.labels, known, options.operating_points
        )
    vitals = matrix(test.rows, "vitals", len(cohort.schema)).astype(np.float64)
    stands_for = findings_of_labels(model.spec.labels, labeller.names, cohort.label_findings)
    distances = np.where(as_given.has_image, given.distances or np.nan, np.nan)  # N
    points = operating_measures(thresholds or {}, scores, probabilities, model.spec.labels, bootstrap)
    measured = all_measures(scores, probabilities, model.spec.labels, points, reports, stands_for)
    disagreements = head_against_text(given.drafts, probabilities, model.spec.labels, stands_for, labeller)

    metrics: dict[str, Any] = {
        "cases": len(test),
        "patients": len(set(test.rows["patient"])),
        "drawn_from": len(cohort.split("test")),
        "splits": {name: {"cases": len(split), "patients": len(set(split.rows["patient"]))}
                   for name, split in splits.items()},
        "text_loss": text_loss_measure(scores, bootstrap),
        "labels": label_measures(scores, probabilities, model.spec.labels, bootstrap),
        "operating_points": points,
        "subgroups": subgroup_measures(all_groupings(config, cohort, test.rows), measured, bootstrap),
        "calibration": {**asdict(model.calibration), "ece": pooled_calibration_error(scores, probabilities, bootstrap)},
        "references": {"cases": len(reports.rows), "read": sum(map(labeller.is_read, references))},
        "text": text_measures(reports, bootstrap, learned),
        "fluency": fluency,
        "vocabulary": labeller.vocabulary.title,
        "findings": finding_measures(reports, bootstrap),
        "named_labels": named_labels(reports, scores.targets, model.spec.labels, stands_for, bootstrap),
        "numbers": number_measures(given.drafts, vitals, cohort.schema, bootstrap),
        "distinct_reports": len(set(given.drafts)),
        "distinct_ratio": len(set(given.drafts)) / max(len(test), 1),
        "cut_drafts": {**bootstrap(mean(np.array(given.cut))), "cases": sum(given.cut),
                       "max_new_tokens": options.max_new_tokens} if len(given.cut) else {},
        "head_against_text": bootstrap(mean(disagreements)),
        "reliability": reliability_measures(model.reliability, model.spec, scores.targets, probabilities, reports,
                                            vitals, distances, bootstrap),
        "ablation": ablation_measures(arms.results, arms.cases, scores.of(rows), reports.of(rows), bootstrap.of(rows)),
        "baselines": baseline_measures(model, splits, reports, stands_for, scores, bootstrap, config, learned),
    }  # fmt: skip
    metrics["profile"] = profile(test, scores)
    if isinstance(model.calibration, SiteCalibration):
        before = Calibration(model.calibration.temperature).probabilities(torch.from_numpy(scores.logits).double())
        was = label_measures(scores, before.numpy(), model.spec.labels, bootstrap)
        metrics["before_recalibration"] = {
            label: {key: row[key] for key in OF_CALIBRATION} for label, row in was.items()
        }
    metrics["beside"] = beside(metrics, own or {})
    if trained:
        fresh = trained.untrained
        of_fresh = Bootstrap(fresh.patients, options.bootstrap_draws)
        metrics["text_loss_untrained"] = {**text_loss_measure(fresh.scores, of_fresh), "cases": len(fresh.patients)}
        of_splits["test"] = SplitScores(scores, bootstrap.patients, metrics["drawn_from"])
        metrics["by_split"] = split_measures(of_splits, model.spec.labels, options.bootstrap_draws)
    if given.sections:
        wanted = [split_sections(test.report(index, True), model.spec.sections) for index in range(len(test))]
        metrics["sections"] = section_measures(given.sections, wanted, bootstrap)
    if cohort.facts is not None:
        metrics["facts"] = {
            "as_given": fact_measures(as_given, cohort.facts, given.drafts, bootstrap),
            **{name: fact_measures(arms.cases[name], cohort.facts, arm.drafts, bootstrap.of(rows))
               for name, arm in arms.results.items() if name != "as_given"},
        }  # fmt: skip
    metrics["verdicts"] = verdicts(metrics)
    announce("figures and page")
    with writing(folder):
        make_folder(folder)
    replace_file(folder / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    written = write_predictions(folder, test, scores, given, references, probabilities, disagreements)
    write_table1(folder, test, written, as_given.has_image)
    draw_figures(folder / "figures", cohort, config, test, scores, probabilities, bootstrap.patients, metrics,
                 trained.log if trained else ())  # fmt: skip
    write_page(folder, test, written, metrics, title=config.run.name)
    return metrics


def calibrated(model: ClinicalVLM, scores: CaseScores) -> np.ndarray:
    """Compute the calibrated probabilities of scored cases; N × K, float64."""
    return model.calibration.probabilities(torch.from_numpy(scores.logits).double()).numpy()


def baseline_measures(
    model: ClinicalVLM,
    splits: Mapping[str, CaseDataset],
    drafted: Reports,
    stands_for: Mapping[str, str],
    scores: CaseScores,
    bootstrap: Bootstrap,
    config: Config,
    learned: Sequence[LearnedMetric] = (),
) -> dict[str, Any]:
    """Measure the baselines: constant report, nearest training case, vitals alone, missingness alone."""
    train, test, references = splits["train"], splits["test"], drafted.references
    if not (len(train) and len(test)):
        return {}
    reports = {}
    if any(references):
        reports["constant"] = [constant_report(train.reports, drafted.labeller)] * len(references)
        reports["nearest"] = nearest_reports(model, train, test, config.evaluation.batch_size, config.train.workers)
    measures: dict[str, Any] = {}
    for name, drafts in reports.items():
        shown = replace(drafted, drafts=drafts)
        measures[name] = {
            "text": text_measures(shown, bootstrap, learned),
            "findings": finding_measures(shown, bootstrap),
            "named_labels": named_labels(shown, scores.targets, model.spec.labels, stands_for, bootstrap),
        }
    for kind in ("vitals", "missingness"):
        guesses = classifier_scores(train, test, kind)
        measures[kind] = {
            label: auroc_of(guesses[:, k], scores.targets[:, k], bootstrap) for k, label in enumerate(model.spec.labels)
        }
    return measures
