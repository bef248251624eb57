"""Measure on unseen cases how sure the adapter's sentences are, and what withholding the least sure drafts gives."""

from typing import Any, NamedTuple

import numpy as np

from vlm.data.case import CaseSpec
from vlm.evaluation.measures import Bootstrap, Reports
from vlm.findings.structure import statements_of_labels
from vlm.reliability.sentences import SentenceFit, is_wrong, read_sentences
from vlm.reliability.thresholds import Reliability
from vlm.statistics.estimate import undefined
from vlm.statistics.intervals import Statistic, mean, ratio
from vlm.statistics.probability import auroc, expected_calibration_error

NONE_FITTED = "the adapter does not know how sure its sentences are"


class JudgedDrafts(NamedTuple):
    """The sentences of N drafts that state a finding, S of them."""

    case: np.ndarray
    """S, the draft of each."""
    confidence: np.ndarray
    """S, NaN where no label stands for what it says."""
    wrong: np.ndarray
    """S, 0 or 1 by the reference."""
    of_draft: np.ndarray
    """N, confidence of each draft, NaN without any."""


def judge_drafts(
    fit: SentenceFit, spec: CaseSpec, reports: Reports, probabilities: np.ndarray, vitals: np.ndarray
) -> JudgedDrafts:
    """Judge the drafts that have a reference; `probabilities` are N × K, calibrated, `vitals` N × m."""
    statements = statements_of_labels(spec.labels, reports.labeller, spec.label_findings)
    rows, of_draft = [], np.full(len(reports.drafts), np.nan)
    for case in reports.rows:
        known = dict(zip(spec.labels, probabilities[case].tolist(), strict=True))
        parts, given = [("", reports.drafts[case])], vitals[case].tolist()
        read = read_sentences(parts, reports.labeller, statements, known, given, spec.schema)
        of_draft[case] = np.nan if (sure := fit.of_draft(read)) is None else sure
        for one in read:
            wrong = is_wrong(one.text, reports.references[case], reports.labeller)
            if wrong is not None:
                sure = fit.confidence(one)
                rows.append((case, np.nan if sure is None else sure, float(wrong)))
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    return JudgedDrafts(table[:, 0].astype(int), table[:, 1], table[:, 2], of_draft)


def confidence_measures(
    kept: Reliability,
    spec: CaseSpec,
    reports: Reports,
    probabilities: np.ndarray,
    vitals: np.ndarray,
    unlike: np.ndarray,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Measure the sentences' confidence, and abstaining; `unlike` says whose picture is unlike those of training, N."""
    if kept.sentences is None or not len(reports.rows):
        why = NONE_FITTED if kept.sentences is None else "no case has a reference"
        return {"sentences": {"auroc": undefined(why), "ece": undefined(why)}, "abstaining": {"share": undefined(why)}}
    judged = judge_drafts(kept.sentences, spec, reports, probabilities, vitals)
    return {
        "sentences": sentence_measures(judged, bootstrap),
        "abstaining": abstaining_measures(judged, kept.sentences, reports, unlike, bootstrap),
    }


def sentence_measures(judged: JudgedDrafts, bootstrap: Bootstrap) -> dict[str, Any]:
    """Measure whether the confidence tells right sentences from wrong ones, and whether it is the share of right."""
    known = np.flatnonzero(~np.isnan(judged.confidence))
    case, sure, wrong = judged.case[known], judged.confidence[known], judged.wrong[known]
    counts = {"count": len(judged.case), "with_confidence": len(known), "wrong": int(judged.wrong.sum())}
    if not len(known):
        why = "no sentence states what a label stands for"
        return {"auroc": undefined(why), "ece": undefined(why), **counts}
    both = 0 < wrong.sum() < len(wrong)
    area = bootstrap(auroc(wrong, -sure), case, classes=wrong) if both else undefined("all or none are wrong")
    return {"auroc": area, "ece": bootstrap(expected_calibration_error(1 - wrong, sure), case), **counts}


def abstaining_measures(
    judged: JudgedDrafts, fit: SentenceFit, reports: Reports, unlike: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Measure what is wrong in all drafts, and in those given out if doubtful ones are withheld.

    `cut` is the share by which withholding lowers the wrong sentences a draft, `withheld` the share of all of them that
    are in withheld drafts. Withholding as many drafts at random would make the first nothing, the second their share.
    """
    rows, labeller = reports.rows, reports.labeller
    withheld = (judged.of_draft < fit.unsure_below) | unlike  # N; NaN is below nothing
    errors = np.bincount(judged.case, judged.wrong, len(withheld))[rows]
    invented = reports.agreement.hallucinated.any(axis=1).astype(float) if labeller.names else np.zeros(len(rows))
    given = (~withheld[rows]).astype(float)
    boot, every = bootstrap.of(rows), np.ones(len(rows))
    return {
        "share": boot(mean(withheld[rows].astype(float))),
        "wanted": fit.share,
        "unlike": int(unlike[rows].sum()),
        "cases": len(rows),
        "wrong_sentences": {"all": boot(mean(errors)), "given": boot(ratio(errors * given, given)),
                            "cut": boot(_cut(errors, given)),
                            "withheld": boot(ratio(errors * (1 - given), errors))},
        "drafts_with_a_wrong_sentence": {"all": boot(mean(errors > 0)),
                                         "given": boot(ratio((errors > 0) * given, given))},
        "drafts_with_an_invented_finding": {"all": boot(ratio(invented, every)),
                                            "given": boot(ratio(invented * given, given))},
    }  # fmt: skip


def _cut(errors: np.ndarray, given: np.ndarray) -> Statistic:
    """Build the statistic of the share by which giving out some drafts alone lowers the errors a draft."""
    of_all, of_given = mean(errors), ratio(errors * given, given)

    def statistic(weights: np.ndarray) -> np.ndarray:
        before = of_all(weights)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(before > 0, 1 - of_given(weights) / before, np.nan)

    return statistic
