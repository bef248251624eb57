"""Measure whether the model uses its input: input ablations with swapped, blanked or withheld evidence."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm.evaluation.agreement import Agreement, why_undefined
from vlm.evaluation.arms import ArmCases
from vlm.evaluation.measures import Bootstrap, Reports
from vlm.evaluation.operating_points import missed_targets
from vlm.evaluation.scoring import CaseScores, ranked
from vlm.statistics import probability
from vlm.statistics.estimate import undefined
from vlm.statistics.intervals import Statistic, mean, ratio

SMALL = 0.05
"""Minimum share of changed drafts among cases with changed input; below it, a model ignores its input."""
CHANGES = ("text_loss_change", "auroc_change", "finding_f1_change", "drafts_changed")


@dataclass(frozen=True)
class ArmResult:
    """Drafts, logits and losses of a model on the cases of one ablation arm."""

    drafts: Sequence[str]
    logits: np.ndarray
    """N × K."""
    losses: np.ndarray
    """N, text loss summed over the report's tokens."""
    cut: Sequence[bool] = ()
    """True for each draft that was truncated."""
    sections: Sequence[Mapping[str, str]] = ()
    """Sections of each draft by name, where drafts have headings, which `drafts` are without."""
    distances: Sequence[float] = ()
    """Distance of each case's image features from those of training."""

    def of(self, rows: np.ndarray) -> "ArmResult":
        """Return the results of some cases."""
        parts = (self.drafts, self.cut, self.sections, self.distances)
        drafts, cut, sections, distances = ([part[row] for row in rows] if len(part) else () for part in parts)
        return ArmResult(drafts, self.logits[rows], self.losses[rows], cut, sections, distances)


