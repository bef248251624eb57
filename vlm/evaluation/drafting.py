"""Draft and score the test cases under each ablation arm: all as given, some of them with their evidence changed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vlm.config import Config
from vlm.data.dataset import CaseDataset
from vlm.data.sections import split_sections, strip_headings
from vlm.data.splits import draw_cases
from vlm.distributed import gather_ordered, shard_indices
from vlm.evaluation.ablation import ArmResult
from vlm.evaluation.arms import ARMS, Arm, ArmCases, all_arms
from vlm.evaluation.evidence_parts import CONTEXT, SIGNAL, TREND
from vlm.evaluation.scoring import CaseScores, score_cases
from vlm.inference.engine import Draft, ReportEngine
from vlm.model.clinical_vlm import ClinicalVLM
from vlm.progress import progress

DraftCache = dict[tuple[int | str, ...], Draft]
"""Cache of drafts by input, shared by the arms, so that no input is drafted twice."""


@dataclass(frozen=True)
class ArmsRun:
    """The drafts of every arm on the same cases: all of a split, or those of some patients."""

    rows: np.ndarray
    """M, the cases of the split."""
    cases: Mapping[str, ArmCases]
    """The M cases under each arm, `as_given` first."""
    results: Mapping[str, ArmResult]
    """Without the arms that cannot be applied to any case."""


def run_arms(model: ClinicalVLM, cases: ArmCases, config: Config, scores: CaseScores) -> tuple[ArmResult, ArmsRun]:
    """Draft all cases of a split as given, and at most `evaluation.ablation_cases` of them under each other arm.

    `cases` are those as given, and `scores` theirs.
    """
    test, drafted = cases.dataset, DraftCache()
    given = run_arm(model, cases, config, scores, drafted)
    most = config.evaluation.ablation_cases
    rows = draw_cases(test.rows, most)
    if len(rows) < len(test):
        inputs = cases.shown
        test = test.select(rows)
        cases = ArmCases(ARMS[0], test)
        # A case's input is named by its place, which has changed.
        drafted = {new: drafted[inputs[row]] for new, row in zip(cases.shown, rows, strict=True)}
    arms = {arm.name: ArmCases(arm, test) for arm in wanted_arms(config, test)} | {"as_given": cases}
    results = {"as_given": given.of(rows)}
    for name, shown in arms.items():
        if name not in results and not shown.undefined:
            results[name] = run_arm(model, shown, config, scores.of(rows), drafted)
    return given, ArmsRun(rows, arms, results)


def wanted_arms(config: Config, dataset: CaseDataset) -> list[Arm]:
    """List the arms to run: the first always, the others with ablation on and their evidence not withheld."""
    return [arm for arm in all_arms(dataset) if _applies(arm, config)]


def _applies(arm: Arm, config: Config) -> bool:
    whole = {"vitals": "vitals", TREND: "vitals", CONTEXT: CONTEXT, SIGNAL: SIGNAL}
    changed = {whole.get(part, "image") for part in arm.changes}
    return not changed or (config.evaluation.ablation and not changed & set(config.data.withhold))


def run_arm(model: ClinicalVLM, cases: ArmCases, config: Config, given: CaseScores, drafted: DraftCache) -> ArmResult:
    """Draft and score the cases of an arm; `given` are the scores of the same cases as given."""
    options = config.evaluation
    drafts = draft(model, cases, config, drafted)
    headings, cut = model.spec.sections, [bool(draft.cut_at) for draft in drafts]
    texts = [strip_headings(draft.text, headings) for draft in drafts]
    if cases.arm == ARMS[0]:
        sections = [split_sections(draft.text, headings) for draft in drafts] if headings else ()
        return ArmResult(texts, given.logits, given.losses, cut, sections, [one.distance for one in drafts])
    logits = np.array([draft.logits for draft in drafts]).reshape(given.logits.shape)
    return ArmResult(texts, logits, score_cases(model, cases, options.batch_size, cases.arm.title).losses, cut)


def draft(model: ClinicalVLM, cases: ArmCases, config: Config, drafted: DraftCache) -> list[Draft]:
    """Draft the cases of an arm that are not yet in `drafted`, sharded over the ranks."""
    engine, options = ReportEngine(model), config.evaluation
    engine.max_seconds = math.inf  # bounded in tokens: the metrics must not depend on the machine's load
    new = {shown: index for index, shown in enumerate(cases.shown) if shown not in drafted}
    places = list(new.values())
    own = [places[place] for place in shard_indices(len(new), model.sharded)]
    drafts = engine.draft((cases[index] for index in own), options.batch_size, options.max_new_tokens)
    found = list(progress(drafts, f"drafting: {cases.arm.title}", len(own)))
    drafted |= zip(new, gather_ordered(found, len(new), model.sharded), strict=True)
    return [drafted[shown] for shown in cases.shown]
