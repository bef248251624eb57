"""Evaluate a model on the test split: draft, then write metrics.json, predictions.jsonl, figures and a page."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vlm.atomic import make_folder, replace_file, writing
from vlm.config import Config
from vlm.data.cohort import Cohort
from vlm.data.dataset import CaseDataset
from vlm.data.sections import split_sections, strip_headings
from vlm.data.splits import SPLITS
from vlm.data.storage import matrix
from vlm.distributed import gather_ordered, is_main, part_processes, shard_indices
from vlm.evaluation.ablation import ArmResult, ablation_measures, verdicts
from vlm.evaluation.arms import ARMS, Arm, ArmCases, all_arms
from vlm.evaluation.baselines import classifier_scores, constant_report, nearest_reports
from vlm.evaluation.evidence_parts import CONTEXT, SIGNAL, TREND
from vlm.evaluation.figures import draw_figures
from vlm.evaluation.fluency import fluency_measures
from vlm.evaluation.html_report import write_page
from vlm.evaluation.intervals import mean
from vlm.evaluation.learned import LearnedMetric
from vlm.evaluation.measures import (
    Bootstrap,
    Reports,
    auroc_of,
    contradictions,
    fact_measures,
    finding_measures,
    label_measures,
    named_labels,
    number_measures,
    pooled_calibration_error,
    section_measures,
    text_loss_measure,
    text_measures,
)
from vlm.evaluation.predictions import write_predictions
from vlm.evaluation.scoring import CaseScores, score_cases
from vlm.findings.labeller import Labeller
from vlm.inference.engine import Draft, ReportEngine
from vlm.model.clinical_vlm import ClinicalVLM


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
    untrained: CaseScores | None = None,
    log: Sequence[dict[str, Any]] = (),
    learned: Sequence[LearnedMetric] = (),
) -> dict[str, Any]:
    """Evaluate a model on the test split and write the results to `folder`; returns the metrics.

    `untrained` are the scores before training and `log` the rows of the training log, if any. The caller loads
    `learned` before the work begins, since it may need a download. All ranks draft; rank 0 measures and writes, and
    the others return an empty dict after drafting, and nothing more is exchanged between them.
    """
    splits, options = plain_splits(model, cohort, config), config.evaluation
    test = splits["test"]
    bootstrap = Bootstrap(np.array(test.rows["patient"], dtype=object), options.bootstrap_draws)
    scores = score_cases(model, test, options.batch_size, "test")
    arms = {arm.name: ArmCases(arm, test) for arm in all_arms(test) if _applies(arm, config)}
    drafted: DraftCache = {}
    results = {
        name: run_arm(model, cases, config, scores, drafted) for name, cases in arms.items() if not cases.undefined
    }
    given, references = results["as_given"], test.reports
    labeller = Labeller.load(config.data.findings)
    reports = Reports(given.drafts, references, labeller)
    fluency = fluency_measures(model, reports, options.batch_size, bootstrap)
    part_processes()
    if not is_main():
        return {}
    probabilities = model.calibration.probabilities(torch.from_numpy(scores.logits).double()).numpy()  # N × K
    vitals = matrix(test.rows, "vitals", len(cohort.schema)).astype(np.float64)
    stands_for = {label: label for label in model.spec.labels if label in labeller.names} | cohort.label_findings
    disagreements = contradictions(given.drafts, probabilities, model.spec.labels, stands_for, labeller)

    metrics: dict[str, Any] = {
        "cases": len(test),
        "patients": len(set(test.rows["patient"])),
        "drawn_from": len(cohort.split("test")),
        "splits": {name: {"cases": len(split), "patients": len(set(split.rows["patient"]))}
                   for name, split in splits.items()},
        "text_loss": text_loss_measure(scores, bootstrap),
        "labels": label_measures(scores, probabilities, model.spec.labels, bootstrap),
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
        "ablation": ablation_measures(results, arms, scores, reports, bootstrap),
        "baselines": baseline_measures(model, splits, reports, stands_for, scores, bootstrap, config, learned),
    }  # fmt: skip
    if untrained is not None:
        metrics["text_loss_untrained"] = text_loss_measure(untrained, bootstrap)
    if given.sections:
        wanted = [split_sections(test.report(index, True), model.spec.sections) for index in range(len(test))]
        metrics["sections"] = section_measures(given.sections, wanted, bootstrap)
    if cohort.facts is not None:
        metrics["facts"] = {
            name: fact_measures(arms[name], cohort.facts, arm.drafts, bootstrap) for name, arm in results.items()
        }
    metrics["verdicts"] = verdicts(metrics)
    with writing(folder):
        make_folder(folder)
    replace_file(folder / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    rows = write_predictions(folder, test, scores, given, references, probabilities, disagreements)
    draw_figures(folder / "figures", cohort, config, scores, probabilities, bootstrap.patients, metrics, log)
    write_page(folder, test, rows, metrics, title=config.run.name)
    return metrics


def _applies(arm: Arm, config: Config) -> bool:
    """Check whether to run an arm: the first always, the others with ablation on and their evidence not withheld."""
    whole = {"vitals": "vitals", TREND: "vitals", CONTEXT: CONTEXT, SIGNAL: SIGNAL}
    changed = {whole.get(part, "image") for part in arm.changes}
    return not changed or (config.evaluation.ablation and not changed & set(config.data.withhold))


DraftCache = dict[tuple[int | str, ...], Draft]
"""Cache of drafts by input, shared by the arms, so that no input is drafted twice."""


def run_arm(model: ClinicalVLM, cases: ArmCases, config: Config, given: CaseScores, drafted: DraftCache) -> ArmResult:
    """Draft and score the cases of an arm; the text loss covers the first `ablation_cases` of them."""
    options, name = config.evaluation, cases.arm.name.replace("_", " ")
    drafts = draft(model, cases, config, drafted)
    headings, cut = model.spec.sections, [bool(draft.cut_at) for draft in drafts]
    texts = [strip_headings(draft.text, headings) for draft in drafts]
    if cases.arm == ARMS[0]:
        sections = [split_sections(draft.text, headings) for draft in drafts] if headings else ()
        return ArmResult(texts, given.logits, given.losses, cut, sections)
    logits = np.array([draft.logits for draft in drafts]).reshape(given.logits.shape)
    first = torch.utils.data.Subset(cases, range(min(options.ablation_cases or len(cases), len(cases))))
    return ArmResult(texts, logits, score_cases(model, first, options.batch_size, name).losses, cut)


def draft(model: ClinicalVLM, cases: ArmCases, config: Config, drafted: DraftCache) -> list[Draft]:
    """Draft the cases of an arm that are not yet in `drafted`, sharded over the ranks."""
    engine, options = ReportEngine(model), config.evaluation
    engine.max_seconds = math.inf  # bounded in tokens: the metrics must not depend on the machine's load
    new = {shown: index for index, shown in enumerate(cases.shown) if shown not in drafted}
    places = list(new.values())
    own = [places[place] for place in shard_indices(len(new), model.sharded)]
    title = f"drafting: {cases.arm.name.replace('_', ' ')}"
    drafts = engine.draft((cases[index] for index in own), options.batch_size, options.max_new_tokens)
    progress = tqdm(drafts, total=len(own), desc=title, unit="report", leave=False, disable=not is_main())
    drafted |= zip(new, gather_ordered(list(progress), len(new), model.sharded), strict=True)
    return [drafted[shown] for shown in cases.shown]


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
        reports["nearest"] = nearest_reports(model, train, test, config.evaluation.batch_size)
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
