"""What tells a wrong sentence of a draft: the head, the language model's likelihoods, or whether it says so again.

    python -m benchmarks.sentence_evidence runs/ham10000-seed0 runs/ham10000-seed1 --cases 200 --samples 5

Drafts of unseen cases are made greedily. For each sentence that a label stands for: the confidence that the adapter
gives it (from the head alone), the language model's log likelihoods of its tokens, what these lose where image and
vitals are withheld, and in how many sampled drafts it would be right (Manakul et al., 2023). Logistic regressions on
each, and on several together, are fitted and tried in five folds by patient; differences from the head are paired, with
95 % intervals over patients.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import LogitsProcessorList

from benchmarks.text_losses import each_token, sampling, token_places, withheld
from vlm import ClinicalVLM
from vlm.config.parsing import parse_config
from vlm.data.case import Example
from vlm.data.collate import IGNORED, Collator
from vlm.data.ingest.sources import load_cohort
from vlm.evaluation.ablation import minus
from vlm.evaluation.evaluate import plain_splits
from vlm.findings.labeller import sentence_spans
from vlm.inference.engine import ReportEngine
from vlm.reliability.sentences import is_wrong
from vlm.report import Report
from vlm.statistics.estimate import Estimate
from vlm.statistics.intervals import Statistic, patient_bootstrap
from vlm.statistics.probability import auroc, expected_calibration_error

BATCH, DRAWS, FOLDS = 32, 2000, 5
EVIDENCE = {
    "head": ["head"],
    "likelihoods": ["sum", "least"],
    "likelihoods, with and without evidence": ["sum", "least", "gain", "most gain"],
    "agreement of samples": ["agreement"],
    "head and likelihoods": ["head", "sum", "least", "gain", "most gain"],
    "head and agreement": ["head", "agreement"],
    "all": ["head", "sum", "least", "gain", "most gain", "agreement"],
}
"""What a regression is shown."""


class Rows(NamedTuple):
    """Sentences of drafts that a label stands for."""

    evidence: dict[str, np.ndarray]
    """S of each kind."""
    wrong: np.ndarray
    """S, 0 or 1 by the reference report."""
    patients: np.ndarray


def token_likelihoods(model: ClinicalVLM, examples: list[Example], withhold: bool) -> Iterator[tuple[list[int], Any]]:
    """Yield the ids of each report's tokens and their log likelihoods, with or without image and vitals."""
    for start in range(0, len(examples), BATCH):
        batch: Any = Collator(model.prompt)(examples[start : start + BATCH])
        with torch.no_grad(), model.autocast():
            losses, case, _ = each_token(model, withheld(batch) if withhold else batch)
        for row, labels in enumerate(batch["labels"]):
            yield labels[labels != IGNORED].tolist(), -losses[case == row].float().numpy()


def sampled_drafts(model: ClinicalVLM, examples: list[Example], longest: int) -> list[str]:
    """Draft each case once more, each token drawn at temperature 1."""
    collate, texts = Collator(model.prompt, generation=True), []
    for start in range(0, len(examples), BATCH):
        prompts = collate(examples[start : start + BATCH])
        texts += model.generate(prompts, longest, logits_processor=LogitsProcessorList([sampling]))[0]
    return texts


def evidence_of_sentences(model: ClinicalVLM, report: Report, scored: list[Any], samples: list[str],
                          engine: ReportEngine) -> Iterator[tuple[str, dict[str, float]]]:  # fmt: skip
    """Yield each sentence that has a confidence, and what speaks for it."""
    (ids, given), (_, blind) = scored
    starts, ends = token_places(model, ids)
    spans = [(a, b) for a, b in sentence_spans(report.text) if any(map(str.isalpha, report.text[a:b]))]
    for (start, end), one in zip(spans, report.sentences, strict=True):
        if one.confidence is None:
            continue
        inside = (starts < end) & (ends > start)
        gain = (given - blind)[inside]
        right = [is_wrong(one.text, other, engine.labeller) is False for other in samples]
        yield one.text, {
            "head": float(logit(np.clip(one.confidence, 1e-6, 1 - 1e-6))),
            "sum": float(given[inside].sum()), "least": float(given[inside].min()),
            "gain": float(gain.sum()), "most gain": float(gain.max()),
            "agreement": float(logit((sum(right) + 0.5) / (len(right) + 1))),
        }  # fmt: skip


def rows_of(run: Path, cases: int, samples: int) -> Rows:
    """Draft the test cases of a run and gather the evidence of their sentences."""
    config, _ = parse_config(["--config", str(run / "config.yaml"), "--evaluation.cases", str(cases)])
    model = ClinicalVLM.from_pretrained(str(run / "adapter"))
    test = plain_splits(model, load_cohort(config.data), config)["test"]
    examples, engine = [test[index] for index in range(len(test))], ReportEngine(model)
    longest = config.evaluation.max_new_tokens
    torch.manual_seed(0)
    marks = [time.perf_counter()]
    reports = list(engine.reports([(one, ()) for one in examples], BATCH, longest))
    marks.append(time.perf_counter())
    said: list[Example] = [{**one, "report": draft.text} for one, draft in zip(examples, reports, strict=True)]
    scored = [list(token_likelihoods(model, said, withhold)) for withhold in (False, True)]
    marks.append(time.perf_counter())
    others = [sampled_drafts(model, examples, longest) for _ in range(samples)]
    marks.append(time.perf_counter())
    seconds = "drafts {:.2f}, likelihoods {:.2f}, samples {:.2f}".format(*np.diff(marks) / len(examples))
    print(f"{run.name}: seconds a case: {seconds}")
    evidence, wrong, patients = [], [], []
    for n, report in enumerate(reports):
        again = [texts[n] for texts in others]
        for text, speaks in evidence_of_sentences(model, report, [one[n] for one in scored], again, engine):
            if (is_it := is_wrong(text, test.reports[n], engine.labeller)) is not None:
                evidence.append(speaks)
                wrong.append(float(is_it))
                patients.append(test.rows["patient"][n])
    columns = {name: np.array([one[name] for one in evidence]) for name in evidence[0]}
    return Rows(columns, np.array(wrong), np.array(patients))


def out_of_fold(rows: Rows, names: list[str]) -> np.ndarray:
    """Fit the probability that a sentence is wrong on some evidence, out of fold by patient; S."""
    x = np.stack([rows.evidence[name] for name in names], axis=1)
    folds = GroupKFold(FOLDS).split(x, groups=rows.patients)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    return cross_val_predict(model, x, rows.wrong, cv=list(folds), method="predict_proba")[:, 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs whose adapters know their sentences")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: PyTorch's own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for run in options.runs:
        rows = rows_of(run, options.cases, options.samples)

        def estimate(statistic: Statistic, rows: Rows = rows) -> Estimate:
            return patient_bootstrap(statistic, rows.patients.tolist(), DRAWS, classes=rows.wrong)

        print(f"{run.name}: {len(rows.wrong)} sentences, {int(rows.wrong.sum())} wrong")
        print("| evidence | AUROC for a wrong sentence | less the head's | ECE |\n| --- | --- | --- | --- |")
        base = auroc(rows.wrong, out_of_fold(rows, EVIDENCE["head"]))
        for name, kinds in EVIDENCE.items():
            wrong = out_of_fold(rows, kinds)
            area = auroc(rows.wrong, wrong)
            cells = [estimate(area), estimate(minus(area, base)),
                     estimate(expected_calibration_error(rows.wrong, wrong))]  # fmt: skip
            print(f"| {name} | " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