def ablation_measures(
    arms: Mapping[str, ArmResult],
    cases: Mapping[str, ArmCases],
    scores: CaseScores,
    reports: Reports,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Compute each arm's paired change in text loss, AUROC and finding F1, and its share of changed drafts.

    An arm that cannot be applied to any case has no result. Its measures say why.
    """
    given, unread = arms["as_given"], why_undefined(list(filter(None, reports.references)), reports.labeller)
    measures: dict[str, Any] = {}
    for name, shown in cases.items():
        if name == "as_given":
            continue
        if shown.undefined:
            measures[name] = {key: undefined(shown.undefined) for key in CHANGES} | {"changed_cases": 0}
            continue
        arm, tokens = arms[name], scores.tokens.astype(np.float64)
        changed = np.array([a != b for a, b in zip(arm.drafts, given.drafts, strict=True)])
        loss = ratio(arm.losses - given.losses, tokens)
        measures[name] = {
            "text_loss_change": bootstrap(loss),
            "auroc_change": bootstrap(
                minus(macro_auroc(arm.logits, scores.targets), macro_auroc(given.logits, scores.targets))
            ),
            "finding_f1_change": undefined(unread)
            if unread
            else bootstrap(minus(_f1(reports, arm.drafts), _f1(reports, given.drafts))),
            "drafts_changed": bootstrap(mean(changed)),
            "cases": len(tokens),
            "changed_cases": int(shown.changed.sum()),
        }
    return measures


def macro_auroc(logits: np.ndarray, targets: np.ndarray) -> Statistic:
    """Build the statistic of the mean AUROC over the labels that have both classes; N × K each."""
    parts = []
    for k in range(targets.shape[1]):
        known = np.flatnonzero(~np.isnan(targets[:, k]))
        if len(np.unique(targets[known, k])) == 2:
            parts.append((known, probability.auroc(targets[known, k], ranked(logits[known, k]))))

    def statistic(weights: np.ndarray) -> np.ndarray:
        values = [area(weights[:, known]) for known, area in parts]
        return np.mean(values, axis=0) if values else np.full(len(weights), np.nan)

    return statistic


def _f1(reports: Reports, drafts: Sequence[str]) -> Statistic:
    """Build the statistic of finding F1 of drafts over all cases, with weight 0 for a case without a reference."""
    references = reports.references
    has = np.array([bool(text) for text in references])
    texts = [draft if reference else "" for draft, reference in zip(drafts, references, strict=True)]
    f1 = Agreement.of(texts, references, reports.labeller).f1()
    return lambda weights: f1(weights * has)


def minus(a: Statistic, b: Statistic) -> Statistic:
    """Subtract two statistics on the same resample, for a paired comparison."""
    return lambda weights: a(weights) - b(weights)


def verdicts(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Summarize the metrics in a reviewer's sentences; `good` is false for a fault, null for a gap."""
    sentences: list[dict[str, Any]] = []

    def add(good: bool | None, text: str) -> None:
        sentences.append({"good": good, "text": text})

    distinct, cases = metrics["distinct_reports"], metrics["cases"]
    if cases > 1 and distinct / cases <= 0.02:
        add(False, f"Constant report: {distinct} distinct drafts for {cases} cases.")
    cut = metrics.get("cut_drafts", {})
    if cut.get("cases"):
        add(False, f"{cut['cases']} of {cases} drafts were cut at {cut['max_new_tokens']} tokens "
                   "(evaluation.max_new_tokens): what they did not come to say counts as missing.")  # fmt: skip
    ablation = metrics.get("ablation", {})
    for arm in filter(lambda name: name.endswith("_swapped"), ablation):
        add(*_dependence(arm.removesuffix("_swapped").replace("_", " "), ablation[arm], cases))
    baselines = metrics.get("baselines", {})
    ours = metrics.get("findings", {}).get("f1", {}).get("value")
    for name, title in (("constant", "a constant report"), ("nearest", "the nearest training case's report")):
        theirs = baselines.get(name, {}).get("findings", {}).get("f1", {}).get("value")
        if ours is not None and theirs is not None:
            relation = "above" if ours > theirs else "not above"
            add(ours > theirs, f"Finding F1 {ours:.3f} is {relation} that of {title}, {theirs:.3f}.")
    for label, values in metrics.get("labels", {}).items():
        area = values["auroc"]["value"]
        for name, title in (("missingness", "which values are missing"), ("vitals", "the vitals alone")):
            theirs = baselines.get(name, {}).get(label, {}).get("value")
            if area is not None and theirs is not None and area <= theirs:
                add(False, f"AUROC of {label}, {area:.3f}, is not above a classifier that sees {title}, {theirs:.3f}.")
    for text in missed_targets(metrics.get("operating_points", {})):
        add(False, text)
    for text in _gaps(metrics):
        add(None, text)
    return sentences


def _gaps(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each reason why measures are undefined, with their names."""
    names: dict[str, list[str]] = {}

    def walk(values: Mapping[str, Any], above: str) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping) and value.get("why"):
                names.setdefault(value["why"], []).append(f"{above}{key}".replace("_", " "))
            elif isinstance(value, Mapping) and key not in ("ablation", "baselines", "by_split", "facts", "subgroups"):
                walk(value, f"{above}{key} ")

    walk(metrics, "")
    for why, measures in names.items():
        yield f"Not defined: {', '.join(measures)}: {why}."


def _dependence(kind: str, change: Mapping[str, Any], cases: int) -> tuple[bool | None, str]:
    """Judge whether another patient's evidence of one kind changes the output; returns `good` and a sentence."""
    share, loss, area = change["drafts_changed"], change["text_loss_change"], change["auroc_change"]
    cases = change.get("cases", cases)  # an evaluation of before has all
    if share["value"] is None:
        return None, f"Use of the {kind} was not tested: {share['why']}."
    worse_text = loss["low"] is not None and loss["low"] > 0
    worse_area = area["high"] is not None and area["high"] < 0
    facts = f"{share['value']:.0%} of the drafts change"
    if loss["value"] is not None:
        facts += f", the text loss by {loss['value']:+.3f}"
    if area["value"] is not None:
        facts += f", the AUROC by {area['value']:+.3f}"
    if share["value"] * cases < SMALL * change["changed_cases"] and not worse_area and not worse_text:
        return False, f"Ignores the {kind}: with another patient's, {facts}."
    uses = [name for name, holds in (("text", worse_text), ("probability", worse_area)) if holds]
    if not uses:
        intervals = sum(change["low"] is not None for change in (loss, area))
        held = ("no interval is defined", "the interval holds 0", "both intervals hold 0")[intervals]
        return False, f"No proof of use of the {kind}: with another patient's, {facts}; {held}."
    return True, f"The {' and '.join(uses)} use{'s' * (len(uses) == 1)} the {kind}: with another patient's, {facts}."
